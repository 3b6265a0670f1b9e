"""Load reports: each answer says in a trailer how busy this process is (gRFC A51).

Utilization is the event loop's busy share plus the CPU that `def` handlers take from it, or the
share of their threads that are taken, whichever is more. Rates count calls whose handlers ran:
refusing is cheap, and whoever refuses everything would otherwise look like the strongest server.
A report goes twice, under the mesh's own key and under the one that gRPC's balancers in other
languages read, which C-core hides from Python. Health checks and reflection neither count nor
are told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import grpc
import grpc.aio

from meshrpc.interceptors.compose import ServerInterceptor
from meshrpc.interceptors.method_handler import Handler, is_infrastructure
from meshrpc.interceptors.server_call import ServerCall
from meshrpc.load_report import LoadReport
from meshrpc.resilience.outcome import Outcome, classify
from meshrpc.telemetry.loop_load import AT_LEAST, LONG_WINDOW, WINDOW, LoopLoad, join
from meshrpc.telemetry.thread_load import ThreadLoad
from meshrpc.telemetry.totals import Totals
from meshrpc.wire import LOAD_REPORT, ORCA_LOAD_REPORT, Metadata

ENCODE_EVERY: Final = 0.1
"""Seconds for which all answers carry the same bytes."""


class LoadReportInterceptor(ServerInterceptor):
    """Measures this process's load and adds it to each answer, between `enable` and `disable`.

    Alone on a bare server it enables itself with the first call; it ends with its event loop.
    `threads`: those of plain `def` handlers, if there are any.
    """

    def __init__(self, threads: ThreadLoad | None = None) -> None:
        super().__init__()
        self.threads = threads
        self._loop_load: LoopLoad | None = None
        self._totals = Totals(LONG_WINDOW)
        self._calls = 0
        self._failed = 0
        self._trailers: Metadata = ()
        self._encode_at = 0.0

    def __repr__(self) -> str:
        return f"<LoadReportInterceptor {'disabled' if not self.is_enabled else self.report()}>"

    @property
    def is_enabled(self) -> bool:
        """Whether it measures and reports."""
        return self._loop_load is not None

    def enable(self) -> None:
        """Begin to measure the running event loop, and to report; again: does nothing."""
        if self._loop_load is None:
            self._totals = Totals(LONG_WINDOW)
            self._loop_load = join(self._on_beat)
            self._on_beat(self._loop_load.now())
            self._encode_at = 0.0

    def disable(self) -> None:
        """End it; again: does nothing. In the same event loop."""
        loop_load, self._loop_load = self._loop_load, None
        if loop_load is not None:
            loop_load.leave(self._on_beat)

    def report(self, seconds: float = WINDOW) -> LoadReport | None:
        """Return the load of the last `seconds`, 10 at most.

        None while it is disabled, and for its first half second.
        """
        if self._loop_load is None:
            return None
        usage = self._loop_load.over(seconds)
        now = self._loop_load.now()
        elapsed, grown = self._totals.growth(now, self._sample(), seconds)
        if usage is None or elapsed < AT_LEAST:
            return None
        calls, failed, waited, occupied, thread_cpu = grown
        taken = occupied / elapsed / self.threads.threads if self.threads else 0.0
        return LoadReport(
            utilization=max(min(1.0, usage.busy + thread_cpu / elapsed), min(1.0, taken)),
            rps=calls / elapsed,
            eps=failed / elapsed,
            queue_time=usage.queue_time + (waited / calls if calls else 0.0),
            cpu=usage.cpu,
        )

    def applies_to(self, method: str) -> bool:
        """Every method but those of health checks and reflection."""
        return not is_infrastructure(method)

    def begin(self, call: ServerCall) -> None:
        """Have the report sent with the answer."""
        if self._loop_load is not None:
            call.add_trailers(self._current_trailers)

    def end(self, call: ServerCall, code: grpc.StatusCode) -> None:
        """Count the call, unless it was refused."""
        if self._loop_load is not None and not call.is_refused:
            self._calls += 1
            if code is not grpc.StatusCode.OK and classify(code) is Outcome.FAILURE:
                self._failed += 1

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Put this concern alone round the handler; how grpcio calls an interceptor."""
        # The first call, or the first one in another loop than before.
        if self._loop_load is None or self._loop_load.loop is not asyncio.get_running_loop():
            self.disable()
            self.enable()
        handler = await super().intercept_service(continuation, handler_call_details)
        if self.threads is None and self._sync_handlers is not None:
            self.threads = self._sync_handlers.load  # as new as the measure: both begin at 0
        return handler

    def _current_trailers(self) -> Metadata:
        loop_load = self._loop_load
        if loop_load is None:
            return ()  # disabled since the call began
        now = loop_load.now()
        if now >= self._encode_at:
            self._encode_at = now + ENCODE_EVERY
            self._trailers = _trailers(self.report())
        return self._trailers

    def _on_beat(self, now: float) -> None:
        self._totals.note(now, self._sample())

    def _sample(self) -> tuple[float, ...]:
        threads = (0.0, 0.0, 0.0) if self.threads is None else self.threads.totals()
        return (self._calls, self._failed, *threads)


def _trailers(report: LoadReport | None) -> Metadata:
    if report is None:
        return ()
    encoded = report.to_wire()
    return (LOAD_REPORT, encoded), (ORCA_LOAD_REPORT, encoded)
