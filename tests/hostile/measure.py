"""Measure what each attack costs a server: `python -m tests.hostile.measure [NAME...]`.

For each it prints what was sent, the CPU seconds and the memory that this cost the server, per MB
and in all, how a good caller fared meanwhile, and what the server wrote. docs/hostile-input.md has
the figures.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import grpc

from tests.hostile.attacks import CORPUS

TICKS = os.sysconf("SC_CLK_TCK")


class Process:
    """The server under attack, seen from outside."""

    def __init__(self):
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `__exit__`
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        self.address = self.process.stdout.readline().strip()
        self._proc = Path(f"/proc/{self.process.pid}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()
        self.log.close()

    @property
    def is_alive(self):
        return self.process.poll() is None

    def cpu(self):
        """Seconds of CPU so far."""
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self, kind="VmRSS"):
        """MB in use; `VmHWM`: the most since `forget`."""
        for line in (self._proc / "status").read_text().splitlines():
            if line.startswith(kind):
                return int(line.split()[1]) / 1024
        raise ValueError(kind)

    def forget(self):
        """Have the peak of memory start anew."""
        (self._proc / "clear_refs").write_text("5")

    def lines(self):
        """How many lines it has written."""
        self.log.seek(0)
        return self.log.read().count(b"\n")


class GoodCaller:
    """Calls all the while, one call after the other, on a connection of its own."""

    def __init__(self, address):
        self._address = address
        self._end = threading.Event()
        self.times = []
        self.failures = []

    def __enter__(self):
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()

    def wait(self, count):
        """Wait until it has made so many more calls, ten seconds each at most."""
        until = len(self.times) + count
        while len(self.times) < until:
            time.sleep(0.01)

    def _run(self):
        with grpc.insecure_channel(self._address) as channel:
            say = channel.unary_unary("/hostile.Echo/Say")
            while not self._end.is_set():
                began = time.monotonic()
                try:
                    say(b"good", timeout=10)
                except grpc.RpcError as error:
                    self.failures.append(error.code())
                self.times.append(time.monotonic() - began)
                time.sleep(0.002)


@dataclass
class Cost:
    """What an attack cost, and how the good caller fared."""

    sent: float
    """MB."""
    cpu: float
    """Seconds, those of the good caller's own calls aside."""
    peak: float
    after: float
    """MB more than before, at most and in the end."""
    calls: int
    failures: list
    slowest: float
    lines: int
    alive: bool


OWN_CALL = 0.0004
"""CPU seconds of one good call."""


def measure(name, size=None):
    """Attack a process of its own."""
    attack, _, full = CORPUS[name]
    with Process() as server, GoodCaller(server.address) as good:
        good.wait(100)
        server.forget()
        lines, calls = server.lines(), len(good.times)
        cpu, memory = server.cpu(), server.memory()
        result = attack(server.address, size or full)
        good.wait(200)
        cpu = server.cpu() - cpu - (len(good.times) - calls) * OWN_CALL
        peak = server.memory("VmHWM") - memory
        result.close()
        good.wait(100)
        times = good.times[calls:]
        return Cost(
            sent=max(result.sent, 1) / 1e6,
            cpu=cpu,
            peak=peak,
            after=server.memory() - memory,
            calls=len(times),
            failures=good.failures,
            slowest=max(times),
            lines=server.lines() - lines,
            alive=server.is_alive,
        )


def main():
    heads = ("MB sent", "CPU s", "CPU s/MB", "peak MB", "after MB", "slowest ms", "failed", "lines")
    write = sys.stdout.write
    write(f"{'attack':34}" + "".join(f"{head:>11}" for head in heads) + "\n")
    for name in sys.argv[1:] or CORPUS:
        cost = measure(name)
        figures = (cost.sent, cost.cpu, cost.cpu / cost.sent, cost.peak, cost.after)
        write(f"{name:34}" + "".join(f"{figure:11.2f}" for figure in figures))
        write(f"{cost.slowest * 1000:11.0f}{len(cost.failures):11}{cost.lines:11}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
