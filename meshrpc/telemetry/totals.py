"""What has come about lately: totals that only grow, and samples of them from time to time.

How much they have grown over the last seconds is the newest figure less the sample from then. So
counting is an addition, asking looks a sample up, and a time without samples, because the process
stood still, is told with all its length. Pure.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

Sample = tuple[float, ...]


class Totals:
    """Samples of some totals over the last `seconds` and a little more."""

    __slots__ = ("_samples", "_seconds", "_times")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._times: deque[float] = deque()
        self._samples: deque[Sample] = deque()

    def __repr__(self) -> str:
        return f"<Totals samples={len(self._times)}>"

    def note(self, now: float, totals: Sample) -> None:
        """Take a sample: what each has grown to. One newer than `seconds` ago can be asked for."""
        self._times.append(now)
        self._samples.append(totals)
        while len(self._times) > 1 and self._times[1] <= now - self._seconds:
            self._times.popleft()
            self._samples.popleft()

    def growth(self, now: float, totals: Sample, seconds: float) -> tuple[float, Sample]:
        """Return by how much each total grew in the last `seconds`, and in how long that was.

        It was longer where there is no sample from right then, and shorter where the first one is
        younger; 0 without any.
        """
        if not self._times:
            return 0.0, (0.0,) * len(totals)
        index = max(0, bisect_right(self._times, now - seconds) - 1)
        then = self._samples[index]
        return now - self._times[index], tuple(
            new - old for new, old in zip(totals, then, strict=True)
        )
