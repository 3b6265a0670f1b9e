"""What is kept on disk while a process runs, and a start while control and registry are away."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import threading
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import pytest

import meshrpc
from meshrpc.control.server import ControlServer
from meshrpc.last_known import LastKnown, keeper, private_file
from meshrpc.load_report import LoadReport
from meshrpc.registry.instance import Instance, State
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.testing import LocalMesh, VirtualClock
from meshrpc.v1 import policy_pb2, policy_pb2_grpc
from tests.echo import PLAIN, EchoServer

PATIENCE = 10.0
ONE = Instance(id="payment-1", service="payment", address="10.0.0.1:50051", pid=7, incarnation=3)
TWO = Instance(id="payment-2", service="payment", address="10.0.0.2:50051", zone="eu")
BUSY = LoadReport(utilization=0.5, rps=30.0)
FULL = OSError(errno.ENOSPC, "No space left on device")


class Disk:
    """Every file that is replaced: its name, and whether that fails."""

    def __init__(self, monkeypatch):
        self.written = []
        self.failing = None
        self.threads = set()
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._replace = private_file.replace
        monkeypatch.setattr(private_file, "replace", self._note)

    def _note(self, path, data):
        self.threads.add(threading.current_thread())
        try:
            if self.failing is not None:
                raise self.failing
            self._replace(path, data)
        finally:
            self.written.append(path.name)
            self._loop.call_soon_threadsafe(self._changed.set)

    async def writes(self, count):
        """Wait until so many writes were tried."""
        async with asyncio.timeout(PATIENCE):
            while len(self.written) < count:
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
async def disk(monkeypatch):
    return Disk(monkeypatch)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "last-known"


async def advance(clock, seconds):
    """Move the clock, once everything that was written is told of."""
    async with asyncio.timeout(PATIENCE):
        while not clock._timers:  # noqa: ASYNC110 - it is the thread that is waited for
            await asyncio.sleep(0)
    await clock.advance(seconds)


# What is kept


async def test_instances_and_policies_are_there_for_the_next_process(folder):
    """Held ones as active, draining ones not at all, loads not; ordered by id."""
    leaving = replace(TWO, id="payment-0", state=State.DRAINING)
    async with LastKnown(folder) as last_known:
        held = replace(TWO, state=State.HELD, load=BUSY)
        last_known.keep_instances("payment", (leaving, held, ONE))
        last_known.keep_policy("payment", '{"a": 1}')
        last_known.keep_policy("*", "{}")
    after = LastKnown(folder)
    assert after.instances("payment").value == (ONE, TWO)
    assert after.policy("payment").value == '{"a": 1}'
    assert after.policy("*").value == "{}"
    assert after.policy("order") is None
    assert repr(after) == f"<LastKnown {folder} noted=0 due=0>"


async def test_what_was_noted_is_known_before_it_is_written(folder):
    """A caller that comes back at once finds the newest."""
    async with LastKnown(folder) as last_known:
        last_known.keep_policy("payment", "old")
        last_known.keep_policy("payment", "new")
        last_known.keep_instances("payment", (replace(ONE, state=State.HELD),))
        assert last_known.policy("payment").value == "new"
        assert last_known.instances("payment").value == (ONE,)
        last_known.keep_policy("payment", None)
        assert last_known.policy("payment") is None


async def test_a_policy_that_is_deleted_is_forgotten(folder):
    """Nobody goes by it again, in this process or the next."""
    async with LastKnown(folder) as last_known:
        last_known.keep_policy("payment", "{}")
    async with LastKnown(folder) as last_known:
        last_known.keep_policy("payment", None)
    assert LastKnown(folder).policy("payment") is None
    assert not [*folder.iterdir()]


async def test_having_no_instances_is_not_kept(folder):
    """Nor are only draining ones: the last that took calls stay."""
    async with LastKnown(folder) as last_known:
        last_known.keep_instances("payment", (ONE,))
    async with LastKnown(folder) as last_known:
        last_known.keep_instances("payment", ())
        last_known.keep_instances("order", (replace(ONE, state=State.DRAINING),))
        assert last_known.instances("payment").value == (ONE,)
    assert LastKnown(folder).instances("payment").value == (ONE,)
    assert LastKnown(folder).instances("order") is None


async def test_of_a_set_that_may_be_partial_nobody_is_dropped(folder):
    """Those that a registry lists which just started come to those that were known before."""
    moved = replace(TWO, address="10.0.0.9:50051")
    three = replace(ONE, id="payment-3")
    async with LastKnown(folder) as last_known:
        last_known.keep_instances("payment", (ONE,), is_partial=True)
    async with LastKnown(folder) as last_known:
        last_known.keep_instances("payment", (TWO,), is_partial=True)
        assert last_known.instances("payment").value == (ONE, TWO)
    async with LastKnown(folder) as last_known:
        last_known.keep_instances("payment", (moved, three), is_partial=True)
    assert LastKnown(folder).instances("payment").value == (ONE, moved, three)
    async with LastKnown(folder) as last_known:
        last_known.keep_instances("payment", (replace(ONE, state=State.DRAINING), three))
    assert LastKnown(folder).instances("payment").value == (three,)
    async with LastKnown(folder) as last_known:
        leaving = replace(three, state=State.DRAINING)
        last_known.keep_instances("payment", (ONE, leaving), is_partial=True)
    assert LastKnown(folder).instances("payment").value == (ONE,)


async def test_the_whole_set_replaces_a_partial_one_with_the_same_instances(folder, disk):
    """Whoever has not come back when the registry has recovered is gone."""
    async with LastKnown(folder) as last_known:
        last_known.keep_instances("payment", (ONE, TWO))
    clock = VirtualClock()
    async with LastKnown(folder, clock=clock) as last_known:
        last_known.keep_instances("payment", (ONE,), is_partial=True)
        last_known.keep_policy("payment", "{}")
        await disk.writes(2)
        assert LastKnown(folder).instances("payment").value == (ONE, TWO)
        last_known.keep_instances("payment", (ONE,))
    assert LastKnown(folder).instances("payment").value == (ONE,)


async def test_a_changed_load_is_no_reason_to_write(folder, disk):
    """Nor is what the file says already; a changed weight is."""
    clock = VirtualClock()
    async with LastKnown(folder, clock=clock) as last_known:
        last_known.keep_instances("payment", (ONE, TWO))
        await disk.writes(1)
        last_known.keep_instances("payment", (replace(ONE, load=BUSY), TWO))
        await advance(clock, 1.0)
    async with LastKnown(folder) as last_known:
        last_known.keep_instances("payment", (TWO, replace(ONE, load=BUSY)))
    assert disk.written == ["payment.instances"]
    async with LastKnown(folder) as last_known:
        last_known.keep_instances("payment", (replace(ONE, weight=3), TWO))
    assert disk.written == ["payment.instances"] * 2


async def test_a_file_is_written_once_a_second_at_most_by_another_thread(folder, disk):
    """Changes in between come together in the next write; the loop never waits for the disk."""
    clock = VirtualClock()
    async with LastKnown(folder, clock=clock) as last_known:
        last_known.keep_policy("payment", "0")
        await disk.writes(1)
        for number in range(1, 50):
            last_known.keep_policy("payment", str(number))
        await advance(clock, 0.9)
        assert len(disk.written) == 1
        assert repr(last_known).endswith("noted=1 due=1>")  # nor is it on its way
        await advance(clock, 0.1)
        await disk.writes(2)
        assert LastKnown(folder).policy("payment").value == "49"
    assert len(disk.written) == 2
    assert threading.current_thread() not in disk.threads


async def test_what_is_due_is_written_at_the_end(folder, disk):
    """Also what was noted while another write is under way."""
    async with LastKnown(folder, clock=VirtualClock()) as last_known:
        last_known.keep_policy("payment", "1")
        await disk.writes(1)
        last_known.keep_policy("payment", "2")
    assert LastKnown(folder).policy("payment").value == "2"


async def test_many_processes_that_hear_the_same_write_it_once(folder, disk):
    """And the last one wins where they differ."""
    for _ in range(5):
        async with LastKnown(folder) as last_known:
            last_known.keep_instances("payment", (ONE, TWO))
    assert len(disk.written) == 1
    async with LastKnown(folder) as one, LastKnown(folder) as other:
        one.keep_instances("payment", (ONE,))
        await disk.writes(2)
        other.keep_instances("payment", (TWO,))
    assert LastKnown(folder).instances("payment").value == (TWO,)


@pytest.mark.parametrize("at", [0, 40, -1])
async def test_a_damaged_file_is_replaced_by_the_next_news(folder, at):
    """Wherever it is damaged, also if its first line is as it was."""
    async with LastKnown(folder) as last_known:
        last_known.keep_instances("payment", (ONE,))
    file = folder / "payment.instances"
    whole = bytearray(file.read_bytes())
    whole[at] ^= 1
    file.write_bytes(whole)
    async with LastKnown(folder) as last_known:
        last_known.keep_instances("payment", (ONE,))
    assert LastKnown(folder).instances("payment").value == (ONE,)


async def test_a_full_disk_is_warned_of_once_and_tried_again(folder, disk, caplog):
    """Nothing but the file suffers, and what was to be written is not lost."""
    caplog.set_level(logging.INFO, "meshrpc.last_known")
    clock = VirtualClock()
    async with LastKnown(folder, clock=clock) as last_known:
        disk.failing = FULL
        last_known.keep_policy("payment", "{}")
        await disk.writes(1)
        await advance(clock, 30.0)
        await disk.writes(2)
        disk.failing = None
        await advance(clock, 30.0)
        await disk.writes(3)
    warning, back = caplog.records
    assert f"in {folder}: No space left on device" in warning.getMessage()
    assert "is kept in" in back.getMessage()
    assert LastKnown(folder).policy("payment").value == "{}"


def test_a_disk_that_hangs_does_not_keep_a_process_from_ending(folder, monkeypatch):
    """It is given two seconds, here less; nobody waits for the thread."""
    hangs, answers, ended = threading.Event(), threading.Event(), threading.Event()

    def hang(*_):
        hangs.set()
        answers.wait(60)

    monkeypatch.setattr(private_file, "replace", hang)
    monkeypatch.setattr(keeper, "CLOSE_WITHIN", 0.1)

    async def use():
        async with LastKnown(folder) as last_known:
            last_known.keep_instances("payment", [ONE])
            while not hangs.is_set():  # noqa: ASYNC110 - a thread's event
                await asyncio.sleep(0.01)

    def process():
        asyncio.run(use())
        ended.set()

    running = threading.Thread(target=process)
    running.start()
    try:
        assert ended.wait(PATIENCE)
    finally:
        answers.set()
        running.join()


async def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path, caplog):
    """Here a file is in its place; the block ends all the same."""
    (tmp_path / "state").touch()
    async with LastKnown(tmp_path / "state" / "last-known") as last_known:
        last_known.keep_policy("payment", "{}")
        last_known.keep_instances("payment", (ONE,))
        assert last_known.policy("payment").value == "{}"
    (record,) = caplog.records
    assert "cannot keep on disk what is known of the mesh" in record.getMessage()


# What is used


V1_ALONE = """
{"schema": "meshrpc.policy/v1", "service": "echo",
 "subsets": {"v1": {"version": "v1"}, "v2": {"version": "v2"}},
 "routes": [{"name": "all", "split": [{"subset": "v1", "weight": 100}]}]}
