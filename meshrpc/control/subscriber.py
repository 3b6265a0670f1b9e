"""One subscriber: what it says it is, wants, was sent, and has taken or refused.

Pure, and without a sense of time or order: `pushes` decides when something is sent.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Kind(enum.StrEnum):
    """What is pushed."""

    POLICY = "policy"
    INSTANCES = "instances"


class Resource(NamedTuple):
    """One policy document or instance set."""

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} of {self.name}"


@dataclass(frozen=True, slots=True)
class Process:
    """What a subscriber says it is."""

    namespace: str
    service: str
    instance: str
    version: str | None = None
    pid: int | None = None
    library: str = ""
    accepts_differences: bool = False
    """Whether it takes instance sets that say only what differs."""


@dataclass(frozen=True, slots=True)
class Push:
    """One push: the resources to send, by version; `revision` is the policy store's."""

    nonce: str
    revision: int
    resources: Mapping[Resource, int]
    bases: Mapping[Resource, int]
    """The versions that the subscriber has of some of them: what differs from these will do."""


@dataclass(slots=True)
class Held:
    """What one subscriber has of one resource."""

    sent: int | None = None
    acknowledged: int | None = None
    base: int = 0
    """The version that it is known to have now; 0: it has to be sent the whole."""
    refused: str | None = None
    ignored: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class Subscriber:
    """One stream. Its fields belong to `Pushes`."""

    process: Process
    wants: dict[Resource, Held] = field(default_factory=dict)
    has_said: bool = False
    """Whether it has said what it wants, be it nothing."""
    unanswered: Push | None = None
    heard: float = 0.0
    revision: int = 0
    pushes: int = 0

    def __repr__(self) -> str:
        name = f"{self.process.service}/{self.process.instance}"
        waits = f" unanswered={self.unanswered.nonce}" if self.unanswered else ""
        return f"<Subscriber {name} resources={len(self.wants)} revision={self.revision}{waits}>"

    def send(self, resources: Mapping[Resource, int], revision: int) -> Push:
        """Return the push that brings these to the versions given, and count it as sent.

        A difference starts from what was acknowledged, or held when it was wanted, not from what
        was sent: nothing is lost with a push that is refused.
        """
        bases: dict[Resource, int] = {}
        for resource, version in resources.items():
            held = self.wants[resource]
            held.sent = version
            if held.base and self.process.accepts_differences:
                bases[resource] = held.base
        self.pushes += 1
        self.unanswered = Push(str(self.pushes), revision, resources, bases)
        return self.unanswered

    def answered(
        self, push: Push, refused: Mapping[tuple[Kind, str], str], ignored: Iterable[str]
    ) -> list[Resource]:
        """Note the answer to the unanswered push; return what was taken of it."""
        self.unanswered = None
        paths: dict[str, list[str]] = {}
        for line in ignored:
            service, _, path = line.partition(": ")
            paths.setdefault(service, []).append(path)
        taken = []
        for resource, version in push.resources.items():
            held = self.wants.get(resource)
            if held is None or held.sent != version:
                continue  # no longer wanted, or wanted anew meanwhile
            held.refused = refused.get((resource.kind, resource.name))
            if held.refused is None:
                held.acknowledged = version
                taken.append(resource)
                is_policy = resource.kind is Kind.POLICY
                held.ignored = tuple(paths.get(resource.name, ())) if is_policy else ()
                held.base = 0 if is_policy else version
            elif resource in push.bases:
                # What was wrong may be the difference; the same again, but whole.
                held.base, held.sent = 0, None
        if not any(
            held.refused is not None
            for resource, held in self.wants.items()
            if resource.kind is Kind.POLICY
        ):
            self.revision = push.revision
        return taken
