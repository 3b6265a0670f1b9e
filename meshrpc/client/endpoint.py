"""An endpoint: one instance as this client holds it.

It owns the grpc channel to the instance and everything learned about it: connectivity, latency,
calls pending. An endpoint lives as long as its instance is registered, across any number of
registry and policy updates, so what was learned is not lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ipaddress
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import grpc
import grpc.aio

from meshrpc import wire
from meshrpc.balancer.capacity import Capacity
from meshrpc.balancer.load import Load
from meshrpc.client import options
from meshrpc.client.method import Method
from meshrpc.load_report import LoadReport
from meshrpc.metadata import checked
from meshrpc.registry.instance import Instance, State
from meshrpc.resilience.health import Admission, Health
from meshrpc.resilience.outcome import Outcome
from meshrpc.resilience.outlier import OutlierDetector
from meshrpc.settings import parse_address

READY = grpc.ChannelConnectivity.READY
FAILING = grpc.ChannelConnectivity.TRANSIENT_FAILURE

_LOOK_EVERY = 1.0
"""Seconds between looks at a connection whose changes cannot be waited for."""

_log = logging.getLogger("meshrpc.client")


@dataclass(frozen=True, slots=True)
class Dialing:
    """How the channels to a service's endpoints are made: what `mesh.channel` was given."""

    caller: str
    options: options.ChannelOptions = ()
    compression: grpc.Compression | None = None
    credentials: grpc.ChannelCredentials | None = None
    interceptors: tuple[grpc.aio.ClientInterceptor, ...] = ()
    authority: str | None = None
    """Whom the servers answer for, as `host:port`, and whose certificate they must show under
    TLS; None, and it is the address of each."""


def grpc_target(address: str) -> str:
    """Return how grpc dials `host:port`: IP literals as they are, names through DNS."""
    host, port = parse_address(address)
    try:
        literal = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return f"dns:///{host}:{port}"
    return f"ipv{literal.version}:{host}:{port}"


class Keeper(Protocol):
    """The destination, as its endpoints need it."""

    outliers: OutlierDetector

    def on_state(self, endpoint: Endpoint, before: grpc.ChannelConnectivity) -> None:
        """Take note that an endpoint's connection changed, or may have."""
        ...

    def on_admission(self, endpoint: Endpoint) -> None:
        """Take note that an endpoint was ejected, or is back."""
        ...


