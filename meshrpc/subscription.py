"""The library's end of the control stream: policies and instances, pushed as they change.

One `Subscription` per process: the connections to control, and one stream. What the process watches,
and what it makes of a push, `interests` knows; what is still to be told, `outgoing`. When control is
away everything stays as last known, and the stream is made again for ever, with jittered exponential
backoff; nothing of that reaches a call.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import grpc

from meshrpc.absence import CONNECT_WITHIN, Absence, unreachable
from meshrpc.backoff import backoff
from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.fleet_limits import FleetLimits, ShareReports
from meshrpc.interests import Interests
from meshrpc.outgoing import Outgoing
from meshrpc.policy.model import Policy
from meshrpc.registry.registry import Snapshot, Watch
from meshrpc.v1 import control_pb2, control_pb2_grpc

KEEPALIVE_MS = 1000
"""A control service that is frozen or cut off is noticed after two of these. Both ends take
their options from here: a server answers pings that are too frequent for it by hanging up."""
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""gRPC's 4 MiB would be the end at some ten thousand instances of one service."""
CANCEL_AGAIN = 0.5
"""Seconds until a cancellation that nothing has come of is repeated."""
MAX_ANSWER_BYTES = 3 * 1024 * 1024
"""Control takes messages of 4 MiB: one that is larger would end the stream."""

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    # Not `keepalive_timeout_ms`: against a frozen peer only this one fires.
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # grpc's own reconnection must not be slower than the one below; a peer that accepts and
    # is silent must not hold it for the default of 20 s.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),
)

_log = logging.getLogger(__name__)


