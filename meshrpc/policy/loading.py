"""YAML or JSON text to a strict tree: text, lists and mappings, nothing else.

YAML guesses (`no` is false, `1e3` a number, the second of two equal keys wins) and a guess in a
policy is an outage. So scalars stay text until the schema types them, and what has two readings
is refused with its path: duplicate keys, nulls, anchors and aliases, tags, deep nesting. The
parser's events are read one by one, because composing first would recurse as deep as the text
says. JSON is parsed as JSON (YAML refuses some of its escapes and tabs) and held to the same
rules. What the fields mean is `schema`'s and `documents`' business.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from meshrpc.errors import Problem

MAX_DEPTH = 64
"""Levels of nesting; the deepest field of the language is at about ten."""

Tree: TypeAlias = "str | list[Tree] | dict[str, Tree] | None"
"""A document. None stands where something was refused, so that nobody reports it again."""

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_YAML_LOADER: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_SHOWN = 60  # characters of a value that an error line quotes
_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"


def read_trees(text: str) -> tuple[list[tuple[str, Tree]], list[Problem]]:
    """Return each document's path and tree, and every problem found.

    The path is empty for a document that is alone in its text, else `documents[0]` and so on.
    No documents are returned when the text cannot be read to its end.
    """
    text = text.removeprefix("\ufeff")
    try:
        # JSON first: a flow mapping of YAML opens like an object, but is rarely valid JSON.
        raws = _json_raws(text) if text.lstrip().startswith(("{", "[")) else None
        if raws is None:
            raws = _yaml_raws(text)
    except _UnreadableError as error:
        return [], [error.problem]
    problems: list[Problem] = []
    if not raws:
        problems.append(Problem("document", "", "there is no document in this text"))
    alone = len(raws) == 1
    documents = []
    for index, raw in enumerate(raws):
        path = "" if alone else f"documents[{index}]"
        documents.append((path, _strict(raw, path, 0, problems)))
    return documents, problems


def canonical_text(tree: Tree) -> str:
    """Return the one JSON text of a tree: sorted keys, no spaces."""
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def child_path(path: str, key: str | int) -> str:
    """Return the path of what stands under `key`: `routes[0].retry.attempts`."""
    if isinstance(key, int):
        return f"{path or 'document'}[{key}]"
    if len(key) > _SHOWN or not re.fullmatch(r"[\w/*-]+", key):
        return f"{path}[{_clipped(json.dumps(key))}]"
    return f"{path}.{key}" if path else key


def shown(tree: Tree) -> str:
    """Return a value as one short line, much as its author wrote it."""

    def flow(tree: Tree) -> str:
        match tree:
            case str():
                return tree if tree and tree.isprintable() else json.dumps(tree)
            case list():
                return "[" + ", ".join(map(flow, tree)) + "]"
            case dict():
                pairs = (f"{flow(key)}: {flow(value)}" for key, value in tree.items())
                return "{" + ", ".join(pairs) + "}"
            case None:
                return "…"

    return _clipped(flow(tree))


def _clipped(line: str) -> str:
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"


class _UnreadableError(Exception):
    """The text cannot be read to its end, so what it says is unknown."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


@dataclass(slots=True)
class _Refused:
    """Something with no place in a tree: as it was written, and the rule."""

    written: str
    rule: str


@dataclass(slots=True)
class _Pairs:
    """A mapping as written: duplicate keys, and keys that are no text, are still there."""

    pairs: list[tuple[_Raw, _Raw]] = field(default_factory=list)


_Raw: TypeAlias = "str | list[_Raw] | _Pairs | _Refused"


def _strict(raw: _Raw, path: str, depth: int, problems: list[Problem]) -> Tree:
    match raw:
        case _Refused(written, rule):
            problems.append(Problem(path or "document", shown(written) if written else "", rule))
            return None
        case str():
            if _is_unicode(raw):
                return raw
            problems.append(Problem(path or "document", shown(raw), "this is not valid Unicode"))
            return None
    if depth == MAX_DEPTH:
        problems.append(Problem(path or "document", "", _TOO_DEEP))
        return None
    if isinstance(raw, list):
        return [
            _strict(item, child_path(path, index), depth + 1, problems)
            for index, item in enumerate(raw)
        ]
    mapping: dict[str, Tree] = {}
    for raw_key, raw_value in raw.pairs:
        if not isinstance(raw_key, str):
            written, rule = "", "a key is text"
            if isinstance(raw_key, _Refused):
                written, rule = shown(raw_key.written), f"a key is text: {raw_key.rule}"
            problems.append(Problem(path or "document", written, rule))
            continue
        at = child_path(path, raw_key)
        if not _is_unicode(raw_key):
            problems.append(Problem(at, "", "this key is not valid Unicode"))
        elif raw_key in mapping:
            value = _strict(raw_value, at, depth + 1, [])
            problems.append(Problem(at, shown(value), "a duplicate key: it is set above already"))
        else:
            mapping[raw_key] = _strict(raw_value, at, depth + 1, problems)
    return mapping


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _null(written: str) -> _Refused:
    return _Refused(written, "a null: leave the field out, or quote the word if it is text")


