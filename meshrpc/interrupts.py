"""Ctrl-C while a command begins or ends: the process leaves without a word, with exit code 130.

As an exception it would come out of whatever runs then. Out of an import that is a traceback, and
where Python itself calls back, in an import's cleanup or at the end of the interpreter, one that is
printed and passed over. There is nothing yet, or nothing any more, that has to end in order; in
between Ctrl-C is a `KeyboardInterrupt`, as asyncio and the commands expect.

Imports next to nothing, for it has to be there first. SIGTERM needs none of this: nothing in Python
hears it until a command asks to.
"""

from __future__ import annotations

import os
import signal

INTERRUPTED = 130
"""The exit code of a command ended by Ctrl-C, as shells have it: 128 + SIGINT."""


def end_process() -> None:
    """From here on Ctrl-C ends the process at once.

    Unless it is ignored (`nohup`, a script's background), or somebody else's to handle.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_exception() -> None:
    """From here on Ctrl-C raises `KeyboardInterrupt`, if it was to end the process until here."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(*_: object) -> None:
    os._exit(INTERRUPTED)