"""
V2_ALONE = V1_ALONE.replace('"subset": "v1"', '"subset": "v2"')


async def apply(address, document):
    async with grpc.aio.insecure_channel(address) as channel:
        request = policy_pb2.ApplyRequest(documents=[document])
        await policy_pb2_grpc.PolicyStoreStub(channel).Apply(request, timeout=PATIENCE)


@asynccontextmanager
async def control(address="127.0.0.1:0"):
    """Yield a control service that has been there for a while: whom it lists is all there is."""
    clock = VirtualClock()
    async with ControlServer(address, "127.0.0.1:0", clock=clock) as server:
        await clock.advance(60)
        yield server


@asynccontextmanager
async def registered(mesh, server, version):
    async with mesh.register("echo", f"127.0.0.1:{server.port}", version=version):
        yield


async def learn(address, state, v1, v2):
    """Let a script call a service of two versions and end; return when its instances are gone."""
    await apply(address, V1_ALONE)
    async with (
        meshrpc.Mesh("servers", control=address, state_dir=state / "other") as servers,
        registered(servers, v1, "v1"),
        registered(servers, v2, "v2"),
        meshrpc.Mesh("shell", control=address, state_dir=state) as mesh,
    ):
        call = mesh.channel("echo").unary_unary(PLAIN)
        async with asyncio.timeout(PATIENCE):
            await call(b"")
            while not mesh.destinations[0].table.subsets:
                await call(b"")


@asynccontextmanager
async def blackhole(port):
    """Take connections to a port and never say a word."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.listen(0)
        yield


