"""Whether instances that were registered by hand answer: nobody else renews their records.

Each is asked by gRPC's own health protocol, about the server as a whole, every `EVERY` seconds.
Like Consul's checks, `FAILURES` in a row make it not serving and one success serving again. A server
that does not know the protocol, or refuses to talk about it, answers all the same, and so serves.

Every check has a connection of its own, in plain text: a server that speaks only TLS fails.
`Check` decides, without I/O; `HealthChecks` asks.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from meshrpc.clock import Clock
from meshrpc.registry.instance import Health, Instance
from meshrpc.registry.leases import LeaseTable

EVERY: Final = 10.0
"""Seconds from one check of an instance to the next; the first comes at some time within."""
WITHIN: Final = 5.0
"""Seconds an instance has to answer."""
FAILURES: Final = 3
"""Checks in a row that make an instance not serving."""
AT_ONCE: Final = 50
"""Checks under way at most. Where a thousand instances are silent, each is asked less often."""
LOOK_EVERY: Final = 1.0
"""Seconds until a new record is noticed, at most."""

_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),
    # Of its own: a connection that others share may be waiting to be tried again.
    ("grpc.use_local_subchannel_pool", 1),
)
_REASON: Final = 200
"""Characters that are kept of what a server says."""

_ANSWERS: Final = (
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
"""Statuses of a server that is there: it has no such service, or will not serve this caller."""

_log = logging.getLogger(__name__)

_Key = tuple[str, str, str]


@dataclass(slots=True)
class Check:
    """What is known of one address."""

    address: str
    due: float
    failures: int = 0
    """In a row."""
    reason: str = ""
    """Of the last of them."""
    is_under_way: bool = False

    def done(self, reason: str, now: float, rng: random.Random) -> Health | None:
        """Note how a check ended, `reason` empty: well. Return what it tells, if anything."""
        self.is_under_way = False
        self.due = now + EVERY * rng.uniform(0.9, 1.1)
        self.reason = reason
        self.failures = self.failures + 1 if reason else 0
        if not reason:
            return Health.SERVING
        return Health.NOT_SERVING if self.failures >= FAILURES else None


class HealthChecks:
    """Checks the permanent records of a lease table.

    Args:
        leases: where they are; they are looked up, not changed.
        on_found: called with a record and what its address was found to be, after each check that
            tells anything.
        clock: monotonic time.
        rng: spreads the checks.
    """

    def __init__(
        self,
        leases: LeaseTable,
        on_found: Callable[[Instance, Health], None],
        *,
        clock: Clock,
        rng: random.Random | None = None,
    ) -> None:
        self._leases = leases
        self._on_found = on_found
        self._clock = clock
        self._rng = rng or random.Random()
        self._checks: dict[_Key, Check] = {}
        self._under_way = 0

    def __repr__(self) -> str:
        return f"<HealthChecks instances={len(self._checks)} under_way={self._under_way}>"

    @property
    def under_way(self) -> int:
        """How many instances are being asked just now."""
        return self._under_way

    def reason(self, instance: Instance) -> str:
        """Say why the instance's last check failed; empty: it did not."""
        check = self._checks.get(_key(instance))
        return "" if check is None else check.reason

    async def run(self) -> None:
        """Check what is due, until cancelled."""
        async with asyncio.TaskGroup() as asking:
            while True:
                now = self._clock.now()
                for instance, check in self._due(now):
                    check.is_under_way = True
                    self._under_way += 1
                    asking.create_task(
                        self._check(instance, check),
                        name=f"meshrpc check of {instance.id}",
                        context=contextvars.Context(),
                    )
                waiting = (one.due for one in self._checks.values() if not one.is_under_way)
                wait = min(waiting, default=now + LOOK_EVERY) - now
                await self._clock.sleep(min(max(wait, LOOK_EVERY / 100), LOOK_EVERY))

    def _due(self, now: float) -> list[tuple[Instance, Check]]:
        """Return what to check now, longest due first; follow what was registered meanwhile."""
        before, self._checks = self._checks, {}
        due = []
        for instance in self._leases.permanent():
            check = before.get(_key(instance))
            if check is None or check.address != instance.address:
                check = Check(instance.address, now + EVERY * self._rng.random())
            self._checks[_key(instance)] = check
            if check.due <= now and not check.is_under_way:
                due.append((instance, check))
        due.sort(key=lambda each: each[1].due)
        return due[: max(AT_ONCE - self._under_way, 0)]

    async def _check(self, instance: Instance, check: Check) -> None:
        try:
            async with self._clock.timeout(WITHIN):
                reason = await ask(instance.address)
        except TimeoutError:
            reason = f"it did not answer within {WITHIN:.0f} s"
        except Exception as error:  # noqa: BLE001 - whatever grpcio makes of an address
            reason = f"it cannot be asked: {type(error).__name__}: {error}"[:_REASON]
        finally:
            self._under_way -= 1
        found = check.done(reason, self._clock.now(), self._rng)
        current = self._leases.get(*_key(instance))
        if found is None or current is None or not current.permanent:
            return
        if current.address == check.address:
            if found is Health.NOT_SERVING and current.health is not found:
                _log.warning("%s of %s does not serve: %s", current.id, current.service, reason)
            self._on_found(current, found)


async def ask(address: str) -> str:
    """Ask the server at `address` whether it serves; return why not, empty when it does."""
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest()
            )
        except grpc.aio.AioRpcError as error:
            if error.code() in _ANSWERS:
                return ""
            return f"{error.code().name}: {error.details() or 'no reason'}"[:_REASON]
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return ""
    return f"it says {health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)}"


def _key(instance: Instance) -> _Key:
    return instance.namespace, instance.service, instance.id
