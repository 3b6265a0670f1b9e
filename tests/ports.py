"""Ports for processes that come and go: free, and given to nobody by the kernel by itself.

What the kernel chooses, for connections out of this machine and for those who listen on port 0, lies
above these; so a process that was killed finds its port free when it is started again.
"""

import contextlib
import itertools
import os
import socket

_ALL = range(15_000, 32_000)
_begin = os.getpid() * 4_801 % len(_ALL)  # far from where others begin, who run beside this one
_next = itertools.cycle([*_ALL[_begin:], *_ALL[:_begin]])


def free_port() -> int:
    """Return a port that nobody has, another one each time."""
    for port in itertools.islice(_next, len(_ALL)):
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")
