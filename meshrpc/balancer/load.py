"""What this caller's own calls to one endpoint have shown: how slow it is, and how busy.

Peak EWMA, from Finagle and Linkerd: a load is the expected latency times the calls under way and
one. Latency is a moving average over time that jumps to every peak and sinks back with the time
constant `decay`: an endpoint that turns slow is left at once, and tried again as the memory of
that fades. Three things are added. A failure counts as very slow for a moment (Linkerd's load
biaser; docs/decisions/0011). A quick answer after seconds without any replaces the memory
(docs/decisions/0014). And one need not wait for an answer to see that it is late (aegis): calls
under way for longer than answers took tell of it before they end.
"""

from __future__ import annotations

import math

from meshrpc.resilience.outcome import Outcome

FAILURE_LATENCY = 5.0
"""What a failure counts as, in seconds, however fast it came: an endpoint that fails at once
would otherwise look like the best one and draw all calls."""

FAILURE_DECAY = 1.0
"""The time constant with which that fades. Were it as long as the memory of latencies, one stray
failure would cost an endpoint its calls for most of a minute (docs/decisions/0011)."""

_UNKNOWN_LATENCY = 1e6
"""An endpoint with a first call under way and no latency yet is as good as taken: its first
answer decides. Larger than any latency (Finagle's Penalty)."""

_SHORTEST = 1e-6
"""Seconds that any answer counts as at least, and below which no memory fades: at none at all an
endpoint would look unknown, or free however many calls are pending."""

_LOG_SHORTEST = math.log(_SHORTEST)

UNASKED = 3.0
"""Seconds without a sample after which one is worth a call, and a lower one replaces the memory.
Mixed in by its weight in time, it would say no more than that the memory has faded, which it has by
itself (docs/decisions/0014)."""


