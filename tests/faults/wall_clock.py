"""A wall clock that jumps, for the processes that it is given to: `clock_gettime` and its like.

`wall_clock.c` stands before libc's in those processes; how far they are ahead stands in a file that they
share. Monotonic time, and every other process, stay as they are.
"""

import shutil
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("wall_clock.c")


class WallClock:
    """What some processes think the time is."""

    def __init__(self, folder):
        self._ahead = folder / "ahead"
        self._library = folder / "wall_clock.so"
        self.jump(0)
        compiler = shutil.which("cc")
        command = (compiler, "-shared", "-fPIC", "-O2", "-o", self._library, SOURCE)
        subprocess.run(command, check=True)

    @staticmethod
    def why_not():
        """Return what is missing here; None if nothing is."""
        if shutil.which("cc") is None:
            return "there is no C compiler (cc) here"
        if not Path("/proc/self/maps").exists():
            return "LD_PRELOAD is Linux's"
        return None

    @property
    def environment(self):
        """What a process is started with to have this clock."""
        return {"LD_PRELOAD": str(self._library), "WALL_CLOCK_AHEAD": str(self._ahead)}

    def now(self):
        """Return the seconds since 1970, as a process with this clock sees them."""
        asked = subprocess.run(
            ("date", "+%s"), env=self.environment, capture_output=True, text=True, check=True
        )
        return int(asked.stdout)

    def jump(self, ahead):
        """Have it so many seconds before or behind the real one from now on."""
        with self._ahead.open("r+b" if self._ahead.exists() else "w+b") as file:
            file.write(struct.pack("q", ahead))
