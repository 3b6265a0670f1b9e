"""Real processes to break: a control service, and fleets of instances that misbehave when told.

A `Rig` lives as long as its block and ends everything it started. A `Fleet` is a service of some
instances; each `Victim` of it can be killed, frozen, told to fail, cut off, and started again under
the same id at the same port. What was executed is read from the logs that they write.

Nothing here belongs to an event loop, so that one rig serves many tests. Times are `time.monotonic`'s,
which all processes of a machine share.
"""

import asyncio
import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import grpc

from meshrpc.policy import load_document
from meshrpc.v1 import policy_pb2, policy_pb2_grpc
from tests.faults.network import LOCAL
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
NAMESPACE = "default"
PATIENCE = 30.0
"""Seconds until something that should happen is given up."""


class RigError(Exception):
    """A process of the rig did not do what it should; says which and what it wrote."""


class Process:
    """A process that is told things a line at a time, and says each back when it is done."""

    def __init__(self, name, command, folder, environment):
        self.name = name
        self._errors = folder / f"{name}.log"
        with self._errors.open("ab") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
                start_new_session=True,
            )

    @property
    def pid(self):
        return self._process.pid

    @property
    def is_running(self):
        return self._process.poll() is None

    @property
    def exit_code(self):
        """Its exit code, or the negative number of the signal that ended it; None while it runs."""
        return self._process.poll()

    def line(self):
        """Return the next line it says."""
        said = b""
        give_up = time.monotonic() + PATIENCE
        while not said.endswith(b"\n"):
            ready, _, _ = select.select([self._process.stdout], [], [], 1.0)
            read = os.read(self._process.stdout.fileno(), 1) if ready else None
            if read == b"" or time.monotonic() > give_up:
                raise RigError(f"{self.name} says nothing; {self._errors.read_text()[-2000:]}")
            said += read or b""
        return said.decode().strip()

    def say(self, line):
        """Tell it something, and do not wait until it is done."""
        self._process.stdin.write(f"{line}\n".encode())

    def tell(self, line):
        """Tell it something, and return when it is done."""
        self.say(line)
        answer = self.line()
        if answer != line:
            raise RigError(f"{self.name} was told {line!r} and answered {answer!r}")

    def signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def end(self):
        """Kill it, frozen or not, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


class Rig:
    """A control service, and what is started beside it."""

    def __init__(self, network=LOCAL):
        self.network = network
        """Where instances with an address of their own stand."""
        self.control = ""
        """Where the control service listens, once it has."""
        self._exits = contextlib.ExitStack()

    def __enter__(self):
        with contextlib.ExitStack() as exits:
            self.folder = Path(exits.enter_context(tempfile.TemporaryDirectory()))
            exits.enter_context(self.network)
            self.environment = {
                **{key: value for key, value in os.environ.items() if "MESHRPC" not in key},
                "MESHRPC_STATE_DIR": str(self.folder),
                "GRPC_VERBOSITY": "NONE",
            }
            self.start_control()
            exits.callback(self.end_control)
            self.environment["MESHRPC_CONTROL"] = self.control
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *error):
        self._exits.close()

    def start_control(self):
        """Start the control service: where it was, with what it knew, if it has been before."""
        port = self.control.rpartition(":")[2] or free_port()
        ports = ("--listen", f"{self.network.anywhere}:{port}", "--http", "127.0.0.1:0")
        store = ("--store", f"sqlite:{self.folder / 'control.db'}", "--insecure")
        self.control_process = Process(
            "control",
            (sys.executable, "-m", "meshrpc", "control", *ports, *store),
            self.folder,
            self.environment,
        )
        try:
            port = re.search(r"grpc \S+:(\d+),", self.control_process.line())[1]
        except BaseException:
            self.control_process.end()
            raise
        self.control = f"{self.network.here}:{port}"

    def end_control(self):
        """Kill the control service."""
        self.control_process.end()

    def restart_control(self):
        """Kill the control service, and start it where it was, with what it knew."""
        self.end_control()
        self.start_control()

    @property
    def membership(self):
        """The settings of a member of the mesh that calls from this process."""
        return {"control": self.control, "state_dir": self.folder}

    def apply(self, policy):
        """Apply a policy, written in YAML."""
        documents = [load_document(policy).canonical]
        self._ask("Apply", policy_pb2.ApplyRequest(namespace=NAMESPACE, documents=documents))

    def forget(self, service):
        """Delete the policy of a service."""
        self._ask("Delete", policy_pb2.DeletePolicyRequest(namespace=NAMESPACE, service=service))

    def _ask(self, method, request):
        with grpc.insecure_channel(self.control) as channel:
            ask = getattr(policy_pb2_grpc.PolicyStoreStub(channel), method)
            ask(request, timeout=PATIENCE, wait_for_ready=True)

    def fleet(self, service, count=4, *, wired=False, apart=0, **options):
        """Start a service of `count` instances and return when all are registered.

        `wired`: each behind a TCP proxy. `apart`: so many of them in the network of the rig, not on
        loopback. `options`: see `Victim`.
        """
        wires = None
        ports = []
        if wired:
            command = (sys.executable, "-m", "tests.faults.wires", str(count))
            wires = Process(f"{service}-wires", command, self.folder, self.environment)
            self._exits.callback(wires.end)
            ports = wires.line().split()
        victims = []
        for number in range(count):
            place = self.network if number < apart else LOCAL
            victim = Victim(self, service, number, place, **options)
            if wires is not None:
                victim.wire = Wire(wires, number, ports[number])
                wires.tell(f"{number} {victim.listen}")
            self._exits.callback(victim.close)
            victim.launch()
            victims.append(victim)
        for victim in victims:
            victim.wait()
        return Fleet(self, service, victims)


@dataclass(frozen=True, slots=True)
class Wire:
    """The proxy that an instance's connections come through."""

    process: Process
    number: int
    port: str

    def follow(self, fault):
        self.process.tell(f"{self.number} {fault}")


