"""The example shop in a `LocalMesh`: real services, real faults between them, virtual time."""

import itertools
import sqlite3
from contextlib import closing

import grpc
import pytest

import meshrpc
from meshrpc.testing import blackhole
from services.order.book import Book
from services.order.orders import PAYMENT_TIMEOUT, Orders
from services.order.v1 import order_pb2, order_pb2_grpc
from services.payment.ledger import Ledger
from services.payment.payments import Payments
from services.payment.v1 import payment_pb2_grpc

PAID = order_pb2.Order.STATUS_PAID
PENDING = order_pb2.Order.STATUS_PENDING


class Shop:
    """One order instance, two of payment, and what a customer does with them."""

    def __init__(self, mesh, folder):
        self.mesh = mesh
        self.orders = order_pb2_grpc.OrderServiceStub(mesh.channel("order"))
        self.payment = []
        self._folder = folder
        self._numbers = itertools.count()

    async def open(self, book, ledger):
        order = meshrpc.Service("order")
        stub = payment_pb2_grpc.PaymentServiceStub(order.channel("payment"))
        order_pb2_grpc.add_OrderServiceServicer_to_server(Orders(book, stub), order)
        await self.mesh.serve(order)
        for version in ("v1", "v2"):
            service = meshrpc.Service("payment", version=version)
            payment_pb2_grpc.add_PaymentServiceServicer_to_server(
                Payments(ledger, version=version), service
            )
            self.payment.append(await self.mesh.serve(service))

    async def buy(self, request_id=None, **options):
        request = order_pb2.CreateOrderRequest(
            request_id=request_id or f"request-{next(self._numbers)}",
            customer="ada",
            currency="EUR",
            items=[order_pb2.Item(sku="tea", quantity=2, unit_price=450)],
        )
        return await self.mesh.clock.run(self.orders.CreateOrder(request, **options))

    def charges(self):
        path = self._folder / "payments.db"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as ledger:
            return [row[0] for row in ledger.execute("SELECT processed_by FROM payments")]


@pytest.fixture
async def shop(local_mesh, tmp_path):
    with (
        closing(Book(tmp_path / "orders.db")) as book,
        closing(Ledger(tmp_path / "payments.db")) as ledger,
    ):
        shop = Shop(local_mesh, tmp_path)
        await shop.open(book, ledger)
        yield shop


async def test_orders_are_paid_by_every_instance(shop):
    """A round robin of two, and one charge for each order."""
    shop.mesh.policy(
        {"schema": "meshrpc.policy/v1", "service": "payment", "balancer": "round_robin"}
    )
    await shop.buy()  # the first call connects
    for instance in shop.payment:
        await instance.connected()
    assert [(await shop.buy()).status for _ in range(6)] == [PAID] * 6
    assert sorted(shop.charges()[1:]) == ["v1"] * 3 + ["v2"] * 3


async def test_an_instance_that_dies_costs_no_order(shop):
    """Charging is idempotent by its proto, so what it had is tried at the other."""
    await shop.buy()
    await shop.payment[0].kill()
    assert [(await shop.buy()).status for _ in range(10)] == [PAID] * 10
    assert len(shop.charges()) == 11


async def test_payments_that_hang_leave_an_order_pending_and_paid_once(shop):
    """The customer sends the same order again when the network is back."""
    await shop.buy()
    for instance in shop.payment:
        instance.fault(blackhole())
    before = shop.mesh.clock.now()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await shop.buy("mine", timeout=60)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    # The order service answers once: its failure comes from further down, and it says so.
    assert shop.mesh.clock.now() - before == pytest.approx(PAYMENT_TIMEOUT, abs=0.5)
    for instance in shop.payment:
        instance.heal()
        await instance.connected()
    assert (await shop.buy("mine")).status == PAID
    assert len(shop.charges()) == 2


async def test_more_than_payment_takes_is_passed_on_and_over_in_a_second(shop):
    """Control is not needed to try a policy."""
    shop.mesh.policy("""
        schema: meshrpc.policy/v1
        service: payment
        retry: {attempts: 1}
        rate_limits: [{name: all, rate: 1/s, burst: 1}]
    """)
    codes = []
    for _ in range(4):
        try:
            codes.append((await shop.buy()).status)
        except grpc.aio.AioRpcError as error:
            codes.append(error.code())
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 2  # two instances take one each
    await shop.mesh.clock.advance(1)
    assert (await shop.buy()).status == PAID
