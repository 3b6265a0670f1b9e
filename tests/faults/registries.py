"""Rigs whose registry can be taken away: the embedded one, and a real Consul.

Services reach the registry through one gate, callers through another, so that either can be cut off
from it. A rig has four `instances`; `spare` is one more, which serves and is registered by nobody but
the tests; `second` is a process that calls them all the time, beside the caller that the load in the
tests' own process is.
"""

import asyncio
import contextlib
import json
import shutil
import sys

import meshrpc
from meshrpc.errors import RegistryError
from meshrpc.registry.instance import Instance, State
from tests.consul import ConsulServer
from tests.faults.rig import PATIENCE, Process, Rig, RigError, Victim

SERVICE = "target"
COUNT = 4
GATES = SERVICES, CALLERS = 0, 1
"""The gates, by whom they are for."""
RATE = 75.0
"""Calls a second from the tests' own process; the second caller makes a third of that besides."""
DEADLINE = 2.0
"""Seconds: as many as let a busy machine answer, and too few to wait until an outage is over."""
LOOK_EVERY = 0.05


class RegistryRig(Rig):
    """A registry, four instances, and callers. `lease`: seconds of leases, if not the usual ones."""

    kind = ""
    garbage = ()
    """What the registry can be made to answer, as `garbage.py` calls it."""

    def __init__(self, lease=None):
        super().__init__()
        self._lease = lease
        self._incarnation = 0

    def __repr__(self):
        return f"<{type(self).__name__} at {self.address}>"

    @property
    def address(self):
        """Where the registry listens."""
        raise NotImplementedError

    def settings(self, address):
        """Return the settings of a member whose registry is there."""
        raise NotImplementedError

    def kill(self):
        """End the registry at once."""
        raise NotImplementedError

    def start(self):
        """Start it where it was, with what it kept, and return when it answers."""
        raise NotImplementedError

    def wipe(self):
        """Remove what it keeps, while it does not run."""
        raise NotImplementedError

    def start_first(self, exits):
        """Start what is needed besides a control service, before anybody else is."""

    def __enter__(self):
        super().__enter__()
        try:
            self._open()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _open(self):
        exits = self._exits
        self.start_first(exits)
        self.is_running = True
        self._gates, said = self._beside("gates", str(len(GATES)))
        self._ports = [int(port) for port in said.split()]
        self._garbage, said = self._beside("garbage")
        self._nonsense = dict(pair.split("=") for pair in said.split())
        for gate in GATES:
            self.gate(gate, f"to {self.address}")
        self.spare = Victim(self, SERVICE, COUNT, environment={"MESHRPC_REGISTRY": "memory:"})
        exits.callback(self.spare.close)
        self.spare.launch()
        self.instances = self.fleet(
            SERVICE,
            COUNT,
            environment=self._gated(SERVICES),
            lease=self._lease,
            renames=True,  # as real ones, which make up an id of their own each time
        )
        self.spare.wait()
        self.second = None
        exits.callback(lambda: self.second and self.second.end())
        self.start_second()

    def _beside(self, name, *arguments):
        command = (sys.executable, "-m", f"tests.faults.{name}", *arguments)
        process = Process(name, command, self.folder, self.environment)
        self._exits.callback(process.end)
        return process, process.line()

    def _gated(self, gate):
        settings = self.settings(f"127.0.0.1:{self._ports[gate]}")
        folder = self.folder / ("services" if gate == SERVICES else "callers")
        settings["state_dir"] = str(folder)
        return {f"MESHRPC_{name.upper()}": value for name, value in settings.items()}

    @property
    def membership(self):
        """The settings of a caller in this process; as `second`, it has the callers' gate."""
        settings = self.settings(f"127.0.0.1:{self._ports[CALLERS]}")
        return {**settings, "state_dir": self.folder / "here"}

    @property
    def ids(self):
        """Those of the instances."""
        return {victim.id for victim in self.instances}

    def gate(self, number, word):
        """Tell a gate something, see `gates.py`."""
        self._gates.tell(f"{number} {word}")

    def gates(self, word):
        """Tell both."""
        for gate in GATES:
            self.gate(gate, word)

    def answer(self, kind):
        """Let garbage of a kind answer whoever asks the registry; None: the registry itself."""
        self.gates(f"to {self.address if kind is None else f'127.0.0.1:{self._nonsense[kind]}'}")

    def take_down(self):
        """Kill the registry; its address refuses connections."""
        self.gates("refuse")
        self.kill()
        self.is_running = False

    def bring_back(self, *, empty=False):
        """Start it again, and return when it answers."""
        if empty:
            self.wipe()
        self.start()
        self.is_running = True
        self.gates("pass")

    def start_second(self):
        """Start the second caller, again if it runs; return what it says of its first call."""
        if self.second is not None:
            self.second.end()
        environment = {**self.environment, **self._gated(CALLERS)}
        load = ("--rate", str(RATE / 3), "--deadline", str(DEADLINE))
        command = (sys.executable, "-m", "tests.faults.caller", SERVICE, *load)
        self.second = Process("second", command, self.folder, environment)
        return self.second.line()

    def second_since(self, since):
        """Return what became of the second caller's calls since then, as `caller.py` says it."""
        return self._second_says(f"since {since}")

    def second_sees(self):
        """Return the state of each instance that the second caller is connected to."""
        return self._second_says("sees")

    def _second_says(self, line):
        self.second.say(line)
        return json.loads(self.second.line())

    def mend(self):
        """Have all as it was at first."""
        for gate in GATES:
            self.gate(gate, f"to {self.address}")
        if not self.is_running:
            self.bring_back()
        self.gates("pass")
        self.instances.heal()
        if not self.second.is_running:
            self.start_second()

    async def mended(self):
        """Return when all is as it was at first, and all are registered."""
        await asyncio.to_thread(self.mend)
        async with self.observer() as observer:
            await observer.listed(PATIENCE)
        for gate in GATES:
            if not await self.answers(gate, PATIENCE):
                raise RigError(f"{self}: nothing gets through gate {gate}")

    async def answers(self, gate, within):
        """Return whether somebody behind a gate is told in time of all instances."""
        settings = self.settings(f"127.0.0.1:{self._ports[gate]}")
        async with meshrpc.Mesh("probe", **settings, state_dir=self.folder / "probe") as mesh:
            try:
                async with asyncio.timeout(within):
                    found = await mesh.registry.instances(SERVICE)
            except (RegistryError, TimeoutError):
                return False
        return {each.id for each in found} >= self.ids

    @contextlib.asynccontextmanager
    async def observer(self):
        """Give somebody who asks the registry itself, through no gate."""
        settings = {**self.settings(self.address), "state_dir": self.folder / "observer"}
        async with meshrpc.Mesh("observer", **settings) as mesh:
            yield Observer(self, mesh.registry)

    def newcomer(self):
        """Return the record of the spare instance, each time as another incarnation."""
        self._incarnation += 1
        return Instance(
            id=self.spare.id,
            service=SERVICE,
            address=self.spare.address,
            incarnation=self._incarnation,
        )