class Load:
    """One endpoint's latency, remembered by its peaks, and the calls pending on it.

    `value` tells two of them apart, and costs an exponential. But all memories fade alike, so that
    most comparisons need none: in ln(value) + now / decay the time cancels out. That is `score`,
    worked out when something happens. Of two with the same decay, compared at any time from the
    last event on, the one with the lower score has the lower value too, if it is before its
    `plain_until`. The other one's does not matter: what a score leaves out only adds to a value.
    """

    __slots__ = (
        "_at",
        "_decay",
        "_failed_at",
        "_latency",
        "_starts",
        "_timed",
        "asked_at",
        "is_failing",
        "memory",
        "pending",
        "plain_until",
        "score",
    )

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self.pending = 0
        """Attempts under way, streams too."""
        self.asked_at = -math.inf
        """When the last attempt began."""
        self.is_failing = False
        """Whether it has failed and not succeeded since."""
        self._failed_at = 0.0
        self._timed = 0  # attempts under way whose duration is a latency
        self._starts = 0.0  # the sum of when they began
        self._latency = 0.0  # at `_at`; 0.0: unknown
        self._at = 0.0
        self.memory = -math.inf
        """ln(latency) + now / decay: the score but for the calls under way."""
        self.score = -math.inf
        """ln(value) + now / decay, or less."""
        self.plain_until = math.inf
        """Until when it is exactly that."""

    def __repr__(self) -> str:
        failing = ", failing" if self.is_failing else ""
        return f"<Load {self._latency * 1e3:.3g} ms, {self.pending} pending{failing}>"

    @property
    def decay(self) -> float:
        """The time constant in seconds with which a latency is forgotten."""
        return self._decay

    @decay.setter
    def decay(self, decay: float) -> None:
        self._decay = decay
        self._remember(self._latency, self._at)
        self._rescore()

    def start(self, now: float, *, timed: bool = True) -> None:
        """Count an attempt as under way; `timed` where its duration will be a latency."""
        self.pending += 1
        self.asked_at = now
        if timed:
            self._timed += 1
            self._starts += now
        self._rescore()

    def finish(self, started: float, *, timed: bool = True) -> None:
        """Count an attempt as over; exactly one for each `start`, with what that was given."""
        self.pending -= 1
        if timed:
            self._timed -= 1
            # Exactly none, whatever was rounded on the way.
            self._starts = self._starts - started if self._timed else 0.0
        self._rescore()

    def learn(self, outcome: Outcome, latency: float | None, now: float) -> None:
        """Take in how an attempt ended, and after how long; None: that says nothing of it."""
        if outcome is Outcome.SUCCESS:
            self.is_failing = False
            if latency is not None:
                self._observe(latency, now)
        else:
            if latency is not None:
                if outcome is Outcome.IGNORED:
                    self._hold(latency, now)
                elif latency > self.latency(now):  # an answer would have taken at least as long
                    self._observe(latency, now)
            if outcome is Outcome.FAILURE or outcome is Outcome.UNREACHED:
                self.is_failing = True
                self._failed_at = now
        self._rescore()

    def forget(self) -> None:
        """Begin anew: who answers there now is not who did."""
        self.is_failing = False
        self._remember(0.0, 0.0)
        self._rescore()

    def latency(self, now: float) -> float:
        """Return the remembered latency in seconds, faded since the last sample; 0.0: none yet."""
        age = now - self._at
        if age <= 0.0 or not self._latency:
            return self._latency
        return max(_SHORTEST, self._latency * math.exp(-age / self._decay))

    def value(self, now: float) -> float:
        """Return the load: less is better, and only the order means anything.

        It is the expected latency x (pending + 1). With no latency known, the first call is free.
        """
        expected = self.latency(now)
        if expected and self._timed:
            expected = max(expected, now - self._starts / self._timed)
        if self.is_failing:
            faded = math.exp(min(0.0, self._failed_at - now) / FAILURE_DECAY)
            expected = max(expected, FAILURE_LATENCY * faded)
        elif not expected:
            return _UNKNOWN_LATENCY * self.pending
        return expected * (self.pending + 1)

    def _observe(self, latency: float, now: float) -> None:
        """Take in a sample: a peak at once, anything lower by its weight in time.

        After a while without any, a lower one is all that is remembered.
        """
        latency = max(latency, _SHORTEST)
        if latency < self._latency and now - self._at < UNASKED:
            # Never above 1: a `now` from before the last sample must not make the memory grow.
            kept = math.exp(min(0.0, self._at - now) / self._decay)
            latency += (self._latency - latency) * kept
        self._remember(latency, now)

    def _hold(self, latency: float, now: float) -> None:
        """Take in an answer whose speed means nothing, such as a refusal.

        It keeps what is remembered from fading: quick refusals must not make an endpoint look
        quick. But what has faded stays so: one refusal must not bring an old peak back. Only an
        endpoint without any sample takes the latency for want of a better one.
        """
        if not self._latency:
            held = max(latency, _SHORTEST)
        elif now - self._at > self._decay:
            held = self.latency(now)
        else:
            held = self._latency
        self._remember(held, now)

    def _remember(self, latency: float, at: float) -> None:
        self._latency = latency
        self._at = at
        self.memory = math.log(latency) + at / self._decay if latency else -math.inf

    def _rescore(self) -> None:
        # A few times for each call, so no more than it must.
        if not self._latency:
            self.score = -math.inf
            # Free, as long as nothing is under way and nothing went wrong.
            self.plain_until = -math.inf if self.pending or self.is_failing else math.inf
            return
        self.score = self.memory + math.log(self.pending + 1)
        if self.is_failing:
            self.plain_until = -math.inf
            return
        # When the memory will have faded to the shortest.
        until = self._decay * (self.memory - _LOG_SHORTEST)
        if self._timed:
            # The age of the calls under way grows and the memory fades: when do they meet? Not
            # before the age meets the tangent of the memory, which bends upwards.
            ahead = self._starts / self._timed - self._at + self._latency
            late = self._at + ahead / (1.0 + self._latency / self._decay)
            if late < until:  # noqa: PLR1730 - a call of min() is dearer
                until = late
        self.plain_until = until