@asynccontextmanager
async def refused(_port):
    yield


@pytest.mark.parametrize("away", [refused, blackhole])
async def test_a_start_without_control_and_registry_goes_by_what_was_last_known(
    tmp_path, caplog, away
):
    """Its first call is answered at once, by an instance that the policy allows."""
    async with EchoServer("v1") as v1, EchoServer("v2") as v2:
        async with control() as server:
            address = server.address
            await learn(address, tmp_path, v1, v2)
        v2.seen.clear()
        async with (
            away(int(address.rpartition(":")[2])),
            meshrpc.Mesh("shell", control=address, state_dir=tmp_path) as mesh,
        ):
            call = mesh.channel("echo").unary_unary(PLAIN)
            async with asyncio.timeout(10):
                assert await call(b"") == b"@v1"
            for _ in range(20):
                assert await call(b"") == b"@v1"
    assert not v2.seen
    said = [record.getMessage() for record in caplog.records]
    assert any(text.startswith("using 2 instances of echo as they were ") for text in said)


async def test_a_policy_last_known_holds_until_control_speaks(tmp_path, caplog):
    """Also when it speaks of none; the log says how old it is."""
    caplog.set_level(logging.INFO, "meshrpc.policies")
    async with EchoServer("v1") as v1, EchoServer("v2") as v2:
        async with control() as server:
            address = server.address
            await learn(address, tmp_path, v1, v2)
        told = []
        changed = asyncio.Event()

        def on_policy(policy):
            told.append(len(policy.routes))
            changed.set()

        async with meshrpc.Mesh("shell", control=address, state_dir=tmp_path) as mesh:
            mesh.on_policy("echo", on_policy)
            assert told == [1]  # known before there is a stream
            async with control(address), asyncio.timeout(PATIENCE):
                while told[-1]:
                    changed.clear()
                    await changed.wait()
            assert set(told[:-1]) == {1}
        async with meshrpc.Mesh("shell", control=address, state_dir=tmp_path) as mesh:
            mesh.on_policy("echo", on_policy)
            assert told[-1] == 0
    assert "the policy of echo is that of " in caplog.text


