"""What a supervised service leaves behind when a worker dies: events at control, lines of a log."""

import asyncio
import contextlib
import json
import os
import signal
import sys

import aiohttp
import grpc
import pytest

from meshrpc.control.server import ControlServer

pytestmark = pytest.mark.process

PATIENCE = 30.0

SERVICE = """
import grpc, logging, meshrpc

service = meshrpc.Service("echo")

def say(request, context):
    logging.getLogger("echo").info("two\\nlines")
    raise ValueError(request.decode())

service.add_generic_rpc_handlers((
    grpc.method_handlers_generic_handler(
        "test.Echo", {"Say": grpc.unary_unary_rpc_method_handler(say)}
    ),
))
"""

TRACE = "0af7651916cd43dd8448eb211c80319c"


async def test_what_happens_to_workers_is_an_event_and_every_line_of_json_names_its_process(
    tmp_path,
):
    """Control hears of a death, of the return and of a reload that came to nothing; logs are JSON."""
    (tmp_path / "echo.py").write_text(SERVICE)
    async with ControlServer("127.0.0.1:0", "127.0.0.1:0") as control:
        environment = {
            **{name: value for name, value in os.environ.items() if "MESHRPC_" not in name},
            "MESHRPC_CONTROL": control.address,
            "MESHRPC_CONTROL_HTTP": control.http_address,
            "MESHRPC_REGISTRY": "memory:",
            "MESHRPC_STATE_DIR": str(tmp_path / "state"),
        }
        run = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "meshrpc", "run", "echo:service"),
            *("--log-format", "json", "--ready-within", "1"),
            cwd=tmp_path,
            env=environment,
            stderr=asyncio.subprocess.PIPE,
        )
        log = []

        async def until_serving():
            async with asyncio.timeout(PATIENCE):
                while line := await run.stderr.readline():
                    log.append(json.loads(line))
                    if "worker 1 ready" in log[-1]["message"]:
                        return next(
                            each for each in reversed(log) if " serves on " in each["message"]
                        )
            raise AssertionError(log)

        try:
            worker = await until_serving()
            address = worker["message"].rpartition(" ")[2]
            await fail(address)
            os.kill(worker["pid"], signal.SIGKILL)
            again = await until_serving()
            (tmp_path / "echo.py").write_text("import time\ntime.sleep(3600)\n")
            run.send_signal(signal.SIGHUP)
            events = await reported(control.http_address, 3)
        finally:
            with contextlib.suppress(ProcessLookupError):
                run.send_signal(signal.SIGTERM)
            async with asyncio.timeout(PATIENCE):
                rest = await run.stderr.read()
                await run.wait()
        log += map(json.loads, rest.splitlines())
    assert [(event["event"], event["pid"]) for event in events] == [
        ("died", worker["pid"]),
        ("restarted", again["pid"]),
        ("reload_failed", None),
    ]
    assert "was not ready within 1 s; it is stopped, and the old one serves" in events[2]["reason"]
    assert {event["service"] for event in events} == {"echo"}
    assert events[0]["reason"] == "killed by SIGKILL"
    assert {(each["service"], each.get("worker")) for each in log} >= {("echo", None), ("echo", 1)}
    said = next(each for each in log if each["logger"] == "echo")
    assert (said["message"], said["trace_id"]) == ("two\nlines", TRACE)
    assert said["instance"] == events[0]["instance"]
    failed = next(each for each in log if "exception" in each)
    assert failed["exception"].endswith("ValueError: no\nbytes")
    assert failed["trace_id"] == TRACE


async def fail(address):
    """Make a call that fails, within a trace."""
    async with grpc.aio.insecure_channel(address) as channel:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await channel.unary_unary("/test.Echo/Say")(
                b"no\nbytes",
                timeout=PATIENCE,
                metadata=(("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"),),
            )


async def reported(http, count):
    """Return the first `count` events that control has, once it has them."""
    found = []
    async with asyncio.timeout(PATIENCE), aiohttp.ClientSession(f"http://{http}") as session:
        while len(found) < count:
            await asyncio.sleep(0.02)
            async with session.get("/api/v1/events?service=echo") as response:
                found = await response.json()
    return found