class Subscription:
    """What control pushes to this process. Open it with `async with`; it never raises into calls.

    Args:
        addresses: control services, `host:port` each, tried in turn.
        hello: what this process says it is.
        view: says what this process makes of a service's instances, when control asks; by default
            that it calls nobody.
        clock: for backoff and the rate of warnings.
        rng: for jitter.
        keep_policy: is given each document, as text, that all watches have taken; None: removed.
        limits: those of this process's rate limits that are one over the fleet; None: it has none.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        hello: control_pb2.Hello,
        *,
        view: Callable[[str], control_pb2.ViewResponse] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random,
        keep_policy: Callable[[str, str | None], None] | None = None,
        limits: FleetLimits | None = None,
    ) -> None:
        if not addresses:
            raise ValueError("a subscription needs the address of a control service")
        self._addresses = tuple(addresses)
        self._hello = control_pb2.Hello()
        self._hello.CopyFrom(hello)
        self._hello.accepts_differences = True
        self._view = view
        self._clock = clock
        self._rng = rng
        self._limits = limits
        self._interests = Interests(
            self._interest_changed, self.why_silent, keep_policy or (lambda *_: None)
        )
        self._current = 0
        self._failures = 0
        self._channels: tuple[grpc.aio.Channel, ...] = ()
        self._task: asyncio.Task[None] | None = None
        self._outgoing: Outgoing | None = None
        self._revision = 0
        self._absence = Absence(clock)

    async def __aenter__(self) -> Self:
        # A channel for each address, so that names and IP literals may stand side by side, grpc
        # resolves each, and the unary calls go where the stream is.
        self._channels = tuple(
            grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
            for address in self._addresses
        )
        self._task = asyncio.create_task(
            self._run(), name="meshrpc subscription", context=contextvars.Context()
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self._task is not None and not self._task.done():
            # Again, until it has heard: a call of grpcio's that fails as it is cancelled raises its
            # own error, and nothing of the cancellation is left.
            self._task.cancel()
            await asyncio.wait([self._task], timeout=CANCEL_AGAIN)
        self._task = None
        for channel in self._channels:
            await channel.close()

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel to the control service in use, for unary calls.

        Don't keep it: it changes when the stream moves to another address.
        """
        if not self._channels:
            raise RuntimeError("the subscription is not open: use `async with`")
        return self._channels[self._current]

    @property
    def address(self) -> str:
        """The address that `channel` leads to."""
        return self._addresses[self._current]

    @property
    def connected(self) -> bool:
        """Whether the stream stands."""
        return self._outgoing is not None

    @property
    def revision(self) -> int:
        """The policy store's revision as of the last push; 0 before the first."""
        return self._revision

    def __repr__(self) -> str:
        state = "connected" if self.connected else "away"
        return (
            f"<Subscription {self.address} {state} revision={self._revision} "
            f"resources={len(self._interests)}>"
        )

    unreachable = staticmethod(unreachable)

    def why_silent(self) -> str | None:
        """Return why control does not answer just now; None while the stream stands."""
        if self.connected:
            return None
        return self._absence.why or f"connecting to the control service at {self.address}"

    def watch_policy(self, service: str, on_policy: Callable[[Policy | None], None]) -> Watch:
        """Call `on_policy` with the service's own document, and with each later one.

        None: there is no document. A callback that raises `PolicyError` refuses the document:
        control hears why, and this process keeps what it had. What is already known is handed
        over before this returns. `service` may be `*`.
        """
        return self._interests.watch_policy(service, on_policy)

    def watch_instances(self, service: str, on_snapshot: Callable[[Snapshot], None]) -> Watch:
        """Call `on_snapshot` with the service's instances, and with each later set.

        What is already known is handed over before this returns.
        """
        return self._interests.watch_instances(service, on_snapshot)

    def _interest_changed(self) -> None:
        """Tell control soon: watches made one after the other travel as one message."""
        if self._outgoing is not None:
            self._outgoing.tell("interest", self._interests.say)

    async def _run(self) -> None:
        while True:
            try:
                await self._converse()
                self._absence.begin(self.address, ConnectionError("it ended the stream"))
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                self._absence.begin(self.address, error)
            except Exception as error:  # noqa: BLE001 - nothing may end the subscription
                _log.debug("the control stream failed", exc_info=True)
                self._absence.begin(self.address, error)
            rounds = self._failures // len(self._addresses) + 1
            self._failures += 1
            self._current = (self._current + 1) % len(self._addresses)
            await self._clock.sleep(backoff(rounds, self._rng))

    async def _converse(self) -> None:
        """Open the stream and take what control pushes, until it ends or fails."""
        outgoing = Outgoing()
        outgoing.tell("hello", partial(control_pb2.SubscribeRequest, hello=self._hello))
        stub = control_pb2_grpc.ControlStub(self.channel)
        call = stub.Subscribe()
        writing = asyncio.create_task(_write(outgoing, call))
        reports, reporting = None, None
        try:
            async with self._clock.timeout(CONNECT_WITHIN):
                await call.initial_metadata()
            if not call.done():  # of a call that failed, the metadata is merely empty
                self._outgoing = outgoing
                self._absence.end(self.address)
                self._interest_changed()
                if self._limits is not None:
                    reports = ShareReports(
                        self._limits,
                        lambda one: outgoing.tell(
                            "quota", partial(control_pb2.SubscribeRequest, quota=one)
                        ),
                        clock=self._clock,
                    )
                    reporting = asyncio.create_task(reports.run())
            async for push in call:
                # Not sooner: what merely begins streams, and breaks them, is no control service.
                self._failures = 0
                self._revision = push.revision
                if (taken := self._interests.take(push)) is not None:
                    # Control waits for the answer to its last push, and no other counts.
                    outgoing.tell(
                        "acknowledgement",
                        partial(control_pb2.SubscribeRequest, acknowledgement=taken),
                    )
                for question in push.questions:
                    outgoing.answer(question.id, partial(self._answer, question))
                if reports is not None and push.HasField("quota"):
                    reports.take(push.quota)
        finally:
            self._outgoing = None
            self._interests.stream_ended()
            call.cancel()
            tasks = [task for task in (writing, reporting) if task is not None]
            for task in tasks:
                task.cancel()
            # To the end of all, so that nothing of the stream outlives it.
            await asyncio.gather(*tasks, call.code(), return_exceptions=True)

    def _answer(self, question: control_pb2.Question) -> control_pb2.SubscribeRequest | None:
        view = control_pb2.ViewResponse()
        if self._view is not None:
            try:
                view = self._view(question.service)
            except Exception:  # noqa: BLE001 - a question harms nothing
                _log.exception("what is made of %s cannot be said", question.service)
                return None  # whoever asks waits in vain, and is told to look here
        answer = control_pb2.Answer(id=question.id, view=view)
        if (size := answer.ByteSize()) > MAX_ANSWER_BYTES:
            shown = len(view.instances) * MAX_ANSWER_BYTES // size
            answer.view.skipped.append(
                f"{len(view.instances) - shown} more instances do not fit into one answer"
            )
            del answer.view.instances[shown:]
        return control_pb2.SubscribeRequest(answer=answer)


async def _write(outgoing: Outgoing, call: Any) -> None:
    """Write what there is to tell; when the stream fails, its reader hears of it."""
    while True:
        await call.write(await outgoing.next())
