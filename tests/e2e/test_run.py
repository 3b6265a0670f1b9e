"""Claims about `meshrpc run`, held against real processes.

Workers inherit the supervisor's stderr: its end is the proof that every one of them is gone, which
no look at process ids can give (a zombie still has one).
"""

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
import textwrap
from dataclasses import dataclass

import grpc.aio
import pytest

from tests.ports import free_port

pytestmark = pytest.mark.process

PATIENCE = 30.0
"""Seconds until a test gives up on something that should happen."""

AT_ONCE = 10.0
"""Seconds: less than a service gives its handlers to end."""

SERVICE = """
    import asyncio, os, sys, time
    import grpc
    from meshrpc.server.service import Service

    async def pid(request, context):
        return str(os.getpid()).encode()

    async def hang(request, context):
        print("a handler hangs", file=sys.stderr, flush=True)
        await asyncio.Event().wait()

    async def block(request, context):
        print("a handler blocks", file=sys.stderr, flush=True)
        time.sleep(3600)

    service = Service("echo")
    service.add_generic_rpc_handlers((
        grpc.method_handlers_generic_handler("test.Echo", {
            "Pid": grpc.unary_unary_rpc_method_handler(pid),
            "Hang": grpc.unary_unary_rpc_method_handler(hang),
            "Block": grpc.unary_unary_rpc_method_handler(block),
        }),
    ))
"""

READY = re.compile(
    r"meshrpc\.workers: (?P<service>\S+) worker (?P<number>\d+) ready at (?P<address>\S+) "
    r"\(pid (?P<pid>\d+), (?P<id>\S+)\)$"
)


@dataclass(frozen=True)
class Ready:
    """What the supervisor says of a worker that serves."""

    number: int
    address: str
    pid: int
    id: str


class Run:
    """A running `meshrpc run`, and what it has written to stderr."""

    def __init__(self, process):
        self.process = process
        self.lines = []

    async def until(self, pattern):
        """Return the match of the first further line that has one."""
        async with asyncio.timeout(PATIENCE):
            while line := (await self.process.stderr.readline()).decode():
                self.lines.append(line.rstrip("\n"))
                if match := re.search(pattern, self.lines[-1]):
                    return match
        raise AssertionError(f"no line has {pattern!r}:\n" + "\n".join(self.lines))

    async def ready(self, count=1):
        """Return the next `count` workers to become ready, by their numbers."""
        matches = [await self.until(READY) for _ in range(count)]
        workers = [Ready(int(m["number"]), m["address"], int(m["pid"]), m["id"]) for m in matches]
        return {worker.number: worker for worker in workers}

    async def end(self):
        """Wait until supervisor and workers are all gone; return the exit code."""
        async with asyncio.timeout(PATIENCE):
            rest = (await self.process.stderr.read()).decode()
            self.lines += rest.splitlines()
            return await self.process.wait()


@pytest.fixture
async def start(tmp_path):
    """Start `meshrpc run` with arguments, in a folder whose module `echo` has a service."""
    (tmp_path / "echo.py").write_text(textwrap.dedent(SERVICE))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MESHRPC_")},
        "MESHRPC_REGISTRY": "memory:",
        "MESHRPC_CONTROL": "none",
        "MESHRPC_STATE_DIR": str(tmp_path / "state"),
    }
    runs = []

    async def start(*arguments, program=("-m", "meshrpc", "run")):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *program, *arguments),
            cwd=tmp_path,
            env=environment,
            stderr=asyncio.subprocess.PIPE,
        )
        runs.append(Run(process))
        return runs[-1]

    yield start
    for run in runs:
        for number in (signal.SIGTERM, signal.SIGTERM):
            with contextlib.suppress(ProcessLookupError):
                run.process.send_signal(number)
        await run.end()


async def call(address, method):
    # A connection of its own for each call: the default is one per address and process.
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        return await channel.unary_unary(f"/test.Echo/{method}")(b"", timeout=PATIENCE)


async def test_each_worker_is_an_instance_with_its_own_port(start):
    """Three workers serve at three addresses, each answering from its own process."""
    run = await start("echo:service", "--workers", "3")
    workers = await run.ready(3)
    assert sorted(workers) == [1, 2, 3]
    assert len({worker.address for worker in workers.values()}) == 3
    assert len({worker.id for worker in workers.values()}) == 3
    for worker in workers.values():
        assert int(await call(worker.address, "Pid")) == worker.pid


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_signal_ends_all_workers_cleanly(start, number):
    """After SIGTERM, or Ctrl-C's SIGINT, every process is gone and the exit code is 0."""
    run = await start("echo:service", "--workers", "2")
    await run.ready(2)
    run.process.send_signal(number)
    assert await run.end() == 0
    assert not any("Traceback" in line for line in run.lines)