async def test_namespaces_and_control_services_do_not_mix(tmp_path):
    """What one of them said is nothing to the other."""
    async with EchoServer("v1") as v1, EchoServer("v2") as v2, control() as server:
        await learn(server.address, tmp_path, v1, v2)
        for settings in (
            {"control": server.address, "namespace": "staging"},
            {"control": "127.0.0.1:1"},
        ):
            async with meshrpc.Mesh("shell", state_dir=tmp_path, **settings) as mesh:
                told = []
                mesh.on_policy("echo", told.append)
                assert not told[0].routes


@pytest.mark.parametrize(
    "settings",
    [
        {"registry": "memory:"},
        {"registry": MemoryRegistry()},
        {"registry": "static:echo={address}"},
    ],
)
async def test_registries_at_hand_leave_nothing_on_disk(tmp_path, settings):
    """Without control there is no policy either, so the folder is not even made."""
    state = tmp_path / "state"
    async with EchoServer("one") as one:
        address = f"127.0.0.1:{one.port}"
        if isinstance(url := settings["registry"], str):
            settings = {"registry": url.format(address=address)}
        async with meshrpc.Mesh("shell", control="none", state_dir=state, **settings) as mesh:
            if "static" not in str(url):
                await mesh.registry.register(one.instance)
            assert await mesh.channel("echo").unary_unary(PLAIN)(b"") == b"@one"
    assert not state.exists()


async def test_a_mesh_of_tests_leaves_nothing_on_disk(tmp_path, monkeypatch):
    """Wherever the state of this user's processes is."""
    monkeypatch.setenv("MESHRPC_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    service = meshrpc.Service("echo")
    async with LocalMesh() as mesh:
        await mesh.serve(service)
        mesh.policy(V1_ALONE)
        mesh.client.on_policy("echo", lambda policy: None)
    assert not [*tmp_path.iterdir()]