@dataclass(frozen=True, slots=True)
class Execution:
    """A handler that started."""

    at: float
    victim: str
    method: str
    arm: str
    call: str


class Victim:
    """An instance.

    `calls`: the service that each of its handlers calls. `environment`: what its process is started
    with besides. `lease`: seconds of its lease, if not the usual ones. `renames`: whether it has
    another id each time it is started.
    """

    def __init__(
        self,
        rig,
        service,
        number,
        place=LOCAL,
        *,
        calls=None,
        environment=None,
        lease=None,
        renames=False,
    ):
        self.id = self._name = f"{service}-{number + 1}"
        self.place = place
        self.wire = None
        self._rig = rig
        self._service = service
        self._calls = calls
        self._lease = lease
        self._renames = renames
        self._launches = 0
        self._environment = {**rig.environment, **(environment or {})}
        self._log = rig.folder / f"{self.id}.calls"
        self._log.touch()
        self._process = None
        self._is_frozen = False
        self.listen = f"{place.there}:{free_port()}"

    def __repr__(self):
        return f"<Victim {self.id} {self.address}>"

    @property
    def address(self):
        """Where callers dial it."""
        return self.listen if self.wire is None else f"127.0.0.1:{self.wire.port}"

    @property
    def is_running(self):
        return self._process is not None and self._process.is_running

    def launch(self):
        """Start its process; `wait` returns when it is registered."""
        if self._process is not None:
            self._process.end()
            self._launches += 1
            if self._renames:
                self.id = f"{self._name}.{self._launches}"
        command = [sys.executable, "-m", "tests.faults.victim", self._service, self.id, self._log]
        command += ["--listen", self.listen, "--advertise", self.address]
        if self._calls is not None:
            command += ["--calls", self._calls]
        if self._lease is not None:
            command += ["--lease", str(self._lease)]
        self._process = Process(
            self.id, [*self.place.entering, *command], self._rig.folder, self._environment
        )

    def wait(self):
        said = self._process.line()
        if said != "ready":
            raise RigError(f"{self.id} said {said!r}")

    async def start(self):
        """Start it again, where it was."""
        self.launch()
        await asyncio.to_thread(self.wait)

    async def behave(self, word):
        """Have its handlers `work`, `fail`, `hang`, `block` or be `slow` from now on."""
        await asyncio.to_thread(self._process.tell, word)

    async def connect(self, fault):
        """Let `blackhole`, `refuse` or `none` happen to its connections from now on."""
        await asyncio.to_thread(self.wire.follow, fault)

    def kill(self):
        self._process.signal(signal.SIGKILL)

    def freeze(self):
        self._is_frozen = True
        self._process.signal(signal.SIGSTOP)

    def thaw(self):
        self._is_frozen = False
        self._process.signal(signal.SIGCONT)

    def close(self):
        if self._process is not None:
            self._process.end()

    def heal(self):
        """Have it as it was at first, as far as it runs at all."""
        if self._is_frozen:
            self.thaw()
        if self.wire is not None:
            self.wire.follow("none")
        if self.is_running:
            self._process.tell("work")
        else:
            self.launch()
            self.wait()

    def executions(self):
        """Return what its handlers were called for, in order."""
        for line in self._log.read_text().splitlines():
            at, method, arm, call = line.split()
            yield Execution(float(at), self.id, method, arm, call)


class Fleet:
    """The instances of one service."""

    def __init__(self, rig, service, victims):
        self.rig = rig
        self.service = service
        self.victims = victims
        self.has_policy = False
        """Whether there is one for it that its callers should have heard of."""

    def __iter__(self):
        return iter(self.victims)

    @contextlib.contextmanager
    def following(self, policy):
        """Let callers follow a policy, written in YAML without its first two lines, for a block."""
        document = f"schema: meshrpc.policy/v1\nservice: {self.service}\n{textwrap.dedent(policy)}"
        self.rig.apply(document)
        self.has_policy = True
        try:
            yield
        finally:
            self.has_policy = False
            self.rig.forget(self.service)

    def __getitem__(self, number):
        return self.victims[number]

    @property
    def addresses(self):
        return [victim.address for victim in self.victims]

    async def behave(self, word):
        """Have all of them behave so."""
        await asyncio.gather(*(victim.behave(word) for victim in self.victims))

    def heal(self):
        """Have all as they were at first."""
        for victim in self.victims:
            victim.heal()

    def executions(self, since=0.0):
        """Return every execution from `since` on, ordered by time."""
        found = [each for victim in self.victims for each in victim.executions()]
        return sorted((each for each in found if each.at >= since), key=lambda each: each.at)
