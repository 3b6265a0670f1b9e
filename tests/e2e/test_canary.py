"""A canary: a new version walked from no call to all of them by policy, while calls go on."""

import asyncio
import collections
import contextlib
import json
import statistics
import sys
import time
from pathlib import Path

import grpc
import pytest

import meshrpc
from meshrpc.control.client import ControlClient
from meshrpc.control.server import ControlServer
from services.payment.v1 import payment_pb2, payment_pb2_grpc

ROOT = Path(__file__).parents[2]
RATE = 150
"""Calls per second."""
FEW = 40
"""Calls: enough where each may go to one version only, or half of them to either."""
PATIENCE = 30.0
"""Seconds until a test gives up on something that should happen."""
INJECTED = "aborted by the fault of route 'everybody'"

pytestmark = pytest.mark.process


def document(v2, **more):
    """Return the policy that sends so many of a hundred calls to v2."""
    split = [{"subset": "v1", "weight": str(100 - v2)}, {"subset": "v2", "weight": str(v2)}]
    route = {"name": "everybody", "split": [each for each in split if each["weight"] != "0"]}
    return json.dumps(
        {
            "schema": "meshrpc.policy/v1",
            "service": "payment",
            "subsets": {"v1": {"version": "v1"}, "v2": {"version": "v2"}},
            "routes": [route | more],
        }
    )


class Load:
    """Calls at an even rate, each noted when it ends."""

    def __init__(self, channel):
        self._stub = payment_pb2_grpc.PaymentServiceStub(channel)
        self.ended = []
        """Of each call: when it began, the version that answered, and its error."""
        self._calls = set()

    async def run(self):
        """Make calls until cancelled; then wait for those under way."""
        began, number = time.monotonic(), 0
        try:
            while True:
                number += 1
                call = asyncio.ensure_future(self._call(number))
                self._calls.add(call)
                call.add_done_callback(self._calls.discard)
                await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
        finally:
            await asyncio.gather(*self._calls)

    async def _call(self, number):
        at = time.monotonic()
        request = payment_pb2.ChargeRequest(
            idempotency_key=f"k{number}", order_id=f"o{number}", amount=100, currency="EUR"
        )
        call = self._stub.Charge(request, timeout=5)
        try:
            await call
            self.ended.append((at, call.peer().version, None))
        except grpc.aio.AioRpcError as error:
            self.ended.append((at, None, error))

    async def so_many(self, count, since):
        """Wait until so many calls have ended that began since then; return how many each version
        answered, and how many each error ended."""
        while True:
            came = [version or str(e.details()) for at, version, e in self.ended if at >= since]
            if len(came) >= count:
                return collections.Counter(came)
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def worker(control, state_dir, app):
    """Run a payment service as a process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "meshrpc", "run", f"services.payment.{app}:service"),
        cwd=ROOT,
        env={
            "PATH": "/usr/bin:/bin",
            "MESHRPC_CONTROL": control,
            "MESHRPC_STATE_DIR": str(state_dir),
        },
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 30)


async def test_a_canary_is_walked_to_every_call_and_none_fails(tmp_path):
    """Each step, a mirror and a fault among them, shows in the counts as soon as the caller has heard of
    it, within a second; the only calls that fail are those that the fault fails."""
    async with contextlib.AsyncExitStack() as stack:
        control = await stack.enter_async_context(ControlServer("127.0.0.1:0", "127.0.0.1:0"))
        client = await stack.enter_async_context(
            ControlClient([control.address], namespace="default")
        )
        await client.apply_policies([document(0)])
        for number, app in enumerate(("app", "app", "app_v2")):
            await stack.enter_async_context(worker(control.address, tmp_path / str(number), app))
        mesh = await stack.enter_async_context(meshrpc.Mesh("shop", control=control.address))
        channel = mesh.channel("payment")
        destination = channel.bound()
        async with asyncio.timeout(PATIENCE):
            while destination.ready_count < 3 or not destination.table.policy.routes:
                await destination.changed()
        load = Load(channel)
        await stack.enter_async_context(going_on(load))

        took = []

        async def step(policy, calls=100):
            """Apply a policy; return what became of so many calls from when the caller has it on."""
            before, began = destination.table.policy, time.monotonic()
            await client.apply_policies([policy])
            async with asyncio.timeout(PATIENCE):
                while destination.table.policy == before:
                    await destination.changed()
                since = time.monotonic()
                took.append(since - began)
                return await load.so_many(calls, since)

        async with asyncio.timeout(PATIENCE):
            assert set(await load.so_many(FEW, time.monotonic())) == {"v1"}
        assert await is_mirrored(step, destination)
        for percent in (10, 50):
            came = await step(document(percent))
            assert set(came) <= {"v1", "v2"}
            share, count = percent / 100, came.total()
            assert abs(came["v2"] - count * share) <= 5 * (count * share * (1 - share)) ** 0.5
        fault = {"abort": {"percent": "50%", "code": "ABORTED"}}
        came = await step(document(50, fault=fault))
        assert came[INJECTED] > came.total() / 4
        assert set(came) <= {"v1", "v2", INJECTED}
        assert set(await step(document(50), FEW)) == {"v1", "v2"}
        assert set(await step(document(100), FEW)) == {"v2"}
        assert statistics.median(took) < 1.0  # of several: a machine may stand still at one of them
        assert {str(error.details()) for *_, error in load.ended if error} == {INJECTED}


@contextlib.asynccontextmanager
async def going_on(load):
    """Have calls made for the length of the block."""
    running = asyncio.create_task(load.run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def is_mirrored(step, destination):
    """Mirror every call to v2 for a while; return whether v2 was asked, though it answered nobody."""
    v2 = next(each for each in destination.endpoints if each.instance.version == "v2")
    before = v2.load.asked_at
    came = await step(document(0, mirror={"subset": "v2", "percent": "100%"}), FEW)
    assert set(came) == {"v1"}
    return v2.load.asked_at > before