def _json_raws(text: str) -> list[_Raw] | None:
    """Return the JSON text's one document, or None if it is no JSON."""

    def mapping(pairs: list[tuple[str, Any]]) -> _Pairs:
        return _Pairs([(key, _json_raw(value)) for key, value in pairs])

    try:
        document = json.loads(
            text, parse_int=str, parse_float=str, parse_constant=str, object_pairs_hook=mapping
        )
        return [_json_raw(document)]
    except json.JSONDecodeError:
        return None
    except RecursionError:
        raise _UnreadableError(Problem("document", "", _TOO_DEEP)) from None


def _json_raw(value: Any) -> _Raw:
    match value:
        case None:
            return _null("null")
        case bool():
            return "true" if value else "false"
        case list():
            return [_json_raw(item) for item in value]
        case _:  # text, or a _Pairs made by the hook
            return value  # type: ignore[no-any-return]


def _yaml_raws(text: str) -> list[_Raw]:
    documents: list[_Raw] = []
    stack: list[_Open] = []
    try:
        for event in yaml.parse(text, Loader=_YAML_LOADER):
            match event:
                case yaml.ScalarEvent() | yaml.AliasEvent():
                    _add(_yaml_scalar(event), documents, stack)
                case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                    opened: _Raw = [] if isinstance(event, yaml.SequenceStartEvent) else _Pairs()
                    refused = _yaml_refused(event)
                    _add(refused or opened, documents, stack)
                    if len(stack) == MAX_DEPTH:
                        path = _open_path(stack) or "document"
                        raise _UnreadableError(Problem(path, "", _TOO_DEEP))
                    stack.append(_Open(opened))
                case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                    stack.pop()
    # The pure Python parser lets chr()'s and int()'s own errors through.
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise _UnreadableError(_yaml_problem(error)) from error
    return documents


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end has not come yet."""

    container: _Raw
    key: _Raw | None = None


def _add(raw: _Raw, documents: list[_Raw], stack: list[_Open]) -> None:
    if not stack:
        documents.append(raw)
        return
    top = stack[-1]
    if isinstance(top.container, list):
        top.container.append(raw)
    elif isinstance(top.container, _Pairs):
        if top.key is None:
            top.key = raw
        else:
            top.container.pairs.append((top.key, raw))
            top.key = None


def _open_path(stack: list[_Open]) -> str:
    """Return the path of what was added last; called before it is opened itself."""
    path = ""
    for level in stack:
        if isinstance(level.container, list):
            path = child_path(path, len(level.container) - 1)
        elif isinstance(level.container, _Pairs) and level.container.pairs:
            key = level.container.pairs[-1][0]
            path = child_path(path, key) if isinstance(key, str) else path
    return path


def _yaml_scalar(event: Any) -> _Raw:
    refused = _yaml_refused(event)
    if refused is not None:
        return refused
    text: str = event.value
    if not event.style and text in _NULLS:
        return _null(text)
    return text


def _yaml_refused(event: Any) -> _Refused | None:
    if isinstance(event, yaml.AliasEvent):
        return _Refused(f"*{event.anchor}", "an alias: write the value out (quote a text with *)")
    if event.anchor is not None:
        return _Refused(f"&{event.anchor}", "an anchor: write the value out where it is used")
    if event.tag is not None:
        tag = event.tag.replace("tag:yaml.org,2002:", "!!")
        return _Refused(tag, "a tag: the schema says what type a field has")
    return None


def _yaml_problem(error: Exception) -> Problem:
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "document"
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    if getattr(error, "context", None) == "while scanning an alias":
        what = 'a text that begins with * needs quotes, such as "*"'
    return Problem(where, "", f"this is neither YAML nor JSON: {what}")
