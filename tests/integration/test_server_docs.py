"""docs/server.md: its examples of starting, stopping and failing do what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

import meshrpc
from meshrpc.registry.instance import Health
from meshrpc.testing import LocalMesh
from services.order.v1 import order_pb2_grpc
from services.payment.v1 import payment_pb2

PAGE = (Path(__file__).parents[2] / "docs/server.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
PAYMENT = payment_pb2.DESCRIPTOR.services_by_name["PaymentService"]


def block(containing: str) -> str:
    (found,) = [each for each in BLOCKS if containing in each]
    return found


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.setenv("MESHRPC_CONTROL", "none")
    monkeypatch.setenv("MESHRPC_REGISTRY", "memory:")


async def test_the_example_of_starting_opens_and_closes_its_database():
    """Opened before it is known, closed after it has left; unready while it does not answer."""

    class Database:
        is_open, answers = True, True

        async def close(self) -> None:
            self.is_open = False

        def ping(self) -> bool:
            return self.answers

    class Orders(order_pb2_grpc.OrderServiceServicer):
        def __init__(self, payment: Any) -> None:
            self.payment = payment

    async def connect() -> Database:
        return Database()

    names: dict[str, Any] = {"Orders": Orders, "connect": connect}
    exec(block("requires="), names)  # noqa: S102 - it is what the reader would paste
    async with LocalMesh() as mesh:
        await mesh.script("payment", PAYMENT)
        order = await mesh.serve(names["service"])
        database = names["orders"].database
        assert database.is_open
        assert order.record.health is Health.SERVING
        database.answers = False
        while order.record.health is Health.SERVING:
            await mesh.clock.advance(1)
        await order.stop()
        assert not database.is_open


async def test_the_examples_of_failing_fail_as_they_say():
    """An RpcError with its details; a mapped exception with its text."""
    orders: dict[str, str] = {}

    class NoSuchOrder(Exception):
        pass

    names: dict[str, Any] = {"meshrpc": meshrpc, "grpc": grpc, "orders": orders}
    exec(block("NO_SUCH_ORDER"), names)  # noqa: S102
    names["NoSuchOrder"] = NoSuchOrder
    exec(block("errors={NoSuchOrder"), names)  # noqa: S102

    async def find(request: bytes, _context: Any) -> bytes:
        if request == b"mapped":
            raise NoSuchOrder("none of that name")
        found: str = names["find"](request.decode())
        return found.encode()

    handlers = {"it": grpc.unary_unary_rpc_method_handler(find)}
    service = names["service"]
    service.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
    async with LocalMesh() as mesh:
        await mesh.serve(service)
        call = mesh.channel("order").unary_unary("/t.T/it")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(b"o1")
        with pytest.raises(grpc.aio.AioRpcError) as mapped:
            await call(b"mapped")
    assert failed.value.code() is mapped.value.code() is grpc.StatusCode.NOT_FOUND
    assert mapped.value.details() == "none of that name"
    trailers = dict(failed.value.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.reason == "NO_SUCH_ORDER"
