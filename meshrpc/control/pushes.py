"""Push order: what each subscriber has, wants and was sent, and when it is sent more.

The delivery of xDS (versions, nonces, ACK and NACK per resource) with Istio's debounce: the first
change of a resource goes out at once, what follows within `QUIET` is gathered, latest wins. A
push carries everything its subscriber lacks, and one at most is unanswered: whoever is slow
gets fewer, larger steps and holds up nobody. As in the incremental xDS, of a set that the
subscriber has acknowledged, or has still from an earlier stream, only what differs has to be sent.

Pure: `now` is an argument and every method says who may have something to send. It knows
resources by version only; their content is read when the push is made.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from meshrpc.control.subscriber import Held, Kind, Process, Push, Resource, Subscriber

QUIET = 0.1
"""Seconds without a change that end a gathering."""
GATHER_AT_MOST = 1.0
"""Seconds a change may wait for others."""
ANSWER_WITHIN = 30.0
"""Seconds until a subscriber that does not answer a push is given up."""
NAMED = 3
"""Resources named in a reason; the others are counted."""


class State(enum.StrEnum):
    """How far a subscriber is."""

    SYNCED = "synced"
    PENDING = "pending"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class ProcessState:
    """One row of the status."""

    process: Process
    revision: int
    """The newest policy revision the process is known to be at."""
    state: State
    reason: str
    age: float
    """Seconds since it last answered a push, or since it joined."""


@dataclass(slots=True)
class _Watched:
    """One resource that somebody wants."""

    version: int
    published: int
    """The newest version that is a reason to push; `version` may be ahead while gathering."""
    by: dict[Subscriber, Held] = field(default_factory=dict)
    quiet_from: float = float("-inf")
    gathering_since: float = 0.0


class Pushes:
    """All subscribers of one control service."""

    def __init__(self) -> None:
        self._subscribers: dict[Subscriber, None] = {}
        self._watched: dict[Resource, _Watched] = {}
        self._gathering: dict[Resource, float] = {}  # until when
        self._unanswered: dict[Subscriber, float] = {}  # until when, oldest first

    def __repr__(self) -> str:
        return (
            f"<Pushes subscribers={len(self._subscribers)} resources={len(self._watched)} "
            f"unanswered={len(self._unanswered)}>"
        )

    def join(self, process: Process, now: float) -> Subscriber:
        """Add a subscriber; it wants nothing yet."""
        subscriber = Subscriber(process=process, heard=now)
        self._subscribers[subscriber] = None
        return subscriber

    def leave(self, subscriber: Subscriber) -> None:
        """Forget a subscriber and all it wants."""
        self.want(subscriber, {})
        self._unanswered.pop(subscriber, None)
        self._subscribers.pop(subscriber, None)

    def want(
        self,
        subscriber: Subscriber,
        versions: Mapping[Resource, int],
        held: Mapping[Resource, int] | None = None,
    ) -> None:
        """Replace what the subscriber wants; `versions` are the current ones.

        `held` are those that it has of some of them from before. It is sent what differs from
        these all the same, be it nothing: its answer is how it is known to be there.
        """
        subscriber.has_said = True
        for resource in [one for one in subscriber.wants if one not in versions]:
            del subscriber.wants[resource]
            watched = self._watched[resource]
            del watched.by[subscriber]
            if not watched.by:
                del self._watched[resource]
                self._gathering.pop(resource, None)
        for resource, version in versions.items():
            if resource in subscriber.wants:
                continue
            if resource not in self._watched:
                self._watched[resource] = _Watched(version, version)
            watched = self._watched[resource]
            base = held.get(resource, 0) if held else 0
            known = Held(base=base if base <= version else 0)
            subscriber.wants[resource] = watched.by[subscriber] = known

    def is_wanted(self, resource: Resource) -> bool:
        """Whether anybody wants it."""
        return resource in self._watched

    def wanted(self, kind: Kind) -> tuple[Resource, ...]:
        """Return what somebody wants of one kind."""
        return tuple(resource for resource in self._watched if resource.kind is kind)

    def find(self, namespace: str, instance: str) -> Subscriber | None:
        """Return the subscriber that says it is this instance; of several, who joined last."""
        for subscriber in reversed(self._subscribers):
            process = subscriber.process
            if (process.namespace, process.instance) == (namespace, instance):
                return subscriber
        return None

    def changed(self, resource: Resource, version: int, now: float) -> Collection[Subscriber]:
        """Note a new version; return who may have something to send now."""
        watched = self._watched.get(resource)
        if watched is None or version <= watched.version:
            return ()
        watched.version = version
        if resource in self._gathering or now < watched.quiet_from:
            if resource not in self._gathering:
                watched.gathering_since = now
            self._gathering[resource] = min(now + QUIET, watched.gathering_since + GATHER_AT_MOST)
            return ()
        return self._publish(watched, now)

    def tick(self, now: float) -> Collection[Subscriber]:
        """End the gatherings that are due; return who may have something to send now."""
        ready: dict[Subscriber, None] = {}
        for resource in [one for one, until in self._gathering.items() if until <= now]:
            del self._gathering[resource]
            ready.update(dict.fromkeys(self._publish(self._watched[resource], now)))
        return ready

    def overdue(self, now: float) -> tuple[Subscriber, ...]:
        """Return who has left a push unanswered for too long; each is named once."""
        late: list[Subscriber] = []
        for subscriber, until in self._unanswered.items():
            if until > now:
                break
            late.append(subscriber)
        for subscriber in late:
            del self._unanswered[subscriber]
        return tuple(late)

    def next_due(self) -> float | None:
        """Return when `tick` or `overdue` will next have something; None: nothing waits."""
        oldest = next(iter(self._unanswered.values()), None)
        gathered = min(self._gathering.values(), default=None)
        return min((due for due in (oldest, gathered) if due is not None), default=None)

    def next_push(self, subscriber: Subscriber, revision: int, now: float) -> Push | None:
        """Return what to send the subscriber now, and count it as sent; None: nothing.

        `revision` is the policy store's. A push that is due takes along what is still being
        gathered: whoever has answered it is then known to be at `revision`.
        """
        if subscriber.unanswered is not None or subscriber not in self._subscribers:
            return None
        lacking: dict[Resource, int] = {}
        is_due = False
        for resource, held in subscriber.wants.items():
            watched = self._watched[resource]
            if held.sent is None or held.sent < watched.version:
                lacking[resource] = watched.version
                is_due = is_due or held.sent is None or held.sent < watched.published
        if not is_due:
            return None
        self._unanswered[subscriber] = now + ANSWER_WITHIN
        return subscriber.send(lacking, revision)

    def answered(
        self,
        subscriber: Subscriber,
        nonce: str,
        now: float,
        *,
        refused: Mapping[tuple[Kind, str], str] | None = None,
        ignored: Iterable[str] = (),
    ) -> Collection[Resource]:
        """Note an answer: `refused` gives reasons by kind and name, `ignored` `service: path`s.

        Returns the resources that are acknowledged at a newer version now. An answer to
        anything but the push in flight is nothing. A difference that was refused is due again
        at once, whole; anything else that was refused, with its next change.
        """
        push = subscriber.unanswered
        if push is None or push.nonce != nonce:
            return ()
        subscriber.heard = now
        self._unanswered.pop(subscriber, None)
        return subscriber.answered(push, refused or {}, ignored)

    def acknowledged(self, namespace: str, service: str, version: int) -> bool:
        """Whether all who watch the service's instances have taken `version` or a newer one."""
        watched = self._watched.get(Resource(Kind.INSTANCES, namespace, service))
        return watched is None or all(
            held.acknowledged is not None and held.acknowledged >= version
            for held in watched.by.values()
        )

    def status(self, namespace: str, revision: int, now: float) -> tuple[ProcessState, ...]:
        """Return how far each subscriber of the namespace is; `revision` is the store's."""
        states = [
            self._state(subscriber, revision, now)
            for subscriber in self._subscribers
            if subscriber.process.namespace == namespace
        ]
        states.sort(key=lambda state: (state.process.service, state.process.instance))
        return tuple(states)

    def _state(self, subscriber: Subscriber, revision: int, now: float) -> ProcessState:
        refused = []
        lacking = []
        ignored = []
        for resource, held in subscriber.wants.items():
            if held.refused is not None:
                refused.append(f"{resource}: {held.refused}")
            elif held.acknowledged != self._watched[resource].version:
                lacking.append(str(resource))
            ignored += [f"{resource.name}: {path}" for path in held.ignored]
        at = subscriber.revision
        if not subscriber.has_said:
            state, reason = State.PENDING, "has not said what it watches"
        elif refused:
            state, reason = State.REFUSED, "; ".join(refused)
        elif lacking:
            what = "has not answered" if subscriber.unanswered else "is not sent yet"
            state, reason = State.PENDING, f"{what}: {_some(lacking)}"
        else:
            at = revision
            state, reason = State.SYNCED, f"ignores {_some(ignored)}" if ignored else ""
        return ProcessState(
            process=subscriber.process,
            revision=at,
            state=state,
            reason=reason,
            age=now - subscriber.heard,
        )

    def _publish(self, watched: _Watched, now: float) -> Collection[Subscriber]:
        watched.published = watched.version
        watched.quiet_from = now + QUIET
        return tuple(watched.by)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"
