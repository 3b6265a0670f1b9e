"""Admission gate: where calls wait until the event loop and the limit have room for one more.

An event loop runs one handler at a time. Where handlers compute, several that are begun at once run
one after another, while calls that matter more, or that come from somebody who asks for little,
arrive behind them. So handlers that compute are begun one per turn of the loop, and between two of
them all calls are looked at that have come meanwhile, for a tenth of the time on average; the rest
is the handlers'. Handlers that only wait are begun at once, up to the limit. While there is room nothing
waits, and a call passes without costing anything but a look at a few numbers.

What waits, for how long, and who is next is `limits/admission_queue.py`'s. Waiting is judged by
the mesh's clock, turns of the event loop by the real one.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from time import perf_counter
from typing import Final, Protocol

from meshrpc.clock import Clock
from meshrpc.interceptors.server_call import ServerCall
from meshrpc.limits.admission_queue import BURST, AdmissionQueue, Waiting
from meshrpc.limits.handler_times import LONGEST_NAME, MOST_METHODS

COMPUTES: Final = 0.0003
"""Seconds from beginning a handler to its first pause, above which it computes. Where it takes less,
refusing a call costs as much as having it served, and there is nothing to gain."""
INTAKE_SHARE: Final = 0.1
"""Of handlers' time, what may be used for looking at calls that have come..."""
INTAKE_EACH: Final = 0.0001
"""...and so many seconds more per handler: its own call had to be looked at, too."""
INTAKE_SAVED: Final = 0.01
"""Seconds of that which may be saved for when many come at once."""
LOOK_IN_AGAIN: Final = 0.01
"""Seconds after which calls that wait for the limit are looked at, if no handler ends before."""

# An event is read in the first turn of the loop, and has become a call by the third.
_TURNS: Final = 3
# Without an intake that can be counted: so long after one call another may be on its way.
_COMING: Final = 0.0003
_AT_ONCE: Final = 16
"""Handlers begun in one turn where they do not compute."""
_MEASURE_EVERY: Final = 32
"""Of those, each so many-th is begun alone, to see whether that is still so."""

Refuse = Callable[[ServerCall, float, float], Exception | None]
"""Says why a call whose turn has come, now, after so many seconds, is refused; None: it is not."""

Turn = asyncio.Future[Exception | None]


class Intake(Protocol):
    """Calls that a server has taken in and not begun."""

    dropped: int
    """Calls let go of unanswered."""

    def __len__(self) -> int: ...

    def fall_behind(self) -> None:
        """Have fewer calls wait: more come than can be looked at."""

    def drop_late(self) -> None:
        """Fall behind if calls have waited for long that nobody has looked at."""


