"""Processes that are forked from one that has read all modules: `python -m tests.faults.nursery`.

Starting Python and reading grpc takes longer than most of what the tests then do. The nursery itself
never uses grpc, which does not survive a fork. It takes `MODULE NAME ARGUMENT...` a line on stdin,
forks a process that runs this module of `tests.faults`, and answers with its pid. That process reads
and writes the pipes `NAME.in` and `NAME.out` in the current folder, and its errors go to `NAME.log`.
"""

import os
import runpy
import shlex
import signal
import sys
import time

import meshrpc.cli
import meshrpc.registry.consul  # noqa: F401
from meshrpc import Mesh, Service  # noqa: F401
from tests.faults import load, victim  # noqa: F401
from tests.faults.rig import Process
from tests.faults.words import say

POLL_EVERY = 0.005


class Forked:
    """A process of the nursery, as `subprocess.Popen` would have it."""

    def __init__(self, nursery, folder, name, module, arguments):
        pipes = [folder / f"{name}.in", folder / f"{name}.out"]
        for pipe in pipes:
            os.mkfifo(pipe)
        nursery.say(shlex.join([module, str(folder / name), *map(str, arguments)]))
        self.pid = int(nursery.line())
        # Each waits for the other end.
        self.stdin = pipes[0].open("wb", buffering=0)
        self.stdout = pipes[1].open("rb", buffering=0)

    def poll(self):
        """Return None while it runs."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return 0
        return None

    def send_signal(self, number):
        os.kill(self.pid, number)

    def wait(self):
        while self.poll() is None:
            time.sleep(POLL_EVERY)


class Child(Process):
    """A process that was forked by a nursery."""

    def __init__(self, nursery, folder, name, module, *arguments):
        self.name = name
        self._errors = folder / f"{name}.log"
        self._process = Forked(nursery, folder, name, module, arguments)


def become(module, name, arguments):
    """Be a process that runs a module, in the one that was forked."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    ends = (
        (f"{name}.in", os.O_RDONLY),
        (f"{name}.out", os.O_WRONLY),
        (f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    )
    for number, (file, flags) in enumerate(ends):
        os.dup2(os.open(file, flags), number)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    sys.argv = [module, *arguments]
    runpy.run_module(f"tests.faults.{module}", run_name="__main__", alter_sys=True)


def main():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks what became of them
    say("ready")
    # Not by `for line in sys.stdin`, which reads ahead what a fork would then have twice.
    while line := sys.stdin.readline():
        module, name, *arguments = shlex.split(line)
        if (pid := os.fork()) == 0:
            become(module, name, arguments)
            return
        say(str(pid))


if __name__ == "__main__":
    main()
