"""What this process watches, and what it makes of what control pushes of it.

Control is told all that is watched (`Interest`); each push is handed to the watches, resource by
resource, and answered with what was refused and why. On a new stream to the same control service it is
said which instance sets are still there, so that only what differs from them is sent.

It does not know how messages travel (`subscription`), nor doubts an instance set (`registry.doubt`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from meshrpc.errors import PolicyError
from meshrpc.policy import load_document
from meshrpc.policy.model import Policy
from meshrpc.registry.registry import Snapshot, Watch
from meshrpc.v1 import control_pb2, policy_pb2
from meshrpc.watched import DoesNotFit, Resource, ResourceWatch, WatchedInstances

MAX_REASON = 1000
"""Characters of a refusal's reason that travel."""

_log = logging.getLogger(__name__)

_POLICY = control_pb2.Refusal.KIND_POLICY
_INSTANCES = control_pb2.Refusal.KIND_INSTANCES

T = TypeVar("T")


class Interests:
    """All watches of one process.

    Args:
        on_change: called when control is to be told anew what is watched.
        why_silent: why control does not answer just now; None while it does.
        keep_policy: is given each document, as text, that all watches have taken; None: removed.
    """

    def __init__(
        self,
        on_change: Callable[[], None],
        why_silent: Callable[[], str | None],
        keep_policy: Callable[[str, str | None], None],
    ) -> None:
        self._on_change = on_change
        self._why_silent = why_silent
        self._keep_policy = keep_policy
        self._policies: dict[str, Resource[Policy | None]] = {}
        self._instances: dict[str, WatchedInstances] = {}
        self._epoch = ""
        """In which the versions of the instance sets count; empty: control said none."""
        self._is_first = True
        self._said: set[Resource[Any]] = set()
        """What control believes to be watched on the stream that stands."""

    def __len__(self) -> int:
        return len(self._policies) + len(self._instances)

    def __repr__(self) -> str:
        return f"<Interests policies={len(self._policies)} instances={len(self._instances)}>"

    def watch_policy(self, service: str, on_policy: Callable[[Policy | None], None]) -> Watch:
        """Call `on_policy` with the service's document, and with each later one; None: none."""
        return self._watch(self._policies, service, Resource(), on_policy)

    def watch_instances(self, service: str, on_snapshot: Callable[[Snapshot], None]) -> Watch:
        """Call `on_snapshot` with the service's instances, and with each later set."""
        return self._watch(self._instances, service, WatchedInstances(service), on_snapshot)

    def _watch(
        self, resources: dict[str, Any], name: str, new: Resource[T], listener: Callable[[T], None]
    ) -> Watch:
        resource: Resource[T] = resources.setdefault(name, new)
        if not resource.listeners:
            self._on_change()

        def on_close() -> None:
            if not (resource.is_known or resource in self._said):
                # Control never heard of it; while it is away nothing is gathered.
                del resources[name]
            self._on_change()

        watch = ResourceWatch(resource, listener, on_close, self._why_silent)
        resource.listeners.append(watch)
        try:
            resource.catch_up(watch)
        except Exception:  # noqa: BLE001 - whatever a watch raises is its own
            # There is no push to refuse; later ones come all the same.
            _log.exception("a watch of %s does not take what is known", name)
        return watch

    def stream_ended(self) -> None:
        """Note that nobody believes to know what is watched."""
        self._is_first = True
        self._said.clear()

    def say(self) -> control_pb2.SubscribeRequest:
        """Return what control is to be told now, and count it as told."""
        # Forgotten only now: until control has been told otherwise it believes that we have
        # these, and would not send them again to a watch made in between.
        for resources in (self._policies, self._instances):
            for name in [name for name, one in resources.items() if not one.listeners]:
                del resources[name]
        interest = control_pb2.Interest(
            policies=sorted(self._policies), instances=sorted(self._instances)
        )
        if self._is_first and self._epoch:
            interest.epoch = self._epoch
            for name, resource in self._instances.items():
                if resource.version:
                    interest.held[name] = resource.version
        self._is_first = False
        self._said = {*self._policies.values(), *self._instances.values()}
        return control_pb2.SubscribeRequest(interest=interest)

    def take(self, push: control_pb2.Push) -> control_pb2.Acknowledgement | None:
        """Hand each resource to its watches; one that is refused holds back no other.

        Returns what the push is answered with; None: it asks for no answer.
        """
        self._count_in(push.epoch)
        if not push.nonce:
            return None
        answer = control_pb2.Acknowledgement(nonce=push.nonce)
        for document in push.policies:
            with _refusing(answer, _POLICY, document.service):
                self._take_policy(document, answer)
        for instance_set in push.instances:
            with _refusing(answer, _INSTANCES, instance_set.service):
                if (resource := self._instances.get(instance_set.service)) is not None:
                    resource.take(instance_set)
        return answer

    def _take_policy(
        self, document: policy_pb2.PolicyDocument, answer: control_pb2.Acknowledgement
    ) -> None:
        resource = self._policies.get(document.service)
        if resource is None:
            return  # the last watch closed while this was on its way
        if not document.document:
            resource.offer(None)
            self._keep_policy(document.service, None)
            return
        source = f"policy of {document.service!r}"
        loaded = load_document(document.document, source=source, lenient=True)
        resource.offer(loaded.policy)
        self._keep_policy(document.service, loaded.canonical)
        answer.ignored.extend(f"{document.service}: {path}" for path in loaded.ignored)

    def _count_in(self, epoch: str) -> None:
        """Forget the versions of another control service: sets are whole again, and then count."""
        if epoch != self._epoch:
            self._epoch = epoch
            for resource in self._instances.values():
                resource.version = 0


@contextlib.contextmanager
def _refusing(
    answer: control_pb2.Acknowledgement, kind: control_pb2.Refusal.Kind, name: str
) -> Iterator[None]:
    """Turn what goes wrong with one resource into a refusal of that resource."""
    try:
        yield
    except (PolicyError, DoesNotFit) as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - nor may one resource harm another
        _log.exception("what control sent for %s cannot be taken", name)
        reason = f"{type(error).__name__}: {error}"
    else:
        return
    answer.refused.add(kind=kind, name=name, reason=reason[:MAX_REASON])
