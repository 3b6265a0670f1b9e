"""A rate limit pushed to running processes: it holds from when they say that they have it."""

import asyncio
import collections
import sys
from pathlib import Path

import grpc
import pytest

import meshrpc
from meshrpc.control.client import ControlClient
from meshrpc.control.server import ControlServer
from meshrpc.policy import load_document
from services.payment.v1 import payment_pb2, payment_pb2_grpc

ROOT = Path(__file__).parents[2]

LIMIT = load_document(
    """
    schema: meshrpc.policy/v1
    service: payment
    rate_limits: [{name: ten, rate: 10/s, burst: 10}]
    """
)

pytestmark = pytest.mark.process


@pytest.fixture
async def payment(tmp_path):
    """Stub and control client of a payment service in a process of its own."""
    async with ControlServer("127.0.0.1:0", "127.0.0.1:0") as control:
        worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "meshrpc", "run", "services.payment.app:service"),
            cwd=ROOT,
            env={
                "PATH": "/usr/bin:/bin",
                "MESHRPC_CONTROL": control.address,
                "MESHRPC_STATE_DIR": str(tmp_path),
            },
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with (
                meshrpc.Mesh("flood", control=control.address) as mesh,
                ControlClient([control.address], namespace="default") as client,
            ):
                stub = payment_pb2_grpc.PaymentServiceStub(mesh.channel("payment"))
                await stub.GetPayment(ask(), timeout=20, wait_for_ready=True).code()
                yield stub, client
        finally:
            worker.terminate()
            await asyncio.wait_for(worker.wait(), 30)


def ask():
    return payment_pb2.GetPaymentRequest(payment_id="none")


async def flood(stub, seconds):
    """Make calls for a while; return how many ended with which code, and all their trailers."""
    codes, trailers = collections.Counter(), set()
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.GetPayment(ask(), timeout=5)
        codes[raised.value.code()] += 1
        trailers |= {key for key, _ in raised.value.trailing_metadata()}
    return codes, trailers


async def synced(client):
    """Return when the service has taken what was pushed last."""
    async with asyncio.timeout(30):
        while True:
            status = await client.status()
            known = [each.revision for each in status.processes if each.service == "payment"]
            if known and min(known) >= status.revision:
                return
            await asyncio.sleep(0.02)


async def test_a_pushed_limit_holds_as_soon_as_it_is_there_and_no_longer(payment):
    """Once control says that the service has it, ten a second of a flood are answered, the rest
    refused with `retry-after`; without the policy all are answered again."""
    stub, client = payment
    free, _ = await flood(stub, 0.5)
    assert set(free) == {grpc.StatusCode.NOT_FOUND}

    await client.apply_policies([LIMIT.canonical])
    await synced(client)
    limited, trailers = await flood(stub, 2.0)
    assert limited[grpc.StatusCode.RESOURCE_EXHAUSTED] > 0
    assert {"retry-after", "grpc-retry-pushback-ms", "mesh-not-executed"} <= trailers
    # 10/s for two seconds, a bucket of ten, and the one call that is under way at the end.
    assert 15 <= limited[grpc.StatusCode.NOT_FOUND] <= 31

    await client.delete_policy("payment")
    await synced(client)
    free_again, _ = await flood(stub, 0.5)
    assert set(free_again) == {grpc.StatusCode.NOT_FOUND}