class Endpoint:
    """One instance: its channel, and what calls to it have shown."""

    __slots__ = (
        "_channel",
        "_idle",
        "_is_distrusted",
        "_keeper",
        "_multicallables",
        "_report",
        "_under_way",
        "_watcher",
        "capacity",
        "closing",
        "grpc_metadata",
        "health",
        "instance",
        "load",
        "metadata",
        "reads_reports",
        "state",
        "warm_at",
        "was_unreachable",
    )

    def __init__(
        self,
        instance: Instance,
        dialing: Dialing,
        keeper: Keeper,
        *,
        decay: float,
    ) -> None:
        """`decay`: how long peaks of its latency are remembered."""
        self.instance = instance
        self.state = grpc.ChannelConnectivity.IDLE
        self.closing = False
        self.health = Health()
        self.load: Final = Load(decay)
        """What the calls to it have shown."""
        self.capacity: Final = Capacity()
        """What it reports of itself, while anybody wants to know."""
        self.reads_reports = False
        self.warm_at = 0.0
        """When it has its full share of the calls: the end of its slow start."""
        self.was_unreachable = False
        """Whether connecting has failed since it was last connected."""
        # Only an instance of ours can check that it is the one meant.
        ours = instance.is_ours
        self.metadata: wire.Metadata = ((wire.CALLER, dialing.caller),)
        if ours:
            self.metadata += ((wire.TARGET, instance.id),)
        checked(self.metadata)
        # For calls that add nothing: grpcio makes one of these for each call that brings a tuple,
        # which is a third of what the mesh costs a client.
        self.grpc_metadata = grpc.aio.Metadata(*self.metadata)
        self._report: tuple[bytes, LoadReport | None] = (b"", None)
        self._keeper = keeper
        self._multicallables: dict[tuple[str, str], Callable[..., Any]] = {}
        self._under_way: set[Any] = set()
        self._idle: asyncio.Event | None = None
        self._is_distrusted = False
        self._channel = _dial(instance.address, dialing, ours=ours)
        self._watcher: asyncio.Task[None] | None = asyncio.create_task(
            self._follow_state(), context=contextvars.Context()
        )

    def __repr__(self) -> str:
        return (
            f"<Endpoint {self.instance.id} {self.instance.address} {self.state.name} "
            f"pending={self.load.pending}>"
        )

    @property
    def id(self) -> str:
        """The instance's id."""
        return self.instance.id

    @property
    def weight(self) -> int:
        """The instance's weight."""
        return self.instance.weight

    @property
    def pending(self) -> int:
        """Attempts under way."""
        return self.load.pending

    @property
    def is_leaving(self) -> bool:
        """Whether its instance has said that it leaves."""
        return self.instance.state is State.DRAINING

    def holds(self, instance: Instance) -> bool:
        """Return whether this endpoint's connection is the one to make to `instance`."""
        return instance.address == self.instance.address and (
            instance.is_ours is self.instance.is_ours
        )

    def is_ready(self) -> bool:
        """Return whether a call started now would go out at once."""
        return not self.closing and self._channel.get_state() is READY

    def multicallable(self, kind: str, method: Method) -> Callable[..., Any]:
        """Return grpcio's multicallable of `kind` (`unary_unary`, ...) on this channel."""
        if method.intercepted:  # it has its stub's own way with messages
            return method.multicallable(self._channel, kind)
        key = (kind, method.path)
        multicallable = self._multicallables.get(key)
        if multicallable is None:
            multicallable = self._multicallables[key] = method.multicallable(self._channel, kind)
        return multicallable

    def start(self, inner: Any, now: float, *, timed: bool) -> None:
        """Count an attempt, grpc's call `inner`, as pending; exactly one `finish` follows.

        `timed`: its duration is a latency, as a stream's is not.
        """
        self.load.start(now, timed=timed)
        self._under_way.add(inner)

    def finish(
        self,
        inner: Any,
        outcome: Outcome,
        now: float,
        *,
        started: float,
        timed: bool,
        latency: float | None,
        generation: int,
    ) -> None:
        """Count an attempt as over and learn from it.

        `latency` is its duration in seconds; None where that says nothing. `generation` is that of
        the endpoint's health when the attempt began.
        """
        load = self.load
        load.finish(started, timed=timed)
        self._under_way.discard(inner)
        load.learn(outcome, latency, now)
        self._tell(outcome, now, generation)
        if self._idle is not None and not load.pending:
            self._idle.set()

    def reported(self, data: bytes, now: float) -> None:
        """Take in a load report, as it came."""
        known, report = self._report
        if data != known:  # a server says the same for a while
            try:
                report = LoadReport.from_wire(data)
            except ValueError as error:
                report = None
                _log.debug("instance %s reports no load: %s", self.id, error)
            self._report = (data, report)
        if report is not None:
            self.capacity.report(report, now)

    def answered(self, now: float, generation: int) -> None:
        """Take note of the first message of a stream: as a probe, it need not end for that."""
        if self.health.admission is Admission.PROBING:
            self._tell(Outcome.SUCCESS, now, generation)

    def spare(self, now: float) -> None:
        """Take note that it was picked and then not asked: a probe is still due, if one was."""
        self._tell(Outcome.ABANDONED, now, self.health.generation)

    def _tell(self, outcome: Outcome, now: float, generation: int) -> None:
        if self._keeper.outliers.record(self.health, generation, outcome, now):
            self._keeper.on_admission(self)

    def distrust(self, why: str) -> None:
        """Log, once until it is connected again, that the two sides do not trust each other."""
        if not self._is_distrusted:
            self._is_distrusted = True
            _log.warning("instance %s of %s: %s", self.id, self.instance.service, why)

    def warm_up(self, now: float, window: float) -> None:
        """Begin a slow start; what was learned of it before is forgotten."""
        self.warm_at = now + window
        self.load.forget()
        self.capacity.forget()

    async def close(self, grace: float | None) -> None:
        """Give calls under way `grace` seconds to end, None: all they need; close the channel."""
        if self._watcher is not None:
            self._watcher.cancel()
        if self.load.pending and grace != 0:
            self._idle = asyncio.Event()
            try:
                async with asyncio.timeout(grace):
                    await self._idle.wait()
            except TimeoutError:
                pass
        self.closing = True
        # A channel of grpcio before 1.83 overlooks calls that nobody waits for when it closes.
        for inner in tuple(self._under_way):
            with contextlib.suppress(Exception):  # an interceptor answered by itself: no call
                inner.cancel()
        try:
            await self._channel.close()
        except Exception as error:  # noqa: BLE001 - the same; the channel closes when collected
            _log.debug("closing the connection to %s: %r", self.instance.id, error)
        if self._watcher is not None:
            await asyncio.wait([self._watcher])
            # Its traceback knows this endpoint: neither would go without the garbage collector.
            self._watcher = None

    async def _follow_state(self) -> None:
        # Asking for the state with try_to_connect also wakes a channel that went idle, after a
        # GOAWAY or half an hour without calls: an endpoint is always connected or connecting.
        while True:
            try:
                before, self.state = self.state, self._channel.get_state(try_to_connect=True)
                self.was_unreachable |= self.state is FAILING
                self._is_distrusted &= self.state is not READY
                # Told also when it is the same again: somebody may have found the connection
                # broken meanwhile, and wait to hear that it is back.
                self._keeper.on_state(self, before)
                await self._channel.wait_for_state_change(self.state)
            except Exception:  # noqa: BLE001 - logged, whatever it is
                # With nobody watching, an endpoint once broken would never be picked again.
                _log.exception("watching the connection to %s failed", self.instance.id)
                await asyncio.sleep(_LOOK_EVERY)


def _dial(address: str, dialing: Dialing, *, ours: bool) -> grpc.aio.Channel:
    supervision = options.MESH if ours else options.FOREIGN
    reconnect = options.MESH_RECONNECT if ours else options.FOREIGN_RECONNECT
    named = () if dialing.authority is None else (("grpc.default_authority", dialing.authority),)
    always = (*options.ALWAYS, *reconnect, *named)
    channel_options = options.merge(dialing.options, supervision, always)
    interceptors: Sequence[grpc.aio.ClientInterceptor] = dialing.interceptors
    if dialing.credentials is None:
        return grpc.aio.insecure_channel(
            grpc_target(address),
            options=channel_options,
            compression=dialing.compression,
            interceptors=interceptors,
        )
    return grpc.aio.secure_channel(
        grpc_target(address),
        dialing.credentials,
        options=channel_options,
        compression=dialing.compression,
        interceptors=interceptors,
    )