async def test_a_killed_worker_is_replaced(start):
    """A worker ended by SIGKILL comes back as a new process; its neighbour goes on undisturbed."""
    run = await start("echo:service", "--workers", "2")
    before = await run.ready(2)
    os.kill(before[1].pid, signal.SIGKILL)
    await run.until(
        rf"worker 1 \(pid {before[1].pid}\) died: killed by SIGKILL; restarting in 0\.1 s$"
    )
    after = await run.ready()
    assert after[1].pid != before[1].pid
    assert after[1].id != before[1].id
    assert int(await call(after[1].address, "Pid")) == after[1].pid
    assert int(await call(before[2].address, "Pid")) == before[2].pid


async def test_a_worker_that_cannot_start_again_is_tried_until_it_can(start, tmp_path):
    """Once a worker has served, a broken module costs it backoff, not the whole team its life."""
    run = await start("echo:service", "--workers", "2")
    before = await run.ready(2)
    module = tmp_path / "echo.py"
    whole = module.read_text()
    module.write_text("import nowhere\n")
    os.kill(before[1].pid, signal.SIGKILL)
    await run.until(r"worker 1 \(pid \d+\) cannot start: .*nowhere'; restarting in 0\.[0-9] s$")
    assert int(await call(before[2].address, "Pid")) == before[2].pid
    module.write_text(whole)
    assert list(await run.ready()) == [1]


async def test_no_worker_outlives_a_killed_supervisor(start):
    """After a kill -9 of the supervisor the workers drain and end by themselves.

    On Linux even one that was frozen: the supervisor's death wakes it.
    """
    run = await start("echo:service", "--workers", "2")
    workers = await run.ready(2)
    if sys.platform == "linux":
        os.kill(workers[1].pid, signal.SIGSTOP)
    run.process.kill()
    assert await run.end() == -signal.SIGKILL


@pytest.mark.soak
async def test_not_even_a_blocked_worker_outlives_a_killed_supervisor(start):
    """A worker whose event loop is blocked for good ends itself once its time to stop is over."""
    run = await start("echo:service")
    workers = await run.ready()
    blocked = asyncio.create_task(call(workers[1].address, "Block"))
    await run.until("a handler blocks")
    run.process.kill()
    async with asyncio.timeout(60):
        await run.process.stderr.read()
        with pytest.raises(grpc.aio.AioRpcError):
            await blocked


async def test_a_second_signal_ends_hanging_handlers_at_once(start):
    """While a handler keeps a worker from draining, another SIGTERM ends all; exit code 1."""
    run = await start("echo:service")
    workers = await run.ready()
    hanging = asyncio.create_task(call(workers[1].address, "Hang"))
    await run.until("a handler hangs")
    run.process.terminate()
    await run.until("SIGTERM: 1 worker to drain")
    run.process.terminate()
    async with asyncio.timeout(AT_ONCE):
        assert await run.end() == 1
    assert run.lines[-1] == "error: workers ended before they had drained"
    with pytest.raises(grpc.aio.AioRpcError):
        await hanging


async def test_a_worker_that_dies_while_it_drains_is_no_success(start):
    """Calls were lost, so the exit code is 1, although nobody asked for haste."""
    run = await start("echo:service")
    workers = await run.ready()
    hanging = asyncio.create_task(call(workers[1].address, "Hang"))
    await run.until("a handler hangs")
    run.process.terminate()
    await run.until("SIGTERM: 1 worker to drain")
    os.kill(workers[1].pid, signal.SIGKILL)
    assert await run.end() == 1
    assert run.lines[-1] == "error: workers ended before they had drained"
    with pytest.raises(grpc.aio.AioRpcError):
        await hanging


async def test_a_frozen_worker_is_woken_to_stop(start):
    """It drains as the others do, and nobody waits until its time is over."""
    run = await start("echo:service", "--workers", "2")
    workers = await run.ready(2)
    os.kill(workers[1].pid, signal.SIGSTOP)
    run.process.terminate()
    assert await run.end() == 0


