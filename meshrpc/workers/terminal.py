"""Whether the terminal that a process was started in is gone.

Its end sends SIGHUP to what runs in it, and so does who wants a reload: the terminal tells which.
"""

from __future__ import annotations

import os
import signal


class Terminal:
    """The controlling terminal of this process, as it was when this was made."""

    def __init__(self) -> None:
        hang_up = getattr(signal, "SIGHUP", None)
        # `nohup` ignores the signal for its program, which is to go on without a terminal.
        wants_to_stay = hang_up is None or signal.getsignal(hang_up) is signal.SIG_IGN
        self._had_one = not wants_to_stay and _is_there()

    def __repr__(self) -> str:
        return f"<Terminal {'lost' if self.is_lost() else 'as it was'}>"

    def is_lost(self) -> bool:
        """Whether there was one, and it is there no more."""
        return self._had_one and not _is_there()


def _is_there() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True
