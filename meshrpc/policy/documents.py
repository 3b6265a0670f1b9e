"""Policy documents: from text to the policy that this release carries out.

A document that breaks any rule is refused whole, with everything that is wrong in it. Blocks that
the language has and this release does not carry out yet are named in a warning, never silently
dropped. The text itself is `loading`'s business, the fields are `fields`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meshrpc.errors import PolicyError, Problem
from meshrpc.policy.fields import ACCEPTED, CARRIED_OUT, document
from meshrpc.policy.loading import canonical_text, read_trees
from meshrpc.policy.model import Policy
from meshrpc.policy.schema import Place, RefusedError, Report

NOT_CARRIED_OUT = "accepted, not carried out by this release"


@dataclass(frozen=True, slots=True)
class Document:
    """One policy document, loaded."""

    policy: Policy
    """What this release carries out of it."""
    canonical: str
    """All that its author wrote, as one JSON text; loading it gives the same policy."""
    warnings: tuple[str, ...] = ()
    """`payment: telemetry: accepted, not carried out by this release`, and the like."""
    ignored: tuple[str, ...] = ()
    """Paths of unknown fields that were skipped; only when loaded leniently."""


def load_documents(text: str, *, source: str = "policy") -> tuple[Document, ...]:
    """Load YAML (one document or several, separated by `---`) or JSON text.

    Args:
        text: the documents.
        source: what errors call the text, such as a file's path.

    Raises:
        PolicyError: with every problem of every document; then none is loaded.
    """
    return _load(text, source, lenient=False)


def load_document(text: str, *, source: str = "policy", lenient: bool = False) -> Document:
    """Load text that holds exactly one document.

    Args:
        text: YAML or JSON.
        source: what errors call the text.
        lenient: skip fields that only a newer release knows, and list them in `ignored`;
            everything else stays strict.

    Raises:
        PolicyError: with every problem found.
    """
    documents = _load(text, source, lenient=lenient)
    if len(documents) > 1:
        rule = f"expected one document, here are {len(documents)}"
        raise PolicyError((Problem("document", "", rule),), source=source)
    return documents[0]


def _load(text: str, source: str, *, lenient: bool) -> tuple[Document, ...]:
    trees, problems = read_trees(text)
    documents: list[Document] = []
    owners: dict[str, str] = {}
    for path, tree in trees:
        report = Report(lenient=lenient, problems=problems)
        place = Place(tree, path, report)
        service = place["service"]
        if isinstance(service.tree, str):
            if service.tree in owners:
                service.refuse(f"{owners[service.tree]} is for this service already")
            owners.setdefault(service.tree, path)
        try:
            fields = place.read(document)
        except RefusedError:
            continue
        documents.append(
            Document(
                _policy(fields),
                canonical_text(tree),
                tuple(_warnings(fields)),
                tuple(report.ignored),
            )
        )
    if problems:
        raise PolicyError(tuple(problems), source=source)
    return tuple(documents)


def _policy(fields: Mapping[str, Any]) -> Policy:
    said = {name: fields[name] for name in CARRIED_OUT if name in fields}
    return Policy(service=fields["service"], **said)


def _warnings(fields: Mapping[str, Any]) -> list[str]:
    blocks = [name for name in ACCEPTED if name in fields]
    return [f"{fields['service']}: {block}: {NOT_CARRIED_OUT}" for block in blocks]