class AdmissionGate:
    """One event loop's gate. `limit` handlers at a time go through; `release` makes room again."""

    def __init__(self, limit: int, clock: Clock) -> None:
        self.limit = limit
        self.running = 0
        """Handlers that count against the limit."""
        self.counts_streams = False
        """Whether a stream counts against the limit, for as long as it lasts."""
        self.queue = AdmissionQueue()
        self.intakes: list[Intake] = []
        """Calls that have come and that are on their way here, where somebody counts them."""
        self.on_turn: Refuse = lambda _call, _now, _waited: None
        """Asked of a call whose turn has come."""
        self.on_late: Callable[[float | None], Exception] = lambda _waited: Exception()
        """Makes the refusal of a call that has waited too long, or that is one too many: None."""
        self._clock = clock
        self._costs: dict[str, float] = {}
        self._begun: tuple[str, float] | None = None
        self._since_measured = 0
        self._next: asyncio.Handle | None = None
        self._computing = 0.0
        self._turn_at = 0.0
        self._turns_left = 0
        self._saved = INTAKE_SAVED
        self._looking_since = 0.0
        self._came_at = 0.0

    def __repr__(self) -> str:
        return f"<AdmissionGate running={self.running}/{self.limit} waiting={len(self.queue)}>"

    def enter(self, call: ServerCall, now: float) -> bool:
        """Let a call through if there is room and nobody waits; otherwise it has to `wait`."""
        if self.queue or self.running >= self.limit or self._computes(call.method):
            return False
        self.admit(call, now)
        return True

    def admit(self, call: ServerCall, now: float) -> None:
        """Let a call through; one that counts has `started_at`, and takes a `release`."""
        if not call.is_stream or self.counts_streams:
            self.running += 1
            call.started_at = now

    def release(self) -> None:
        """Make room: a handler that was let through has ended."""
        self.running -= 1
        if self.queue and self.running < self.limit:
            self._go_on()

    async def wait(self, call: ServerCall, now: float) -> None:
        """Return when it is the call's turn, and it counts; raise what refuses it."""
        turn: Turn = asyncio.get_running_loop().create_future()
        waiting = Waiting((call, turn), call.caller, call.criticality, now, call.deadline)
        self._came_at = perf_counter()
        if not self.queue:
            self._turn_at = self._came_at
            self._looking_since = self._came_at
        evicted = self.queue.add(waiting, now)
        if evicted is not None:
            self._refuse(evicted, None)
        self._go_on()
        try:
            refusal = await turn
        except BaseException:
            if waiting.is_waiting:
                self.queue.remove(waiting)
            elif call.started_at is not None:
                # Its turn had come, and its caller went before it could begin.
                call.started_at = None
                self.release()
            raise
        if refusal is not None:
            raise refusal

    def _go_on(self) -> None:
        if isinstance(self._next, asyncio.TimerHandle):
            self._next.cancel()
            self._next = None
        if self._next is None:
            self._next = asyncio.get_running_loop().call_soon(
                self._turn, context=contextvars.Context()
            )

    def _computes(self, method: str) -> bool:
        """Whether a handler of the method computes, as far as is known, or is to be measured."""
        self._since_measured += 1
        return (
            self._since_measured >= _MEASURE_EVERY or self._costs.get(method, COMPUTES) >= COMPUTES
        )

    def _measure(self, method: str, turn: Turn) -> None:
        """Begin a handler alone, and find out how long it takes until it pauses.

        The event loop runs, one right after the other: what notes the time, the handler, `_turn`.
        """
        self._since_measured = 0
        asyncio.get_running_loop().call_soon(self._begin, method, context=contextvars.Context())
        turn.set_result(None)
        self._go_on()

    def _begin(self, method: str) -> None:
        self._begun = method, perf_counter()

    def _turn(self) -> None:
        """One turn of the loop: learn what the last one has cost, and let calls through."""
        self._next = None
        now, real = self._clock.now(), perf_counter()
        if self._begun is not None:
            self._learn(*self._begun, real)
            self._begun = None
        if not self.queue:
            self._turns_left = 0
            return
        pause, self._turn_at = real - self._turn_at, real
        if pause > max(BURST / 2, 3 * self._computing):
            self.queue.note_pause(now, pause)
        is_full = self.running >= self.limit
        # What does not compute is served for the price of refusing it.
        is_tight = is_full or self._computing > 0
        if is_tight:
            for late in self.queue.take_late(now):
                self._refuse(late, now - late.since)
            # Where handlers compute, the time for looking says when it is too much.
            if not self._computing and self.queue.is_overloaded(now):
                for intake in self.intakes:
                    intake.drop_late()
        if is_full:
            self._next = asyncio.get_running_loop().call_later(
                LOOK_IN_AGAIN, self._turn, context=contextvars.Context()
            )
            return
        looked = real - self._looking_since
        is_more_coming = self._is_more_coming(real)
        if looked < self._saved and (self._turns_left or is_more_coming):
            self._turns_left = max(0, self._turns_left - 1)
        else:
            if (
                is_more_coming
                and looked >= self._saved
                and is_tight
                and self.queue.is_overloaded(now)
            ):
                for intake in self.intakes:
                    intake.fall_behind()
            self._saved = max(self._saved - looked, -INTAKE_SAVED)
            self._looking_since = real
            self._let_through(now)
        if self.queue:
            self._go_on()
        elif is_tight and self._is_more_coming(real):
            self.queue.note_more()

    def _let_through(self, now: float) -> None:
        for _ in range(_AT_ONCE):
            if self.running >= self.limit:
                return
            waiting = self.queue.take()
            if waiting is None:
                return
            call: ServerCall = waiting.item[0]
            turn: Turn = waiting.item[1]
            if turn.done():
                continue  # cancelled, and its task has not heard of it yet
            refusal = self.on_turn(call, now, now - waiting.since)
            if refusal is not None:
                turn.set_result(refusal)
                continue
            self.admit(call, now)
            if self._computes(call.method):
                self._measure(call.method, turn)
                return
            turn.set_result(None)

    def _learn(self, method: str, began: float, real: float) -> None:
        cost = real - began
        known = self._costs.get(method)
        if known is None and len(self._costs) >= MOST_METHODS:
            self._costs.clear()
        if len(method) <= LONGEST_NAME:
            self._costs[method] = cost if known is None else _learned(known, cost)
        expected = self._costs.get(method, cost)
        self._computing = expected if expected >= COMPUTES else 0.0
        if self._computing:
            self._turns_left = _TURNS
        self._looking_since = real
        # A handler that stood still is no reason to look at calls for as long.
        self._saved = min(self._saved + INTAKE_EACH + INTAKE_SHARE * min(cost, BURST), INTAKE_SAVED)

    def _is_more_coming(self, real: float) -> bool:
        if self.intakes:
            return any(map(len, self.intakes))
        return real - self._came_at < _COMING

    def _refuse(self, waiting: Waiting, waited: float | None) -> None:
        turn: Turn = waiting.item[1]
        if not turn.done():  # else its caller has gone, and its task has not heard of it yet
            turn.set_result(self.on_late(waited))


def _learned(known: float, cost: float) -> float:
    """Return what is believed after one more measure: less at once, more only when it is seen again.

    The machine may have had something else to do, and that is no handler's.
    """
    if cost < known:
        return (known + cost) / 2
    return known + 0.1 * (min(cost, 4 * known) - known)