class Observer:
    """Looks into the registry, and changes it."""

    def __init__(self, rig, registry):
        self._rig = rig
        self._registry = registry

    async def listed(self, within):
        """Return when all instances are registered as active."""
        active = set()
        try:
            async with asyncio.timeout(within):
                while not active >= self._rig.ids:
                    await asyncio.sleep(LOOK_EVERY)
                    with contextlib.suppress(RegistryError):
                        listed = await self._registry.instances(SERVICE)
                        active = {each.id for each in listed if each.state is State.ACTIVE}
        except TimeoutError:
            raise RigError(f"{self._rig} lists {active} after {within} s") from None

    async def register(self, instance):
        await self._insist(self._registry.register, instance)

    @property
    def acknowledges(self):
        return self._registry.acknowledges

    async def drain(self, instance):
        await self._insist(self._registry.drain, instance)

    async def deregister(self, instance):
        await self._insist(self._registry.deregister, instance)

    async def _insist(self, ask, instance):
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    return await ask(instance)
                except RegistryError:
                    await asyncio.sleep(LOOK_EVERY)


class EmbeddedRig(RegistryRig):
    """The control service's own registry; with it policies go through the gates."""

    kind = "embedded"
    garbage = ("html", "random", "unimplemented", "internal", "junk")

    @property
    def address(self):
        return self.control

    def settings(self, address):
        return {"control": address, "registry": "mesh:"}

    def kill(self):
        self.end_control()

    def start(self):
        self.start_control()

    def wipe(self):
        for file in self.folder.glob("control.db*"):
            file.unlink()


class ConsulRig(RegistryRig):
    """A Consul that keeps its data, and a control service beside it for policies."""

    kind = "consul"
    garbage = ("html", "truncated", "cut", "error", "types", "random")

    def __init__(self, binary, lease=None):
        super().__init__(lease)
        self._binary = binary

    @property
    def address(self):
        return self._consul.address

    def settings(self, address):
        return {"control": self.control, "registry": f"consul://{address}"}

    def start_first(self, exits):
        self._data = self.folder / "consul"
        # The server of the other tests is one that keeps nothing: `consul agent -dev ...`.
        keeping = self.folder / "keeping-consul"
        server = f"-server -bootstrap-expect=1 -data-dir={self._data}"
        fast = "-hcl='performance { raft_multiplier = 1 }'"
        keeping.write_text(f'#!/bin/sh\nshift 2\nexec {self._binary} agent {server} {fast} "$@"\n')
        keeping.chmod(0o700)
        self._consul = exits.enter_context(ConsulServer(keeping))

    def kill(self):
        self._consul.kill()

    def start(self):
        self._consul.restart()

    def wipe(self):
        shutil.rmtree(self._data)
