"""What the customers of the shop do: one call of each kind, and whether its answer is the right one.

Of the shop's own are orders (which the order service has paid by the payment service), charges,
lookups, and an order that is watched until it is paid. Calls that are slow, may not be repeated, or are
streams both ways come from `slow_service.py`.
"""

import asyncio
import time

import grpc.aio

from services.order.book import Book
from services.order.v1 import order_pb2, order_pb2_grpc
from services.payment.v1 import payment_pb2, payment_pb2_grpc
from tests.faults.slow_service import COUNT, EVERY, FOR_EVER, TAKE, TALK

AGAIN_AFTER = 0.5
"""Seconds before the same order is sent again."""
PATIENCE = 20.0
"""Seconds that every call has, so that a busy machine fails none and none hangs for ever."""
MUCH_PATIENCE = 60.0
"""Seconds until a customer who insists gives up."""


class WrongAnswerError(Exception):
    """An answer that is not the one to the question."""


class Errands:
    """The errands of one customer, `name`; slow calls and streams take the seconds of `takes`."""

    def __init__(self, name, rng, takes):
        self.paid = {}
        """Orders that were answered as paid, by the version of payment that took the money."""
        self.charged = []
        """Payments that were answered, beside those of orders."""
        self._name = name
        self._rng = rng
        self._takes = takes
        self._made = 0

    def __repr__(self):
        return f"<Errands of {self._name} paid={len(self.paid)} charged={len(self.charged)}>"

    async def prepare(self, mesh):
        """Return when all services can be called through this mesh."""
        order, payment, slow = channels = [
            mesh.channel(service) for service in ("order", "payment", "slow")
        ]
        self._order = order_pb2_grpc.OrderServiceStub(order)
        self._payment = payment_pb2_grpc.PaymentServiceStub(payment)
        self._take = slow.unary_unary(TAKE)
        self._count = slow.unary_stream(COUNT)
        self._talk = slow.stream_stream(TALK)
        self._book = Book(mesh.settings.state_dir / "orders.db")
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(channel.channel_ready() for channel in channels))

    def close(self):
        self._book.close()

    async def order(self):
        """Order something, and have it paid."""
        order = await self._order.CreateOrder(self._cart(), timeout=PATIENCE)
        _check(order.status == order_pb2.Order.STATUS_PAID, order)
        self.paid[order.id] = order.paid_by

    async def insist(self):
        """Order something, and send the same order again until it is paid."""
        cart = self._cart()
        last, over = "no answer", time.monotonic() + MUCH_PATIENCE
        while (left := over - time.monotonic()) > 0:
            try:
                order = await self._order.CreateOrder(cart, timeout=left)
                break
            except grpc.aio.AioRpcError as error:
                last = f"{error.code().name}: {error.details()}"
            await asyncio.sleep(AGAIN_AFTER)
        else:
            raise TimeoutError(last)
        _check(order.status == order_pb2.Order.STATUS_PAID, order)
        self.paid[order.id] = order.paid_by

    async def look_up(self):
        """Look up an order that is there."""
        if not self.paid:
            return
        id_ = self._rng.choice(list(self.paid))
        request = order_pb2.GetOrderRequest(order_id=id_)
        order = await self._order.GetOrder(request, timeout=PATIENCE)
        _check((order.id, order.status) == (id_, order_pb2.Order.STATUS_PAID), order)

    async def charge(self):
        """Pay without an order."""
        key = self._new_id()
        payment = await self._payment.Charge(
            payment_pb2.ChargeRequest(idempotency_key=key, order_id=key, amount=5, currency="EUR"),
            timeout=PATIENCE,
        )
        _check(payment.order_id == key, payment)
        self.charged.append(payment.id)

    async def payment(self):
        """Look up a payment that is there."""
        if not self.charged:
            return
        id_ = self._rng.choice(self.charged)
        request = payment_pb2.GetPaymentRequest(payment_id=id_)
        payment = await self._payment.GetPayment(request, timeout=PATIENCE)
        _check(payment.id == id_, payment)

    async def watch(self):
        """Watch an order that is paid at the counter a while later, till the stream ends."""
        order = await asyncio.to_thread(self._book.place, self._cart(), total=100)
        request = order_pb2.WatchOrderRequest(order_id=order.id)
        seen = []
        async for each in self._order.WatchOrder(request, timeout=PATIENCE):
            seen.append(each.status)
            if each.status == order_pb2.Order.STATUS_PENDING:
                await asyncio.sleep(self._seconds())
                at = {"payment_id": "counter", "paid_by": "cash"}
                await asyncio.to_thread(self._book.paid, order.id, **at)
        _check(seen == [order_pb2.Order.STATUS_PENDING, order_pb2.Order.STATUS_PAID], seen)

    async def put(self):
        """Make a quick call that may not be repeated."""
        _check(await self._take(b"0.01", timeout=PATIENCE) == b"0.01", "not what was put")

    async def slow(self):
        """Make a slow call that may not be repeated."""
        request = f"{self._seconds():.3f}".encode()
        answer = await self._take(request, timeout=PATIENCE)
        _check(answer == request, answer)

    async def count(self):
        """Take a stream to its end."""
        last = round(self._seconds() / EVERY)
        numbers = [int(each) async for each in self._count(str(last).encode(), timeout=PATIENCE)]
        _check(numbers == list(range(1, last + 1)), numbers)

    async def talk(self):
        """Talk, and hear the answer to each word."""
        words = [str(each).encode() for each in range(round(self._seconds() / EVERY))]

        async def said():
            for word in words:
                yield word
                await asyncio.sleep(EVERY)

        answers = [each async for each in self._talk(said(), timeout=PATIENCE)]
        _check(answers == words, answers)

    async def endless_count(self):
        """Take a stream that has no end. Raises TimeoutError when it falls silent."""
        await _drain(self._count(str(FOR_EVER).encode()))

    async def endless_talk(self):
        """Talk without an end. Raises TimeoutError when there is no answer."""

        async def said():
            while True:
                yield b"word"
                await asyncio.sleep(EVERY)

        await _drain(self._talk(said()))

    def _new_id(self):
        self._made += 1
        return f"{self._name}-{self._made}"

    def _cart(self):
        return order_pb2.CreateOrderRequest(
            request_id=self._new_id(),
            customer=self._name,
            currency="EUR",
            items=[order_pb2.Item(sku="sku", quantity=1, unit_price=100)],
        )

    def _seconds(self):
        return self._rng.uniform(*self._takes)


def _check(is_right, answer):
    if not is_right:
        raise WrongAnswerError(str(answer))


async def _drain(call):
    """Read a stream that has no end."""
    answers = aiter(call)
    try:
        while True:
            async with asyncio.timeout(PATIENCE):
                await anext(answers)
    except StopAsyncIteration:
        raise WrongAnswerError("a stream without an end has ended") from None
    finally:
        call.cancel()
