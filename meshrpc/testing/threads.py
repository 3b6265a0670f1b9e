"""Whether this process's other threads have come to rest: gRPC's work is done in its own.

On a busy machine a thread may wait longer for a processor than any sensible pause lasts; the
system knows that it waits. Elsewhere than on Linux nothing is known, and nothing is waited for.
"""

from __future__ import annotations

import threading
from pathlib import Path

_THREADS = Path("/proc/self/task")


def another_runs() -> bool:
    """Return whether another thread of this process runs, or waits for a processor."""
    own = str(threading.get_native_id())
    try:
        return any(_is_running(each) for each in _THREADS.iterdir() if each.name != own)
    except OSError:  # there is no such folder
        return False


def _is_running(thread: Path) -> bool:
    try:
        # The state comes after the number and, in brackets, the name.
        return (thread / "stat").read_bytes().rpartition(b") ")[2].startswith(b"R")
    except OSError:  # it has ended meanwhile
        return False
