"""Window: how many requests there were lately, and how many of them succeeded.

A ring of equal parts of the last few seconds; the oldest part is dropped as a whole when time
enters a new one. The sums are kept along, so that counting and asking cost the same however much
was counted. What is counted reaches back between `seconds` less one part and `seconds`. Time
never goes back: an older `now` counts as the newest.
"""

from __future__ import annotations

import math


class Window:
    """Requests and successes of the last `seconds`, in `buckets` equal parts.

    Raises:
        ValueError: `seconds` is not above 0, or `buckets` is below 1.
    """

    __slots__ = (
        "_end",
        "_newest",
        "_number",
        "_requests",
        "_requests_sum",
        "_successes",
        "_successes_sum",
        "_width",
    )

    def __init__(self, seconds: float, buckets: int = 10) -> None:
        if not seconds > 0 or buckets < 1:
            raise ValueError(
                f"a window needs seconds above 0 and at least 1 bucket, not {seconds} and {buckets}"
            )
        self._width = seconds / buckets
        self._requests = [0] * buckets
        self._successes = [0] * buckets
        self._requests_sum = 0
        self._successes_sum = 0
        self._newest = 0  # the place of the newest part in the ring
        self._number = 0  # its number, counted from time 0
        self._end = -math.inf  # where it ends; nothing was counted so far

    def add(self, now: float, requests: int, successes: int) -> None:
        """Count `requests` and `successes` at `now`."""
        if now >= self._end:
            self._turn(now)
        newest = self._newest
        self._requests[newest] += requests
        self._requests_sum += requests
        self._successes[newest] += successes
        self._successes_sum += successes

    def counts(self, now: float) -> tuple[int, int]:
        """Return the requests and the successes of the window that ends at `now`."""
        if now >= self._end:
            self._turn(now)
        return self._requests_sum, self._successes_sum

    def clear(self) -> None:
        """Forget everything counted."""
        buckets = len(self._requests)
        self._requests = [0] * buckets
        self._successes = [0] * buckets
        self._requests_sum = 0
        self._successes_sum = 0

    def _turn(self, now: float) -> None:
        """Make the part that `now` lies in the newest; drop those that fall out of the window."""
        number = math.floor(now / self._width)
        passed = number - self._number
        self._number = number
        self._end = (number + 1) * self._width
        if passed >= len(self._requests):
            self.clear()
            return
        for _ in range(passed):
            self._newest = oldest = (self._newest + 1) % len(self._requests)
            self._requests_sum -= self._requests[oldest]
            self._successes_sum -= self._successes[oldest]
            self._requests[oldest] = 0
            self._successes[oldest] = 0

    def __repr__(self) -> str:
        seconds = self._width * len(self._requests)
        return f"<Window {self._successes_sum} of {self._requests_sum} in {seconds:g}s>"
