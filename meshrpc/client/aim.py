"""An aim: where one call may go, the same for all of its attempts.

What the call itself says (`meshrpc.call_options`) wins over what its route says. A route's split is
drawn when the service's instances are known, and once more only for want of instances; a policy
that comes later changes nothing for a call that has an aim.
"""

from __future__ import annotations

from typing import Any

from meshrpc.client.call_options import CallOptions
from meshrpc.policy.hash_key import read_key
from meshrpc.policy.split import Split
from meshrpc.policy.subset import Subset
from meshrpc.policy.table import MethodPolicy, PolicyTable
from meshrpc.wire import Metadata


class Aim:
    """Where a call may go.

    `subset`: to its instances alone; None: to any. `split`: what the subset is drawn from. `hash_key`:
    what calls that belong together have in common.
    """

    __slots__ = ("hash_key", "split", "subset")

    def __init__(
        self,
        subset: Subset | None = None,
        hash_key: str | None = None,
        split: Split | None = None,
    ) -> None:
        self.subset = subset
        self.hash_key = hash_key
        self.split = split

    def __repr__(self) -> str:
        return f"<Aim subset={self.subset} hash_key={self.hash_key!r} split={self.split}>"


ANYWHERE = Aim()
"""To any instance, as most calls go."""


def take_aim(
    options: CallOptions,
    policy: MethodPolicy,
    table: PolicyTable,
    request: Any,
    metadata: Metadata,
) -> Aim:
    """Return where a call with this request and metadata of its caller's may go."""
    key = options.hash_key
    if key is None and policy.hash_key is not None:
        key = read_key(policy.hash_key, request, metadata)
    if options.subset is not None:
        return Aim(table.subset(options.subset), key)
    if key is None and policy.split is None:
        return ANYWHERE
    return Aim(None, key, policy.split)
