"""An endpoint: one instance as this client holds it.

It owns the grpc channel to the instance and everything learned about it: connectivity, latency,
calls pending. An endpoint lives as long as its instance is registered, across any number of
registry and policy updates, so what was learned is not lost.
"""

from __future__ import annotations

import asyncio
import contextvars
import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from meshrpc import wire
from meshrpc.balancer.peak_ewma import FAILURE_LATENCY, PeakEwma
from meshrpc.client import options
from meshrpc.metadata import checked
from meshrpc.registry.instance import Instance
from meshrpc.resilience.outcome import Outcome
from meshrpc.settings import parse_address

READY = grpc.ChannelConnectivity.READY
FAILING = grpc.ChannelConnectivity.TRANSIENT_FAILURE


@dataclass(frozen=True, slots=True)
class Dialing:
    """How the channels to a service's endpoints are made: what `mesh.channel` was given."""

    caller: str
    options: options.ChannelOptions = ()
    compression: grpc.Compression | None = None
    credentials: grpc.ChannelCredentials | None = None
    interceptors: tuple[grpc.aio.ClientInterceptor, ...] = ()


def grpc_target(address: str) -> str:
    """Return how grpc dials `host:port`: IP literals as they are, names through DNS."""
    host, port = parse_address(address)
    try:
        literal = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return f"dns:///{host}:{port}"
    return f"ipv{literal.version}:{host}:{port}"


class Endpoint:
    """One instance: its channel, and what calls to it have shown."""

    __slots__ = (
        "_channel",
        "_idle",
        "_latency",
        "_methods",
        "_on_state",
        "_under_way",
        "_watcher",
        "closing",
        "instance",
        "metadata",
        "state",
    )

    def __init__(
        self,
        instance: Instance,
        dialing: Dialing,
        *,
        decay: float,
        on_state: Callable[[], None],
    ) -> None:
        self.instance = instance
        self.state = grpc.ChannelConnectivity.IDLE
        self.closing = False
        # Only an instance that registered itself through meshrpc knows its id and can check
        # that it is the one meant; such records carry its pid.
        ours = instance.pid is not None
        self.metadata: wire.Metadata = ((wire.CALLER, dialing.caller),)
        if ours:
            self.metadata += ((wire.TARGET, instance.id),)
        checked(self.metadata)
        self._latency = PeakEwma(decay)
        self._on_state = on_state
        self._methods: dict[tuple[str, str], Callable[..., Any]] = {}
        self._under_way: set[Any] = set()
        self._idle: asyncio.Event | None = None
        self._channel = _dial(instance.address, dialing, options.MESH if ours else options.FOREIGN)
        self._watcher = asyncio.create_task(self._follow_state(), context=contextvars.Context())

    def __repr__(self) -> str:
        return (
            f"<Endpoint {self.instance.id} {self.instance.address} {self.state.name} "
            f"pending={self._latency.pending}>"
        )

    @property
    def pending(self) -> int:
        """Attempts under way."""
        return self._latency.pending

    def is_ready(self) -> bool:
        """Return whether a call started now would go out at once."""
        return not self.closing and self._channel.get_state() is READY

    def load(self, now: float) -> float:
        """Return latency x (pending + 1), as peak EWMA has it."""
        return self._latency.load(now)

    def set_decay(self, decay: float) -> None:
        """Change how long latency peaks are remembered."""
        self._latency.decay = decay

    def method(self, kind: str, path: str) -> Callable[..., Any]:
        """Return the multicallable of `kind` (`unary_unary`, ...) for raw bytes."""
        key = (kind, path)
        multicallable = self._methods.get(key)
        if multicallable is None:
            multicallable = self._methods[key] = getattr(self._channel, kind)(path)
        return multicallable

    def start(self, inner: Any) -> None:
        """Count an attempt, grpc's call `inner`, as pending; exactly one `finish` follows."""
        self._latency.pending += 1
        self._under_way.add(inner)

    def finish(self, inner: Any, outcome: Outcome, latency: float | None, now: float) -> None:
        """Count an attempt as over and learn from it.

        `latency` is its duration in seconds; None where that says nothing, as for a stream.
        """
        self._latency.pending -= 1
        self._under_way.discard(inner)
        if outcome is Outcome.FAILURE:
            self._latency.observe(max(FAILURE_LATENCY, latency or 0.0), now)
        elif latency is not None:
            learn = self._latency.observe if outcome is Outcome.SUCCESS else self._latency.hold
            learn(latency, now)
        if self._idle is not None and not self._latency.pending:
            self._idle.set()

    async def close(self, grace: float) -> None:
        """Give calls under way `grace` seconds to end, then close the channel."""
        self._watcher.cancel()
        if self.pending and grace > 0:
            self._idle = asyncio.Event()
            try:
                async with asyncio.timeout(grace):
                    await self._idle.wait()
            except TimeoutError:
                pass
        self.closing = True
        # A channel of grpcio before 1.83 overlooks calls that nobody waits for when it closes.
        for inner in tuple(self._under_way):
            inner.cancel()
        await self._channel.close()
        await asyncio.gather(self._watcher, return_exceptions=True)

    async def _follow_state(self) -> None:
        # Asking for the state with try_to_connect also wakes a channel that went idle, after a
        # GOAWAY or half an hour without calls: an endpoint is always connected or connecting.
        while True:
            state = self._channel.get_state(try_to_connect=True)
            if state is not self.state:
                self.state = state
                self._on_state()
            await self._channel.wait_for_state_change(state)


def _dial(address: str, dialing: Dialing, supervision: options.ChannelOptions) -> grpc.aio.Channel:
    channel_options = (*options.ALWAYS, *supervision, *dialing.options)
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
