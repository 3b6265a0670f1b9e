"""Where instances stand: on loopback, or in a network namespace that can be cut off.

In a namespace the packets vanish in the kernel, as they do in a real network; a proxy can only stop
passing them on. Making one needs the right to (root, on Linux); `Namespace.why_not` says what is
in the way.
"""

import os
import shutil
import subprocess
from functools import cache


class Loopback:
    """This machine's own, where nothing gets lost."""

    here = there = anywhere = "127.0.0.1"
    entering = ()
    """The command that another one is run with to be there."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


LOCAL = Loopback()


class Namespace:
    """A namespace of its own, joined to this one by two addresses."""

    anywhere = "0.0.0.0"  # noqa: S104 - both of them, for as long as a test lasts

    def __init__(self):
        number = os.getpid() % 16384
        self.name = f"meshrpc-{os.getpid()}"
        self._link = f"mesh{number}"
        # 198.18.0.0/15 is set aside for tests of networks.
        prefix = f"198.18.{number >> 6}.{(number & 63) << 2}".rpartition(".")
        self.here, self.there = (f"{prefix[0]}.{int(prefix[2]) + end}" for end in (1, 2))
        self.entering = ("ip", "netns", "exec", self.name)

    @staticmethod
    @cache
    def why_not():
        """Return what keeps this process from making one; None if nothing does."""
        if shutil.which("ip") is None:
            return "there is no `ip` (iproute2) here"
        name = f"meshrpc-try-{os.getpid()}"
        tried = subprocess.run(
            ("ip", "netns", "add", name), capture_output=True, text=True, check=False
        )
        if tried.returncode:
            return f"no network namespaces here: {tried.stderr.strip()}"
        _ip("netns", "del", name)
        return None

    def __enter__(self):
        _ip("netns", "add", self.name)
        try:
            _ip("link", "add", self._link, "type", "veth", "peer", "name", "out")
            _ip("link", "set", "out", "netns", self.name)
            _ip("address", "add", f"{self.here}/30", "dev", self._link)
            _ip("link", "set", self._link, "up")
            self._there("address", "add", f"{self.there}/30", "dev", "out")
            self._there("link", "set", "out", "up")
            self._there("link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        _ip("netns", "del", self.name)  # and with it both ends of the link

    def swallow(self):
        """Drop whatever goes out from there: one way, as when only answers get lost."""
        self._there("route", "add", "blackhole", f"{self.here}/32")

    def pass_on(self):
        """End `swallow`."""
        self._there("route", "del", "blackhole", f"{self.here}/32")

    def cut(self):
        """Take the link down: nothing gets through, either way."""
        self._there("link", "set", "out", "down")

    def join(self):
        """End `cut`."""
        self._there("link", "set", "out", "up")

    def _there(self, *command):
        _ip("-n", self.name, *command)


def _ip(*command):
    subprocess.run(("ip", *command), check=True, capture_output=True)
