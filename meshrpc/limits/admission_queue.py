"""Admission queue: calls that wait for their turn, which of them is next, and which wait too long.

Classes of criticality are served from the top, so they are shed from the bottom. Within a class
callers take turns, so that who asks for most waits longest, whatever the others do. How long a
call may wait is bounded by "controlled delay" as Facebook has it (Maurer, "Fail at Scale", ACM
Queue 2015): generously while the queue was empty a moment ago, which is a burst, and shortly once
it has not been empty for a while, which is an overload: then each wait is time lost for everybody.
It is lost for those above their equal share first: who has fewer waiting than others is spared.

Bounds follow the handlers' own time: calls of 20 ms that may wait for 5 would leave a process idle.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from typing import Any, Final

from meshrpc.wire import Criticality

BURST: Final = 0.1
"""Seconds without an empty queue that are a burst yet; as long a call may wait in one."""
WAIT_AT_LEAST: Final = 0.005
WAIT_AT_MOST: Final = 0.2
"""Seconds between which a call may wait in an overload."""
HANDLERS_AHEAD: Final = 16.0
"""As many handlers' times a call may wait in an overload. At 80 % of what a process can do, chance alone
makes one in a hundred wait for two thirds of it, so that is no overload yet."""
FAIR_ROUNDS: Final = 4.0
"""As many rounds of all callers' turns more a call may wait whose caller has less than its share waiting."""
SHORT: Final = 8
"""Calls in a queue that is worked off soon, whatever came before."""
CREDIT: Final = 10
"""Calls that a caller who has asked for less than others may have served before theirs, at once."""
MOST_LEFT: Final = 1_000
LONGEST_NAME: Final = 256
"""Callers remembered who have nothing waiting, and how long their names may be."""
MOST_WAITING: Final = 1_000
"""Calls that may wait, which bounds memory; time is the bound that is met first."""
PATIENCE: Final = 0.1
PATIENT_AT_MOST: Final = 1.0
"""Of the time that it has, the part that a call may wait in any case, and how many seconds at most. Whoever
has ten seconds does not mind a half, and a process that was short of CPU for so long is not overloaded."""
LONGEST_PAUSE: Final = 2.0
"""Seconds for which a process may have stood still and still be excused."""

_CLASSES: Final = (Criticality.CRITICAL, Criticality.DEFAULT, Criticality.SHEDDABLE)


class Waiting:
    """A call in the queue; `item` is whatever stands for it."""

    __slots__ = ("caller", "criticality", "is_waiting", "item", "patience", "since")

    def __init__(
        self,
        item: Any,
        caller: str,
        criticality: Criticality,
        since: float,
        deadline: float | None = None,
    ) -> None:
        self.item = item
        self.caller = caller
        self.criticality = criticality
        self.since = since
        """When it came, in seconds."""
        self.patience = PATIENT_AT_MOST
        """Seconds that it may wait whatever holds for others; `deadline` None: it has all the time."""
        if deadline is not None:
            self.patience = min(PATIENCE * (deadline - since), PATIENT_AT_MOST)
        self.is_waiting = True

    def __repr__(self) -> str:
        state = "waiting" if self.is_waiting else "gone"
        return f"<Waiting {self.caller} {self.criticality} {state}>"


