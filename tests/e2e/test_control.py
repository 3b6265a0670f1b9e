"""Claims about `meshrpc control`, held against the real process."""

import asyncio
import os
import re
import signal
import socket
import sys

import pytest

pytestmark = pytest.mark.process

PATIENCE = 30.0
"""Seconds until a test gives up on something that should happen."""


@pytest.fixture
async def start(tmp_path):
    """Start `meshrpc control` with arguments; its state folder is the test's own."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MESHRPC_")},
        "MESHRPC_STATE_DIR": str(tmp_path / "state"),
    }
    processes = []

    async def start(*arguments):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "meshrpc", "control", *arguments),
            cwd=tmp_path,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_says_where_it_is_ready_and_ends_when_told(start, tmp_path, number):
    """One line on stdout names both ports really taken and the store; a stop signal ends it, 0."""
    process = await start("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
    async with asyncio.timeout(PATIENCE):
        line = (await process.stdout.readline()).decode()
        store = re.escape(f"sqlite:{tmp_path}/state/control.db")
        pattern = (
            rf"control ready: grpc 127\.0\.0\.1:(\d+), http 127\.0\.0\.1:(\d+), store {store}\n"
        )
        ready = re.fullmatch(pattern, line)
        assert ready
        for port in ready.groups():
            with socket.create_connection(("127.0.0.1", int(port)), timeout=PATIENCE):
                pass
        process.send_signal(number)
        rest, errors = await process.communicate()
    assert process.returncode == 0
    assert rest == b""
    assert b"Traceback" not in errors
    assert (tmp_path / "state" / "control.db").exists()


@pytest.mark.parametrize("option", ["--listen", "--http"])
async def test_a_port_in_use_is_one_line(start, option):
    """A port that another program has is exit code 1 and one line that names port and option."""
    other = {"--listen": "--http", "--http": "--listen"}[option]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = await start(option, f"127.0.0.1:{port}", other, "127.0.0.1:0")
        async with asyncio.timeout(PATIENCE):
            _, errors = await process.communicate()
    assert process.returncode == 1
    (line,) = errors.decode().splitlines()
    assert line.startswith(f"error: port {port} on 127.0.0.1 is in use")
    assert option in line


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--listen", "0.0.0.0:0"], "--insecure"),
        (["--http", "here"], "an address is host:port"),
        (["--store", "nowhere"], "sqlite:PATH"),
        (["--store", "sqlite:notes.txt"], "it is not a database: is the path right?"),
    ],
)
async def test_what_it_cannot_do_is_one_line(start, tmp_path, arguments, complaint):
    """An address open to others, no address, no store, a damaged one: exit code 1 and one line
    with the remedy."""
    (tmp_path / "notes.txt").write_text("no database")
    process = await start("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", *arguments)
    async with asyncio.timeout(PATIENCE):
        _, errors = await process.communicate()
    assert process.returncode == 1
    (line,) = errors.decode().splitlines()
    assert line.startswith("error: ")
    assert complaint in line
