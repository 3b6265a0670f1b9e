"""How busy the threads are that run plain `def` handlers, and how long work waits for one.

Two shares tell: of the threads that are taken, which is what runs out while handlers wait for
something, and of one core that they use, which they take from the event loop, since only one of
them can run Python at a time. Totals only: whoever asks makes averages of them.
"""

from __future__ import annotations

import threading
import time


class ThreadLoad:
    """What became of the work given to `threads` threads. Thread-safe."""

    __slots__ = ("_changed_at", "_cpu", "_lock", "_occupied", "_taken", "_waited", "threads")

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._lock = threading.Lock()
        self._waited = 0.0
        self._cpu = 0.0
        self._taken = 0
        self._occupied = 0.0
        self._changed_at = 0.0

    def __repr__(self) -> str:
        return f"<ThreadLoad {self._taken}/{self.threads} taken>"

    def start(self, submitted: float) -> float:
        """Note, in its thread, that work begins that was `submitted` then; return what `finish` takes."""
        with self._lock:
            now = self._change(1)
            self._waited += max(0.0, now - submitted)
        return time.thread_time()

    def finish(self, started: float) -> None:
        """Note, in its thread, that the work is over."""
        cpu = time.thread_time() - started
        with self._lock:
            self._change(-1)
            self._cpu += cpu

    def totals(self) -> tuple[float, float, float]:
        """Return seconds waited for a thread, of threads taken, and of CPU used, all told."""
        with self._lock:
            self._change(0)
            return self._waited, self._occupied, self._cpu

    def _change(self, more: int) -> float:
        now = time.monotonic()
        self._occupied += self._taken * (now - self._changed_at)
        self._taken += more
        self._changed_at = now
        return now