@pytest.mark.soak
async def test_a_frozen_worker_is_killed_when_its_time_to_stop_is_over(start, tmp_path):
    """A worker that cannot even run does not keep the supervisor from ending; exit code 1."""
    module = tmp_path / "echo.py"
    module.write_text(module.read_text().replace('Service("echo"', 'Service("echo", grace=0.1'))
    run = await start("echo:service", "--workers", "2")
    workers = await run.ready(2)
    run.process.terminate()
    await run.until("SIGTERM: 2 workers to drain")
    os.kill(workers[1].pid, signal.SIGSTOP)
    await run.until("out of time: 1 worker killed")
    assert await run.end() == 1


async def test_a_crash_loop_backs_off_and_can_be_stopped(start, tmp_path):
    """A worker that dies without a word is tried again ever later, and the log says what it is.

    SIGTERM ends the wait.
    """
    (tmp_path / "crash.py").write_text("import os\nos._exit(3)\n")
    run = await start("crash:service")
    delays = [
        float((await run.until(r"died: exit code 3; restarting in ([0-9.]+) s$"))[1])
        for _ in range(5)
    ]
    assert delays == sorted(delays)
    assert delays[-1] >= 1.2
    await run.until("worker 1 is in a crash loop: 5 deaths within 60 s, the last: exit code 3$")
    run.process.terminate()
    assert await run.end() == 0


async def test_a_reload_replaces_every_worker_or_none(start, tmp_path):
    """SIGHUP: new processes, each ready before its old one leaves; a broken module changes nothing."""
    run = await start("echo:service", "--workers", "2")
    old = await run.ready(2)
    module = tmp_path / "echo.py"
    whole = module.read_text()
    module.write_text("def :\n")
    run.process.send_signal(signal.SIGHUP)
    await run.until("reload failed: the new worker 1 cannot start: .*SyntaxError.* yet stay$")
    for worker in old.values():
        assert int(await call(worker.address, "Pid")) == worker.pid
    module.write_text(whole)
    run.process.send_signal(signal.SIGHUP)
    new = await run.ready(2)
    await run.until("reloaded: every worker is replaced")
    assert not {worker.pid for worker in new.values()} & {worker.pid for worker in old.values()}
    for worker in new.values():
        assert int(await call(worker.address, "Pid")) == worker.pid
    run.process.terminate()
    assert await run.end() == 0


async def test_a_changed_file_is_a_reload(start, tmp_path):
    """With --reload; on a fixed port the old worker leaves before the new one listens there."""
    address = f"127.0.0.1:{free_port()}"
    run = await start("echo:service", "--reload", "--listen", address)
    old = await run.ready()
    with (tmp_path / "echo.py").open("a") as module:
        module.write("# changed\n")
    await run.until(r"echo\.py changed: 1 worker to be replaced")
    await run.until(r"worker 1 \(pid \d+\) leaves its port to the new one")
    new = await run.ready()
    assert new[1].pid != old[1].pid
    assert new[1].address == address
    assert int(await call(address, "Pid")) == new[1].pid


async def test_a_worker_whose_event_loop_is_blocked_is_replaced(start, tmp_path):
    """Its stacks are in the log, down to the line that blocks; callers get another worker."""
    (tmp_path / "impatient.py").write_text(
        "import logging, os, pathlib\n"
        "from meshrpc.workers.supervisor import Supervisor\n"
        "logging.basicConfig(level=logging.INFO, format='%(name)s: %(message)s')\n"
        "Supervisor('echo:service', count=1, folder=pathlib.Path.cwd(), environment=os.environ,\n"
        "           liveness=5.0).run()\n"
    )
    run = await start(program=("impatient.py",))
    old = await run.ready()
    blocked = asyncio.create_task(call(old[1].address, "Block"))
    await run.until(rf"worker 1 \(pid {old[1].pid}\) hangs: no sign of life .* for 5 s; killed$")
    await run.until(r'echo\.py", line \d+ in block$')
    await run.until(rf"worker 1 \(pid {old[1].pid}\) died: killed by SIGKILL; restarting in")
    new = await run.ready()
    assert int(await call(new[1].address, "Pid")) == new[1].pid
    with pytest.raises(grpc.aio.AioRpcError):
        await blocked


async def test_one_port_is_shared_by_the_workers_and_by_nobody_else(start):
    """Clients outside the mesh reach every worker there; a second service is refused the port."""
    address = f"127.0.0.1:{free_port()}"
    run = await start("echo:service", "--workers", "2", "--shared-listen", address)
    workers = await run.ready(2)
    other = await start("echo:service", "--shared-listen", address)
    assert await other.end() == 1
    assert other.lines[-1].startswith(
        f"error: port {address.rpartition(':')[2]} on 127.0.0.1 is in"
    )
    answered = set()
    async with asyncio.timeout(PATIENCE):
        while len(answered) < 2:  # the kernel chooses by the client's port, which is new each time
            answered.add(int(await call(address, "Pid")))
    assert answered == {worker.pid for worker in workers.values()}


