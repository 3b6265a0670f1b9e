"""What is pushed: policies from the store and instance sets from the leases, with their versions.

`pushes` knows resources by version only; here is what stands behind them when a push is made, and
how that travels.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Final

from meshrpc.control.instance_sets import InstanceSets
from meshrpc.control.parts import key
from meshrpc.control.quota_member import Grant
from meshrpc.control.store import PolicyStore
from meshrpc.control.subscriber import Kind, Push, Resource
from meshrpc.registry.leases import LeaseTable
from meshrpc.v1 import control_pb2

_INSTANCES: Final = control_pb2.Push.DESCRIPTOR.fields_by_name["instances"].number


class Content:
    """The newest of every resource.

    Args:
        store: where policies are read.
        leases: where instances are read.
    """

    def __init__(self, store: PolicyStore, leases: LeaseTable) -> None:
        self.epoch = secrets.token_hex(8)
        """In which versions of instance sets count: the leases begin to count anew with each."""
        self._store = store
        self._leases = leases
        self._instance_sets = InstanceSets(leases)

    def __repr__(self) -> str:
        return f"<Content epoch={self.epoch} revision={self.revision} {self._instance_sets!r}>"

    @property
    def revision(self) -> int:
        """The policy store's."""
        return self._store.revision

    def version(self, resource: Resource) -> int:
        """Return a resource's newest version; 0: there is nothing of it."""
        source = self._store if resource.kind is Kind.POLICY else self._leases
        return source.version(resource.namespace, resource.name)

    def release(self, resource: Resource, now: float) -> None:
        """Note that nobody wants the resource any more."""
        if resource.kind is Kind.INSTANCES:
            self._instance_sets.release(resource.namespace, resource.name, now)

    def forget(self, now: float) -> None:
        """Keep nothing for those that nobody has wanted for long."""
        self._instance_sets.forget(now)

    def next_due(self) -> float | None:
        """Return when `forget` will next have something; None: nothing waits."""
        return self._instance_sets.next_due()

    def serialized(self, push: Push) -> bytes:
        """Return the push as it travels."""
        head = control_pb2.Push(nonce=push.nonce, revision=push.revision, epoch=self.epoch)
        parts: list[bytes] = []
        for resource in push.resources:
            namespace, name = resource.namespace, resource.name
            if resource.kind is Kind.POLICY:
                stored = self._store.get(namespace, name)
                head.policies.add(
                    namespace=namespace,
                    service=name,
                    revision=self._store.version(namespace, name),
                    document="" if stored is None else stored.document,
                )
            else:
                newest = self._instance_sets.newest(namespace, name, push.bases.get(resource, 0))
                parts += (key(_INSTANCES, len(newest)), newest)
        return b"".join((head.SerializeToString(), *parts))

    def asking(self, questions: Iterable[control_pb2.Question]) -> bytes:
        """Return a push of questions as it travels: no nonce, there is nothing to acknowledge."""
        push = control_pb2.Push(revision=self.revision, epoch=self.epoch, questions=questions)
        return push.SerializeToString()

    def giving(self, grant: Grant) -> bytes:
        """Return a push of shares of rate limits as it travels: no nonce either."""
        push = control_pb2.Push(revision=self.revision, epoch=self.epoch)
        push.quota.number = grant.number
        for one in grant.shares:
            push.quota.shares.add(
                limit=one.limit, key=one.key, share=one.share or 0, forget=one.share is None
            )
        return push.SerializeToString()
