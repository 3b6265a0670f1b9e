"""The signals that tell a process to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def stop_signals(on_signal: Callable[[], None]) -> Iterator[None]:
    """Have SIGTERM and SIGINT call `on_signal`, where this thread and platform can."""
    loop = asyncio.get_running_loop()
    handled = []
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                loop.add_signal_handler(number, on_signal)
            except (NotImplementedError, RuntimeError, ValueError):
                break  # Windows, or not the main thread: whoever runs this stops it otherwise
            handled.append(number)
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