@pytest.mark.soak
async def test_a_team_grows_with_its_load_and_shrinks_after_it(start, tmp_path):
    """One worker that is busy gets another beside it, which drains a minute after the load."""
    (tmp_path / "burn.py").write_text(
        "import time\n"
        "import echo, grpc\n"
        "async def burn(request, context):\n"
        "    until = time.thread_time() + 0.02\n"
        "    while time.thread_time() < until: pass\n"
        "    return b''\n"
        "service = echo.service\n"
        "service.add_generic_rpc_handlers((grpc.method_handlers_generic_handler('test.Burn', {\n"
        "    'Burn': grpc.unary_unary_rpc_method_handler(burn)}),))\n"
    )
    run = await start("burn:service", "--workers", "1..2")
    workers = await run.ready()

    async def keep_busy():
        async with grpc.aio.insecure_channel(workers[1].address) as channel:
            burn = channel.unary_unary("/test.Burn/Burn")
            while True:
                # Some are refused: that the worker is overloaded is what this is about.
                calls = (burn(b"", timeout=PATIENCE) for _ in range(4))
                await asyncio.gather(*calls, return_exceptions=True)

    load = asyncio.create_task(keep_busy())
    await run.until(r"scaled from 1 to 2 workers: busy \d+% \(above 75%\)$")
    assert list(await run.ready()) == [2]
    load.cancel()
    await asyncio.gather(load, return_exceptions=True)
    async with asyncio.timeout(120):
        while line := (await run.process.stderr.readline()).decode():
            if re.search(r"scaled from 2 to 1 workers: busy \d+%, and \d+% with one less$", line):
                break
    run.process.terminate()
    assert await run.end() == 0
    assert not any("ended before it had drained" in line for line in run.lines)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["echo"], "'echo': a service is named MODULE:SERVICE, such as"),
        (["./echo.py:service"], "a service is named MODULE:SERVICE"),
        (["echo:"], "a service is named MODULE:SERVICE"),
        (
            ["ecco:service"],
            "no module named 'ecco' (looked in {folder}; --app-dir sets the folder)",
        ),
        (["echo.deep:service"], "no module named 'echo.deep'"),
        (["echo:servise"], "'echo' has no attribute 'servise'; it has a Service named: service"),
        (["echo:pid"], "'pid' of 'echo' is of type function, not a Service; it has a Service"),
        (["empty:service"], "'empty' has no attribute 'service'; it has no Service at all"),
        (["needs:service"], "{folder}/needs.py:2: ModuleNotFoundError: No module named 'nowhere'"),
        (["raises:service"], "{folder}/raises.py:3: ZeroDivisionError"),
        (["leaves:service"], "{folder}/leaves.py:1: SystemExit: 4"),
        (["typo:service"], "{folder}/typo.py:1: SyntaxError: "),
        (["echo:service", "--app-dir", "nowhere"], "no such folder: {folder}/nowhere"),
        (["echo:service", "--listen", "here"], "listen='here': an address is host:port"),
        (["echo:service", "--namespace", "a b"], "namespace='a b': a name has"),
    ],
)
async def test_what_cannot_be_run_is_one_line(start, tmp_path, arguments, complaint):
    """A service that cannot be loaded is exit code 1 and one line, from all workers together."""
    (tmp_path / "empty.py").touch()
    (tmp_path / "needs.py").write_text("import os\nimport nowhere\n")
    (tmp_path / "raises.py").write_text("def fail():\n    import json\n    1 / 0\nfail()\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(4)\n")
    (tmp_path / "typo.py").write_text("def :\n")
    run = await start(*arguments)
    assert await run.end() == 1
    (line,) = run.lines
    assert line.startswith("error: ")
    assert complaint.format(folder=tmp_path.resolve()) in line


async def test_a_port_in_use_is_one_line(start):
    """A fixed port that another program has is exit code 1 and one line that names it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = await start("echo:service", "--listen", f"127.0.0.1:{port}")
        assert await run.end() == 1
    (line,) = run.lines
    assert line.startswith(f"error: port {port} on 127.0.0.1 is in use")
