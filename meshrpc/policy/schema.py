"""Readers that type a tree, and say everything that is wrong with it at once.

A `Reader[T]` takes a `Place` (a value and its path) and returns a T, or notes what is wrong and
raises `RefusedError`. Readers compose: `record`, `mapping_of` and `list_of` go on after a bad
child, so that one reading finds every problem; `one_of` is a choice with parameters. Numbers are
read by `quantities`; what fields exist is the business of `fields`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from meshrpc.errors import Problem
from meshrpc.policy.loading import Tree, child_path, shown

T = TypeVar("T")
Reader: TypeAlias = "Callable[[Place], T]"
Fields: TypeAlias = dict[str, Any]
"""What was read from a mapping that has no class of its own."""


class RefusedError(Exception):
    """The value cannot be used; the report says why."""


@dataclass(slots=True)
class Report:
    """What one reading found."""

    lenient: bool = False
    """Skip unknown fields, and list them, instead of refusing them."""
    problems: list[Problem] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Place:
    """A value and where it stands. Children that are not there are empty places."""

    tree: Tree
    path: str
    report: Report

    def __getitem__(self, key: str | int) -> Place:
        """Return the child under `key`."""
        child: Tree = None
        if isinstance(self.tree, dict) and isinstance(key, str):
            child = self.tree.get(key)
        elif isinstance(self.tree, list) and isinstance(key, int):
            child = self.tree[key] if key < len(self.tree) else None
        return Place(child, child_path(self.path, key), self.report)

    def __iter__(self) -> Iterator[Place]:
        """Go through the items of a list; anything else has none."""
        count = len(self.tree) if isinstance(self.tree, list) else 0
        return (self[index] for index in range(count))

    def refuse(self, rule: str) -> RefusedError:
        """Report that the value breaks `rule`, and return what a reader raises then."""
        return self._report("" if self.tree is None else shown(self.tree), rule)

    def miss(self, rule: str) -> RefusedError:
        """Report that something has to stand here."""
        return self._report("", rule)

    def read(self, reader: Reader[T]) -> T:
        """Return what `reader` makes of the value.

        Raises:
            RefusedError: it cannot be used; the report has the reason.
        """
        if self.tree is None:  # the loader refused it, and said so
            raise RefusedError
        return reader(self)

    def _report(self, value: str, rule: str) -> RefusedError:
        self.report.problems.append(Problem(self.path or "document", value, rule))
        return RefusedError(rule)


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?` where one of the known words is close, else nothing."""
    folded = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(word.casefold(), folded, n=1)
    return f"; did you mean {folded[close[0]]}?" if close else ""


# Composition.


def record(
    build: Callable[..., T], fields: Mapping[str, Reader[Any]], required: Iterable[str] = ()
) -> Reader[T]:
    """Read a mapping with known fields into `build(**fields)`; absent ones are not passed."""

    def read(place: Place) -> T:
        if not isinstance(place.tree, dict):
            raise place.refuse(f"expected a mapping with {_listed(fields)}")
        values: dict[str, object] = {}
        refused = False
        for name in place.tree:
            try:
                if name in fields:
                    values[name] = place[name].read(fields[name])
                elif place.report.lenient:
                    place.report.ignored.append(place[name].path)
                else:
                    hint = suggestion(name, fields) or f"; known here: {_listed(fields)}"
                    raise place[name].refuse(f"unknown field{hint}")
            except RefusedError:
                refused = True
        for name in required:
            if name not in place.tree:
                place[name].miss("this field is required")
                refused = True
        if refused:
            raise RefusedError
        return build(**values)

    return read


def plain(fields: Mapping[str, Reader[Any]], required: Iterable[str] = ()) -> Reader[Fields]:
    """Read a mapping with known fields, as `record` does, that has no class of its own."""
    return record(dict, fields, required)


def mapping_of(key: Reader[str], value: Reader[T]) -> Reader[dict[str, T]]:
    """Read a mapping with free keys, at least one."""

    def read(place: Place) -> dict[str, T]:
        if not isinstance(place.tree, dict) or not place.tree:
            raise place.refuse("expected a mapping with at least one entry")
        values: dict[str, T] = {}
        for name in place.tree:
            try:
                key(Place(name, place[name].path, place.report))
                values[name] = place[name].read(value)
            except RefusedError:
                continue
        if len(values) < len(place.tree):
            raise RefusedError
        return values

    return read


def list_of(
    item: Reader[T], *, distinct: Callable[[Place], Place] = lambda place: place
) -> Reader[tuple[T, ...]]:
    """Read a list, no two items of which have the same text at `distinct`."""

    def read(place: Place) -> tuple[T, ...]:
        if not isinstance(place.tree, list):
            raise place.refuse("expected a list, such as [a, b]")
        values: list[T] = []
        seen: set[str] = set()
        for child in place:
            try:
                name = distinct(child)
                if isinstance(name.tree, str):
                    if name.tree in seen:
                        raise name.refuse("this is listed twice")
                    seen.add(name.tree)
                values.append(child.read(item))
            except RefusedError:
                continue
        if len(values) < len(place.tree):
            raise RefusedError
        return tuple(values)

    return read


def one_of(choices: Mapping[str, Reader[T]]) -> Reader[T]:
    """Read `{choice: parameters}`, or the bare word that is short for `{choice: {}}`."""
    rule = f"expected one of {_listed(choices)}"

    def read(place: Place) -> T:
        match place.tree:
            case str() as choice:
                parameters = Place({}, child_path(place.path, choice), place.report)
            case dict() as choice_of if len(choice_of) == 1:
                choice = next(iter(choice_of))
                parameters = place[choice]
            case _:
                raise place.refuse(rule)
        if choice not in choices:
            hint = suggestion(choice, choices)
            raise Place(choice, place.path, place.report).refuse(rule + hint)
        return parameters.read(choices[choice])

    return read


def checked(reader: Reader[T], *rules: Callable[[Place, T], object]) -> Reader[T]:
    """Read, then hold what was read to rules over several of its fields."""

    def read(place: Place) -> T:
        value = reader(place)
        for rule in rules:
            rule(place, value)
        return value

    return read


# Text.


def text(pattern: str, rule: str) -> Reader[str]:
    """Read text that matches `pattern` from its first character to its last."""
    compiled = re.compile(pattern)

    def read(place: Place) -> str:
        if not isinstance(place.tree, str) or not compiled.fullmatch(place.tree):
            raise place.refuse(rule)
        return place.tree

    return read


def word(meanings: Mapping[str, T]) -> Reader[T]:
    """Read one of a few words."""

    def read(place: Place) -> T:
        if not isinstance(place.tree, str) or place.tree not in meanings:
            near = suggestion(place.tree, meanings) if isinstance(place.tree, str) else ""
            raise place.refuse(f"expected one of {_listed(meanings)}{near}")
        return meanings[place.tree]

    return read


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