class AdmissionQueue:
    """Calls that wait, up to `most` of them."""

    def __init__(self, most: int = MOST_WAITING) -> None:
        self._most = most
        # All of them, oldest first: whoever waits too long is at its beginning.
        self._all: OrderedDict[Waiting, None] = OrderedDict()
        self._classes = {each: _Turns() for each in _CLASSES}
        self._empty_at = -math.inf
        self._was_served = True
        self._excused_until = -math.inf
        self._excuse = 0.0
        self._handler_time = 0.0

    def __len__(self) -> int:
        return len(self._all)

    def __repr__(self) -> str:
        return f"<AdmissionQueue waiting={len(self)}>"

    def note_handler_time(self, seconds: float) -> None:
        """Say how long handlers typically take."""
        self._handler_time = seconds

    def note_pause(self, now: float, seconds: float) -> None:
        """Say that nothing at all went on for so long: what came meanwhile may still be served."""
        self._excuse = min(seconds, LONGEST_PAUSE) + BURST
        self._excused_until = now + self._excuse

    def note_more(self) -> None:
        """Say that, empty as it is, more calls are on their way: this is no pause in an overload."""
        if not self._all:
            self._was_served = False

    def longest_wait(self, now: float) -> float:
        """Return for how long a call may have waited by now, in seconds."""
        wait = min(max(WAIT_AT_LEAST, HANDLERS_AHEAD * self._handler_time), WAIT_AT_MOST)
        if not self.is_overloaded(now):
            wait = max(wait, BURST)
        if now < self._excused_until:
            wait = max(wait, self._excuse)
        return wait

    def is_overloaded(self, now: float) -> bool:
        """Whether it has not been worked off for a while, and nothing excuses that."""
        return now - self._empty_at >= BURST and now >= self._excused_until

    def add(self, waiting: Waiting, now: float) -> Waiting | None:
        """Let a call wait; return the one that has to go instead, which may be the same.

        It is of the lowest class, of the caller with most of them waiting, its oldest.
        """
        # A queue that was emptied by refusing what was in it has not been worked off.
        if not self._all and self._was_served:
            self._empty_at = now
        self._was_served = True
        self._all[waiting] = None
        self._classes[waiting.criticality].add(waiting)
        if len(self._all) <= self._most:
            return None
        lowest = next(turns for each in reversed(_CLASSES) if (turns := self._classes[each]))
        victim = lowest.most_of_all()
        self.remove(victim)
        return victim

    def remove(self, waiting: Waiting) -> None:
        """Take a call out, whose caller has gone for instance; does nothing if it is out."""
        if waiting.is_waiting:
            del self._all[waiting]
            waiting.is_waiting = False
            self._classes[waiting.criticality].remove(waiting)

    def take(self) -> Waiting | None:
        """Take out the call whose turn it is; None when there is none."""
        for each in _CLASSES:
            turns = self._classes[each]
            if turns:
                waiting = turns.next()
                self.remove(waiting)
                return waiting
        return None

    def take_late(self, now: float) -> list[Waiting]:
        """Take out those that have waited for too long, oldest first.

        For some rounds more callers keep their only call, and all of them where others ask for more,
        and everybody where so few wait that their turn comes soon.
        """
        late: list[Waiting] = []
        if not self._all:
            return late
        longest = self.longest_wait(now)
        overdue: list[Waiting] = []
        for each in self._all:
            waited = now - each.since
            if waited <= longest:
                break
            if waited > each.patience:
                overdue.append(each)
        for each in overdue:
            turns = self._classes[each.criticality]
            is_spared = len(self._all) <= SHORT or turns.is_modest(each.caller)
            if is_spared and now - each.since <= longest + self._rounds(turns):
                continue
            self.remove(each)
            late.append(each)
        if late and not self._all:
            self._was_served = False
        return late

    def _rounds(self, turns: _Turns) -> float:
        return max(SHORT, FAIR_ROUNDS * turns.callers) * self._handler_time


class _Turns:
    """The calls of one class, by caller, who take turns as in start-time fair queueing (Goyal 1996).

    Each call advances its caller's clock by one; who is furthest behind is next. The clock of a
    caller that asks for nothing is left behind by the others', `CREDIT` at most.
    """

    __slots__ = ("_callers", "_latest", "_left")

    def __init__(self) -> None:
        self._callers: dict[str, _Line] = {}
        self._latest = 0
        # The clocks of callers that have nothing here at present.
        self._left: OrderedDict[str, int] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._callers)

    @property
    def callers(self) -> int:
        """Callers who wait."""
        return len(self._callers)

    def add(self, waiting: Waiting) -> None:
        line = self._callers.get(waiting.caller)
        if line is None:
            behind = self._latest - CREDIT
            clock = max(behind, self._left.pop(waiting.caller, behind))
            line = self._callers[waiting.caller] = _Line(clock)
        line.calls.append(waiting)
        line.count += 1

    def next(self) -> Waiting:
        """Return the first call of the caller whose turn it is, and count it as served."""
        line = min(self._callers.values(), key=_clock)
        self._latest = max(self._latest, line.clock)
        line.clock += 1
        return line.first()

    def is_modest(self, caller: str) -> bool:
        """Whether a caller has one call here, or is not the one furthest above its equal share.

        Others may have been above it and have nothing here any more: theirs was refused.
        """
        line = self._callers[caller]
        if line.count == 1:
            return True
        asked = _asked(line)
        return asked <= self._latest or any(
            _asked(other) > asked for other in self._callers.values()
        )

    def most_of_all(self) -> Waiting:
        """Return the first call of the caller who is furthest above its equal share."""
        return max(self._callers.values(), key=_asked).first()

    def remove(self, waiting: Waiting) -> None:
        """Forget a call that does not wait any more."""
        line = self._callers[waiting.caller]
        line.count -= 1
        if line.count:
            line.tidy()
            return
        del self._callers[waiting.caller]
        if line.clock > self._latest - CREDIT and len(waiting.caller) <= LONGEST_NAME:
            self._left[waiting.caller] = line.clock
            if len(self._left) > MOST_LEFT:
                self._left.popitem(last=False)


class _Line:
    """The calls of one caller, oldest first; those that have left may still stand in it."""

    __slots__ = ("calls", "clock", "count")

    def __init__(self, clock: int) -> None:
        self.clock = clock
        """Calls that were served, beside those of other callers."""
        self.calls: deque[Waiting] = deque()
        self.count = 0

    def first(self) -> Waiting:
        while not self.calls[0].is_waiting:
            self.calls.popleft()
        return self.calls[0]

    def tidy(self) -> None:
        """Bound the memory of those that have left: never more of them than of the others."""
        if len(self.calls) > 2 * self.count + 8:
            self.calls = deque(each for each in self.calls if each.is_waiting)


def _clock(line: _Line) -> int:
    return line.clock


def _asked(line: _Line) -> int:
    """Return what the clock would show if all were served."""
    return line.clock + line.count
