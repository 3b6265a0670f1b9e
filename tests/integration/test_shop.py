"""The example shop on bare grpc.aio: its handlers and stores need no mesh."""

import ast
import asyncio
import multiprocessing
import sqlite3
import sys
import threading
from contextlib import asynccontextmanager, closing
from pathlib import Path

import grpc
import pytest
from grpc import StatusCode

from services import database as database_module
from services.order import orders as orders_module
from services.order.book import Book
from services.order.orders import Orders
from services.order.v1 import order_pb2, order_pb2_grpc
from services.payment.ledger import Ledger, UnknownPaymentError
from services.payment.payments import Payments
from services.payment.v1 import payment_pb2, payment_pb2_grpc

PENDING = order_pb2.Order.STATUS_PENDING
PAID = order_pb2.Order.STATUS_PAID
FAILED = order_pb2.Order.STATUS_FAILED


@asynccontextmanager
async def serving(add, servicer, stub):
    """Serve on loopback and yield a stub for it."""
    server = grpc.aio.server()
    add(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield stub(channel)
    finally:
        await server.stop(None)


def serving_payment(servicer):
    add = payment_pb2_grpc.add_PaymentServiceServicer_to_server
    return serving(add, servicer, payment_pb2_grpc.PaymentServiceStub)


def serving_order(servicer):
    add = order_pb2_grpc.add_OrderServiceServicer_to_server
    return serving(add, servicer, order_pb2_grpc.OrderServiceStub)


class Till(Payments):
    """Payments whose next charges go as told: `before` the ledger is asked, or after it answered."""

    def __init__(self, ledger):
        super().__init__(ledger, version="v1")
        self.before = []
        self.after = []
        self.charges = []

    async def Charge(self, request, context):
        self.charges.append(request)
        if self.before:
            await self.before.pop(0)(context)
        payment = await super().Charge(request, context)
        if self.after:
            await self.after.pop(0)(context)
        return payment


def aborting(code, details="as told", trailing=()):
    async def abort(context):
        await context.abort(code, details, trailing)

    return abort


@pytest.fixture
def ledger(tmp_path):
    with closing(Ledger(tmp_path / "state" / "payments.db")) as ledger:
        yield ledger


@pytest.fixture
def book(tmp_path):
    with closing(Book(tmp_path / "state" / "orders.db")) as book:
        yield book


@pytest.fixture
def till(ledger):
    return Till(ledger)


@pytest.fixture
async def payment(till):
    async with serving_payment(till) as stub:
        yield stub


@pytest.fixture
async def order(book, payment):
    async with serving_order(Orders(book, payment)) as stub:
        yield stub


def charge(**changes):
    fields = {"idempotency_key": "key", "order_id": "order-1", "amount": 1999, "currency": "EUR"}
    return payment_pb2.ChargeRequest(**(fields | changes))


def cart(**changes):
    items = [
        order_pb2.Item(sku="tea", quantity=2, unit_price=450),
        order_pb2.Item(sku="cup", quantity=1, unit_price=1099),
    ]
    fields = {"request_id": "request", "customer": "ada", "items": items, "currency": "EUR"}
    return order_pb2.CreateOrderRequest(**(fields | changes))


def rows(path, table):
    """Read a store as an auditor does: another connection, read-only."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute(f"SELECT * FROM {table} ORDER BY rowid")]  # noqa: S608


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


# Payment


async def test_a_charge_is_stored_and_found_again(payment, tmp_path):
    """A charge answers with its payment, which GetPayment finds and an auditor can read."""
    paid = await payment.Charge(charge())
    assert paid == payment_pb2.Payment(
        id=paid.id,
        order_id="order-1",
        amount=1999,
        currency="EUR",
        status="STATUS_CHARGED",
        processed_by="v1",
    )
    assert await payment.GetPayment(payment_pb2.GetPaymentRequest(payment_id=paid.id)) == paid
    (row,) = rows(tmp_path / "state" / "payments.db", "payments")
    assert row.pop("created_at").endswith("Z")
    assert row == {
        "id": paid.id,
        "idempotency_key": "key",
        "order_id": "order-1",
        "amount": 1999,
        "currency": "EUR",
        "status": "CHARGED",
        "processed_by": "v1",
        "loyalty_points": 0,
    }


async def test_v2_awards_loyalty_points_and_shares_the_ledger(ledger, payment):
    """v2 awards a point per whole unit of currency, and knows what v1 charged."""
    async with serving_payment(Payments(ledger, version="v2")) as v2:
        new = await v2.Charge(charge(amount=1999))
        assert (new.processed_by, new.loyalty_points) == ("v2", 19)
        old = await payment.Charge(charge(idempotency_key="old"))
        assert await v2.Charge(charge(idempotency_key="old")) == old


async def test_concurrent_charges_of_one_key_are_one_payment(tmp_path, payment):
    """Two instances with ledgers of their own, sent the same key at once, answer one payment."""
    path = tmp_path / "state" / "payments.db"
    with closing(Ledger(path)) as other:
        async with serving_payment(Payments(other, version="v2")) as v2:
            calls = [stub.Charge(charge()) for stub in (payment, v2) for _ in range(20)]
            answers = await asyncio.gather(*calls)
    assert len(rows(path, "payments")) == 1
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize(
    ("field", "value"), [("order_id", "order-2"), ("amount", 2000), ("currency", "USD")]
)
async def test_a_key_with_other_contents_already_exists(payment, field, value):
    """A key that was used for something else is ALREADY_EXISTS and says what differs."""
    await payment.Charge(charge())
    error = await refused(payment.Charge(charge(**{field: value})))
    assert error.code() is StatusCode.ALREADY_EXISTS
    assert "'key'" in error.details()
    assert error.details().endswith(f"another {field}")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("idempotency_key", ""),
        ("idempotency_key", "k" * 129),
        ("order_id", ""),
        ("order_id", "o" * 129),
        ("amount", 0),
        ("amount", -5),
        ("currency", ""),
        ("currency", "eur"),
        ("currency", "EURO"),
        ("currency", "EUR\n"),
        ("currency", "ÄÖÜ"),
    ],
)
async def test_a_bad_charge_names_its_field(payment, tmp_path, field, value):
    """A bad field is INVALID_ARGUMENT, by name, and charges nothing."""
    error = await refused(payment.Charge(charge(**{field: value})))
    assert error.code() is StatusCode.INVALID_ARGUMENT
    assert error.details().startswith(f"{field}: ")
    assert not (tmp_path / "state").exists()


async def test_the_longest_key_and_the_largest_amount_are_charged(payment):
    """The limits themselves are allowed."""
    paid = await payment.Charge(charge(idempotency_key="k" * 128, amount=2**63 - 1))
    assert paid.amount == 2**63 - 1


async def test_refunding_twice_is_refunding_once(payment):
    """A second refund answers what the first did; so does a late retry of the charge."""
    paid = await payment.Charge(charge())
    request = payment_pb2.RefundRequest(payment_id=paid.id)
    refunded = await payment.Refund(request)
    assert refunded.status == payment_pb2.Payment.STATUS_REFUNDED
    assert await payment.Refund(request) == refunded
    assert await payment.Charge(charge()) == refunded


async def test_an_unknown_payment_is_not_found(payment):
    """Refund and GetPayment of an unknown id are NOT_FOUND and say which."""
    for call in (
        payment.Refund(payment_pb2.RefundRequest(payment_id="payment-0")),
        payment.GetPayment(payment_pb2.GetPaymentRequest(payment_id="payment-0")),
    ):
        error = await refused(call)
        assert error.code() is StatusCode.NOT_FOUND
        assert "'payment-0'" in error.details()


async def test_a_locked_ledger_is_unavailable(payment, tmp_path, monkeypatch):
    """A write lock held for too long is UNAVAILABLE, and reading goes on meanwhile."""
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT", 0.05)
    paid = await payment.Charge(charge())
    with closing(sqlite3.connect(tmp_path / "state" / "payments.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        error = await refused(payment.Charge(charge(idempotency_key="other")))
        assert error.code() is StatusCode.UNAVAILABLE
        assert "the ledger cannot be used now" in error.details()
        assert await payment.GetPayment(payment_pb2.GetPaymentRequest(payment_id=paid.id)) == paid


def charge_often(path, begin, answers):
    ledger = Ledger(path)
    begin.wait()
    payments = [
        ledger.charge(charge(idempotency_key=str(n)), processed_by="v1", loyalty_points=0)
        for n in range(50)
    ]
    answers.put([payment.id for payment in payments])
    ledger.close()


@pytest.mark.process
def test_processes_that_start_together_agree_on_every_payment(tmp_path):
    """Workers that make the ledger together and charge the same keys get the same payments."""
    spawn = multiprocessing.get_context("spawn")
    begin, answers = spawn.Barrier(3), spawn.Queue()
    path = tmp_path / "state" / "payments.db"
    workers = [
        spawn.Process(target=charge_often, args=(path, begin, answers), daemon=True)
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    first, second, third = (answers.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join(timeout=60)
        worker.close()
    answers.close()
    assert first == second == third
    assert [row["id"] for row in rows(path, "payments")] == first


def test_a_store_touches_no_disk_until_it_is_used(tmp_path):
    """Making a ledger or a book creates nothing; the first use creates the folder and the file."""
    folder = tmp_path / "not" / "there"
    with closing(Ledger(folder / "payments.db")) as ledger, closing(Book(folder / "orders.db")):
        assert not folder.parent.exists()
        with pytest.raises(UnknownPaymentError):
            ledger.get("payment-0")
        assert (folder / "payments.db").exists()


def test_a_closed_store_opens_again(ledger):
    """Closing a store loses nothing."""
    paid = ledger.charge(charge(), processed_by="v1", loyalty_points=0)
    ledger.close()
    assert ledger.get(paid.id) == paid


# Order


async def test_an_order_is_paid(order, payment, till, tmp_path):
    """An order is charged its total under its own id, and remembers payment and version."""
    placed = await order.CreateOrder(cart())
    assert (placed.status, placed.total, placed.paid_by) == (PAID, 1999, "v1")
    assert list(placed.items) == list(cart().items)
    (sent,) = till.charges
    assert sent == charge(idempotency_key=placed.id, order_id=placed.id, amount=1999)
    paid = await payment.GetPayment(payment_pb2.GetPaymentRequest(payment_id=placed.payment_id))
    assert paid.order_id == placed.id
    assert await order.GetOrder(order_pb2.GetOrderRequest(order_id=placed.id)) == placed
    (row,) = rows(tmp_path / "state" / "orders.db", "orders")
    assert (row["request_id"], row["status"], row["payment_id"]) == ("request", "PAID", paid.id)


async def test_charging_has_a_timeout_of_its_own(order, till):
    """Payment is given a short time, however long the caller of the order would wait."""
    seen = []

    async def look(context):
        seen.append(context.time_remaining())

    till.before = [look]
    await order.CreateOrder(cart(), timeout=60)
    assert 0 < seen[0] < 10


async def test_the_same_request_is_the_same_order(order, till):
    """A settled order is answered as it is and not charged again."""
    placed = await order.CreateOrder(cart())
    assert await order.CreateOrder(cart()) == placed
    assert len(till.charges) == 1


async def test_concurrent_requests_are_one_order(order, tmp_path):
    """The same request sent many times at once is one order and one payment."""
    answers = await asyncio.gather(*(order.CreateOrder(cart()) for _ in range(20)))
    assert all(answer == answers[0] for answer in answers)
    assert len(rows(tmp_path / "state" / "orders.db", "orders")) == 1
    assert len(rows(tmp_path / "state" / "payments.db", "payments")) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("customer", "bob"), ("currency", "USD"), ("items", list(cart().items)[:1])],
)
async def test_a_request_id_with_other_contents_already_exists(order, till, field, value):
    """A request_id that was used for something else is ALREADY_EXISTS and says what differs."""
    await order.CreateOrder(cart())
    error = await refused(order.CreateOrder(cart(**{field: value})))
    assert error.code() is StatusCode.ALREADY_EXISTS
    assert error.details().endswith(f"another {field}")
    assert len(till.charges) == 1


TEA = {"sku": "tea", "quantity": 1, "unit_price": 1}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"request_id": ""}, "request_id"),
        ({"request_id": "r" * 129}, "request_id"),
        ({"customer": ""}, "customer"),
        ({"customer": "c" * 129}, "customer"),
        ({"currency": "euro"}, "currency"),
        ({"items": []}, "items"),
        ({"items": [TEA] * 101}, "items"),
        ({"items": [TEA, TEA | {"sku": ""}]}, "items[1].sku"),
        ({"items": [TEA | {"quantity": 0}]}, "items[0].quantity"),
        ({"items": [TEA | {"unit_price": 0}]}, "items[0].unit_price"),
        ({"items": [TEA | {"unit_price": -1}]}, "items[0].unit_price"),
        ({"items": [TEA | {"unit_price": 2**62, "quantity": 2}]}, "items"),
    ],
)
async def test_a_bad_order_names_its_field(order, tmp_path, changes, named):
    """A bad field is INVALID_ARGUMENT, by name, and stores nothing."""
    error = await refused(order.CreateOrder(cart(**changes)))
    assert error.code() is StatusCode.INVALID_ARGUMENT
    assert error.details().startswith(f"{named}: ")
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("code", sorted(orders_module.REFUSALS, key=lambda code: code.name))
async def test_a_refused_payment_fails_the_order(order, till, code):
    """A no from payment is the order's answer, not the call's error, and is final."""
    till.before = [aborting(code, "card expired")]
    placed = await order.CreateOrder(cart())
    assert placed.status == FAILED
    assert placed.failure == f"{code.name}: card expired"
    assert (placed.payment_id, placed.paid_by) == ("", "")
    assert await order.CreateOrder(cart()) == placed
    assert len(till.charges) == 1


@pytest.mark.parametrize(
    "code",
    [
        StatusCode.UNAVAILABLE,
        StatusCode.DEADLINE_EXCEEDED,
        StatusCode.ABORTED,
        StatusCode.CANCELLED,
        StatusCode.UNKNOWN,
        StatusCode.INTERNAL,
        StatusCode.UNIMPLEMENTED,
    ],
)
async def test_an_unclear_payment_leaves_the_order_pending(order, till, tmp_path, code):
    """When nobody knows how payment ended the call is UNAVAILABLE, and the retry finishes it."""
    till.before = [aborting(code, "lost")]
    error = await refused(order.CreateOrder(cart()))
    assert error.code() is StatusCode.UNAVAILABLE
    assert f"{code.name}: lost" in error.details()
    assert "the same request may be sent again" in error.details()
    (row,) = rows(tmp_path / "state" / "orders.db", "orders")
    assert row["status"] == "PENDING"
    assert row["id"] in error.details()

    finished = await order.CreateOrder(cart())
    assert (finished.id, finished.status) == (row["id"], PAID)


async def test_a_lost_answer_is_not_charged_twice(order, till, tmp_path):
    """Money taken by a charge whose answer got lost is found again by the retry."""
    till.after = [aborting(StatusCode.UNAVAILABLE, "killed")]
    await refused(order.CreateOrder(cart()))
    finished = await order.CreateOrder(cart())
    (row,) = rows(tmp_path / "state" / "payments.db", "payments")
    assert (finished.status, finished.payment_id) == (PAID, row["id"])
    assert [sent.idempotency_key for sent in till.charges] == [finished.id] * 2


async def test_a_payment_that_hangs_leaves_the_order_pending(order, till, monkeypatch):
    """A frozen payment instance costs PAYMENT_TIMEOUT, then the call is UNAVAILABLE."""
    monkeypatch.setattr(orders_module, "PAYMENT_TIMEOUT", 0.1)

    async def hang(context):
        await asyncio.Event().wait()

    till.before = [hang]
    error = await refused(order.CreateOrder(cart()))
    assert error.code() is StatusCode.UNAVAILABLE
    assert "DEADLINE_EXCEEDED" in error.details()


@pytest.mark.parametrize("trailing", [(("retry-after", "7"), ("x-other", "1")), ()])
async def test_a_rate_limit_is_passed_on(order, till, trailing):
    """RESOURCE_EXHAUSTED stays what it is, with retry-after if there was one and nothing else."""
    till.before = [aborting(StatusCode.RESOURCE_EXHAUSTED, "slow down", trailing)]
    error = await refused(order.CreateOrder(cart()))
    assert error.code() is StatusCode.RESOURCE_EXHAUSTED
    assert "slow down" in error.details()
    assert [tuple(pair) for pair in error.trailing_metadata()] == list(trailing[:1])
    assert (await order.CreateOrder(cart())).status == PAID


def test_money_taken_outranks_a_refusal(book):
    """Of two answers to one order, paid wins, in either order."""
    placed = book.place(cart(), total=1999)
    assert book.failed(placed.id, failure="PERMISSION_DENIED: no").status == FAILED
    paid = book.paid(placed.id, payment_id="payment-1", paid_by="v1")
    assert (paid.status, paid.failure) == (PAID, "")
    assert book.failed(placed.id, failure="PERMISSION_DENIED: no") == paid


async def test_a_locked_book_is_unavailable(order, tmp_path, monkeypatch):
    """A write lock held for too long is UNAVAILABLE."""
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT", 0.05)
    await order.ListOrders(order_pb2.ListOrdersRequest())
    with closing(sqlite3.connect(tmp_path / "state" / "orders.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        error = await refused(order.CreateOrder(cart()))
    assert error.code() is StatusCode.UNAVAILABLE
    assert "the book cannot be used now" in error.details()


async def test_an_unknown_order_is_not_found(order):
    """GetOrder and WatchOrder of an unknown id are NOT_FOUND and say which."""
    error = await refused(order.GetOrder(order_pb2.GetOrderRequest(order_id="order-0")))
    assert (error.code(), error.details()) == (StatusCode.NOT_FOUND, "no order 'order-0'")
    error = await refused(order.WatchOrder(order_pb2.WatchOrderRequest(order_id="order-0")).read())
    assert (error.code(), error.details()) == (StatusCode.NOT_FOUND, "no order 'order-0'")


@pytest.mark.parametrize(("size", "sizes"), [(2, [2, 2, 1]), (5, [5]), (1000, [5]), (0, [5])])
async def test_orders_are_listed_in_pages_oldest_first(order, book, size, sizes):
    """The pages hold every order once, oldest first, and the last has no token."""
    placed = [book.place(cart(request_id=str(n)), total=1) for n in range(5)]
    pages, token = [], ""
    while not pages or token:
        request = order_pb2.ListOrdersRequest(page_size=size, page_token=token)
        page = await order.ListOrders(request)
        pages.append(page.orders)
        token = page.next_page_token
    assert [len(page) for page in pages] == sizes
    assert [one for page in pages for one in page] == placed


async def test_no_page_is_larger_than_asked_for(order, book):
    """Without a size a page has 100 orders."""
    for n in range(101):
        book.place(cart(request_id=str(n)), total=1)
    page = await order.ListOrders(order_pb2.ListOrdersRequest())
    assert len(page.orders) == 100
    assert page.next_page_token


@pytest.mark.parametrize(("field", "value"), [("page_size", 1001), ("page_token", "nonsense")])
async def test_a_bad_page_names_its_field(order, field, value):
    """A page that cannot be is INVALID_ARGUMENT, by name."""
    error = await refused(order.ListOrders(order_pb2.ListOrdersRequest(**{field: value})))
    assert error.code() is StatusCode.INVALID_ARGUMENT
    assert error.details().startswith(f"{field}: ")


@pytest.mark.parametrize("end", [PAID, FAILED])
async def test_watching_an_order_ends_when_it_is_settled(order, book, tmp_path, monkeypatch, end):
    """A watch shows the order now and, however often it looks, next when it is settled."""
    looked, loop, look = asyncio.Semaphore(0), asyncio.get_running_loop(), book.get

    def noting(order_id):
        loop.call_soon_threadsafe(looked.release)
        return look(order_id)

    monkeypatch.setattr(book, "get", noting)
    placed = book.place(cart(), total=1999)
    watch = order.WatchOrder(order_pb2.WatchOrderRequest(order_id=placed.id))
    assert await watch.read() == placed
    async with asyncio.timeout(10):
        for _ in range(3):
            await looked.acquire()
    with closing(Book(tmp_path / "state" / "orders.db")) as another_worker:
        if end == PAID:
            settled = another_worker.paid(placed.id, payment_id="payment-1", paid_by="v1")
        else:
            settled = another_worker.failed(placed.id, failure="NOT_FOUND: x")
    async with asyncio.timeout(10):
        assert await watch.read() == settled
        assert await watch.read() is grpc.aio.EOF
    assert settled.status == end


async def test_watching_a_settled_order_shows_it_once(order):
    """A watch of a settled order is that order, and the end."""
    placed = await order.CreateOrder(cart())
    watch = order.WatchOrder(order_pb2.WatchOrderRequest(order_id=placed.id))
    assert [seen async for seen in watch] == [placed]


async def test_a_cancelled_watch_stops_looking(book, payment):
    """A watch whose client went away ends on the server too."""
    ended = asyncio.Event()

    class Watched(Orders):
        async def WatchOrder(self, request, context):
            try:
                async for seen in super().WatchOrder(request, context):
                    yield seen
            finally:
                ended.set()

    placed = book.place(cart(), total=1999)
    async with serving_order(Watched(book, payment)) as order:
        watch = order.WatchOrder(order_pb2.WatchOrderRequest(order_id=placed.id))
        await watch.read()
        assert not ended.is_set()
        watch.cancel()
        async with asyncio.timeout(10):
            await ended.wait()


async def test_stores_are_asked_in_threads(order, payment, ledger, book, monkeypatch):
    """No handler waits for the disk on the event loop."""
    asked = []
    for database in (ledger._database, book._database):

        def lend(lend=database.connection):
            asked.append(threading.current_thread())
            return lend()

        monkeypatch.setattr(database, "connection", lend)
    placed = await order.CreateOrder(cart())
    await order.GetOrder(order_pb2.GetOrderRequest(order_id=placed.id))
    await order.ListOrders(order_pb2.ListOrdersRequest())
    assert [o async for o in order.WatchOrder(order_pb2.WatchOrderRequest(order_id=placed.id))]
    await payment.GetPayment(payment_pb2.GetPaymentRequest(payment_id=placed.payment_id))
    await payment.Refund(payment_pb2.RefundRequest(payment_id=placed.payment_id))
    assert len(asked) >= 8
    assert threading.main_thread() not in asked


def test_the_shop_uses_public_names_only():
    """The services import the standard library, grpc, generated code and the mesh's front door."""
    allowed = {"meshrpc", "grpc", "services.order", "services.payment", "services.database"}
    folder = Path(database_module.__file__).parent
    for path in (*folder.glob("*.py"), *folder.glob("*/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module]
            else:
                continue
            for module in modules:
                package = module if module == "meshrpc" else module.rsplit(".v1", 1)[0]
                standard = module.partition(".")[0] in sys.stdlib_module_names
                own = module.startswith(f"services.{path.parent.name}.")
                assert standard or own or package in allowed, f"{path}: {module}"
