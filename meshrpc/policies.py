"""What this process knows of the mesh's policies, kept current by the control stream.

Documents arrive one by one; whoever follows a service is told its effective policy, the
service's own document over the mesh's over the defaults. Until control has said what holds, that
is what this machine last knew (`last_known`); where nothing is known there are the defaults.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Protocol

from meshrpc.errors import PolicyError
from meshrpc.last_known import LastKnown
from meshrpc.policy import load_document
from meshrpc.policy.model import EffectivePolicy, Policy, effective
from meshrpc.registry.registry import Watch

MESH_WIDE = "*"

OnPolicy = Callable[[EffectivePolicy], None]

_log = logging.getLogger("meshrpc.policies")


class PolicySource(Protocol):
    """Where documents come from: the control stream, as a rule."""

    def watch_policy(self, service: str, on_policy: Callable[[Policy | None], None]) -> Watch:
        """Call `on_policy` with the service's own document, None for none, and with each later one.

        A callback that raises `PolicyError` refuses the document. `service` may be `*`.
        """
        ...


class Policies:
    """The documents this process has, and who follows what they add up to."""

    def __init__(self, source: PolicySource | None, last_known: LastKnown | None = None) -> None:
        """`last_known` holds until `source` has spoken; None: nothing is remembered."""
        self._source = source
        self._last_known = last_known
        self._documents: dict[str, Policy] = {}
        self._recalled: set[str] = set()
        """Whose document was looked for in what is remembered."""
        self._followers: dict[str, list[_Follower]] = {}
        self._watches: dict[str, Watch] = {}

    def effective(self, service: str) -> EffectivePolicy:
        """Return what holds for `service`, as far as this process knows."""
        self._recall(MESH_WIDE)
        self._recall(service)
        return effective(service, self._documents)

    def follow(self, service: str, on_policy: OnPolicy) -> Watch:
        """Call `on_policy` with the effective policy of `service`, now and after each change.

        A callback that raises `PolicyError` refuses the document that led to it.
        """
        follower = _Follower(self, service, on_policy)
        on_policy(self.effective(service))
        self._followers.setdefault(service, []).append(follower)
        for name in (MESH_WIDE, service):
            if self._source is not None and name not in self._watches:
                self._watches[name] = self._source.watch_policy(
                    name, partial(self._on_document, name)
                )
        return follower

    def _recall(self, name: str) -> None:
        """Take what this machine last knew, once; control's word replaces it."""
        if self._last_known is None or name in self._recalled:
            return
        self._recalled.add(name)
        remembered = self._last_known.policy(name)
        if remembered is None:
            return
        whose = "the mesh" if name == MESH_WIDE else name
        try:
            policy = load_document(remembered.value, source="it", lenient=True).policy
        except PolicyError as error:
            _log.warning("the policy of %s as last known is passed over: %s", whose, error)
            return
        _log.info(
            "the policy of %s is that of %s until control says otherwise", whose, remembered.ago
        )
        self._documents[name] = policy

    def _on_document(self, name: str, document: Policy | None) -> None:
        before = self._documents.get(name)
        self._replace(name, document)
        try:
            self._tell(name)
        except Exception:
            # Refused: everybody goes back to what held before.
            self._replace(name, before)
            self._tell(name)
            raise

    def _replace(self, name: str, document: Policy | None) -> None:
        if document is None:
            self._documents.pop(name, None)
        else:
            self._documents[name] = document

    def _tell(self, name: str) -> None:
        for service, followers in tuple(self._followers.items()):
            if name in (MESH_WIDE, service):
                policy = self.effective(service)
                for follower in tuple(followers):
                    if follower in followers:  # not closed by one that was told before it
                        follower.on_policy(policy)

    def forget(self, follower: _Follower) -> None:
        """Call a follower no more."""
        followers = self._followers.get(follower.service, [])
        if follower in followers:
            followers.remove(follower)
        if not followers and self._followers.pop(follower.service, None) is not None:
            if follower.service == MESH_WIDE:
                return  # everybody else's policy has that one in it
            self._documents.pop(follower.service, None)
            self._recalled.discard(follower.service)
            watch = self._watches.pop(follower.service, None)
            if watch is not None:
                watch.close()


class _Follower:
    """One callback on one service's effective policy."""

    __slots__ = ("_policies", "on_policy", "service")

    def __init__(self, policies: Policies, service: str, on_policy: OnPolicy) -> None:
        self._policies = policies
        self.service = service
        self.on_policy = on_policy

    def close(self) -> None:
        """Stop: the callback is not called again."""
        self._policies.forget(self)
