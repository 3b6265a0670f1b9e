"""Hedging: a slow call is sent to a second instance, and exactly one answer is delivered."""

import asyncio
import gc
import random

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import meshrpc
from meshrpc.policy.model import Hedge, Retry
from meshrpc.resilience.hedge import Hedging
from meshrpc.telemetry import tracing
from meshrpc.testing import Failure, LocalMesh
from services.payment.v1 import payment_pb2
from tests.echo import IDEMPOTENT, PLAIN, ROUND_ROBIN, EchoServer, hang, policy, ready

PAYMENT = payment_pb2.DESCRIPTOR.services_by_name["PaymentService"]
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
WARM = 20
"""Calls after which hedging begins; each takes `USUAL` seconds."""
USUAL = 0.1
_ENDS_WHAT_RAISES = pytest.mark.skipif(
    tuple(map(int, grpc.__version__.split(".")[:2])) < (1, 83),
    reason="grpcio before 1.83 does not end a call whose interceptor raises what is no status",
)
DUE = 0.106
"""Seconds after which the hedge of a call has been sent; at USUAL it has not."""


class Payments:
    """A scripted service whose callers know how long it usually takes."""

    def __init__(self, mesh):
        self.mesh = mesh
        self.clock = mesh.clock
        self.cancelled = []

    async def start(self, instances=2, hedge="{percentile: 95%, max_extra: 100%}", more=""):
        self.mesh.policy(
            f"{{schema: meshrpc.policy/v1, service: payment, balancer: round_robin, "
            f"hedge: {hedge}{more}}}"
        )
        self.service = await self.mesh.script("payment", PAYMENT, instances=instances)
        channel = self.channel = self.mesh.channel("payment")
        self.get = channel.unary_unary(
            IDEMPOTENT,
            payment_pb2.GetPaymentRequest.SerializeToString,
            payment_pb2.Payment.FromString,
        )
        await channel.channel_ready()
        await ready(channel, instances)
        self.answer(self.after(USUAL, "usual"))
        await self.clock.run(asyncio.gather(*(self.call() for _ in range(WARM))))
        return self

    def call(self, **options):
        return self.get(payment_pb2.GetPaymentRequest(), **options)

    def answer(self, *answers):
        """The attempts that follow get these answers, in the order in which they arrive."""
        self.service.answer("GetPayment", *answers)

    def after(self, seconds, answer):
        async def script(request):
            try:
                await self.clock.sleep(seconds)
            except asyncio.CancelledError:
                self.cancelled.append(answer)
                raise
            return payment_pb2.Payment(id=answer) if isinstance(answer, str) else answer

        return script

    @property
    def received(self):
        """How many attempts have arrived since it was warm."""
        return len(self.service.calls()) - WARM

    def instances(self):
        return [call.instance for call in self.service.calls()[WARM:]]

    def is_quiet(self):
        destination = self.channel.bound()
        assert [endpoint.pending for endpoint in destination.endpoints] == [0] * len(
            destination.endpoints
        )
        assert destination.waiting == 0
        assert destination.control.in_flight == 0
        return True

    async def seen_cancelled(self):
        """Wait, in real time, until a handler was cancelled."""
        async with asyncio.timeout(5):
            while not self.cancelled:  # noqa: ASYNC110 - it is grpc's thread that tells
                await asyncio.sleep(0.001)
        return self.cancelled


async def idle(destination):
    """Wait, in real time, until nothing of any call is left."""
    async with asyncio.timeout(5):
        while destination.waiting or any(  # noqa: ASYNC110 - grpc's threads tell
            each.pending for each in destination.endpoints
        ):
            await asyncio.sleep(0.001)


@pytest.fixture
def payments(local_mesh):
    return Payments(local_mesh)


async def test_nothing_is_hedged_unless_the_policy_says_so(local_mesh):
    """By default a slow call waits for its one attempt."""
    payments = await Payments(local_mesh).start()
    local_mesh.policy("{schema: meshrpc.policy/v1, service: payment}")
    payments.answer(payments.after(60, "slow"), payments.after(0, "fast"))
    assert (await payments.clock.run(payments.call())).id == "slow"
    assert payments.received == 1


async def test_a_hedge_is_sent_at_the_percentile_to_another_instance(payments):
    """Not before what the calls usually take, and once."""
    await payments.start(instances=3)
    payments.answer(payments.after(60, "slow"), payments.after(60, "slow, too"))
    call = payments.call()
    await payments.clock.advance(USUAL)
    assert payments.received == 1
    await payments.clock.advance(DUE - USUAL)
    assert payments.received == 2
    assert len(set(payments.instances())) == 2
    await payments.clock.advance(30)
    assert payments.received == 2
    assert (await payments.clock.run(call)).id == "slow"


async def test_a_hedge_that_answers_first_is_the_answer(payments):
    """The first attempt is cancelled, at once here, and its server is told."""
    await payments.start()
    payments.answer(payments.after(60, "first"), payments.after(0.05, "hedge"))
    began, call = payments.clock.now(), payments.call()
    seen = []
    call.add_done_callback(lambda done: seen.append((done.peer().id, done.done())))
    assert (await payments.clock.run(call)).id == "hedge"
    assert payments.is_quiet()
    assert payments.clock.now() - began == pytest.approx(USUAL + 0.05, rel=0.05)
    assert await payments.seen_cancelled() == ["first"]
    assert seen == [(payments.instances()[1], True)]
    assert await call.code() is grpc.StatusCode.OK
    assert (await call).id == "hedge"
    assert not call.cancelled()


async def test_a_first_attempt_that_answers_first_is_the_answer(payments):
    """The hedge is cancelled, at once here, and its server is told."""
    await payments.start()
    payments.answer(payments.after(0.2, "first"), payments.after(60, "hedge"))
    call = payments.call()
    assert (await payments.clock.run(call)).id == "first"
    assert payments.is_quiet()
    assert await payments.seen_cancelled() == ["hedge"]
    assert call.peer().id == payments.instances()[0]
    assert payments.received == 2


@pytest.mark.parametrize("ask", ["code", "details", "trailing_metadata", "initial_metadata"])
async def test_whatever_is_asked_of_a_call_is_answered_by_the_winner(payments, ask):
    """Who waits for the status, and not for the message, follows the hedge as well."""
    await payments.start()
    payments.answer(payments.after(60, "first"), payments.after(0.05, "hedge"))
    call = payments.call()
    waiting = asyncio.ensure_future(getattr(call, ask)())
    began = payments.clock.now()
    await payments.clock.run(waiting)
    assert payments.clock.now() - began < 1
    assert call.done()
    assert (await call).id == "hedge"


async def test_two_tasks_that_await_one_call_get_one_answer(payments):
    """Both the hedge's."""
    await payments.start()
    payments.answer(payments.after(60, "first"), payments.after(0.05, "hedge"))
    call = payments.call()

    async def ask():
        return await call

    one, two = await payments.clock.run(asyncio.gather(ask(), ask()))
    assert one is two
    assert one.id == "hedge"


async def test_a_call_that_is_answered_in_time_is_not_hedged(payments):
    """And nothing of it is left."""
    await payments.start()
    payments.answer(payments.after(USUAL, "usual"))
    await payments.clock.run(payments.call())
    await payments.clock.advance(1)
    assert payments.received == 1
    assert payments.is_quiet()


async def test_a_method_that_is_not_idempotent_is_never_hedged(mesh, registry):
    """However slow it is, and though the same calls of an idempotent one are."""

    async def sometimes(server, context):
        if server.is_slow:
            await hang(server, context)

    async with EchoServer("a", sometimes) as a, EchoServer("b", sometimes) as b:
        for server in (a, b):
            server.is_slow = False
            await registry.register(server.instance)
        policy(mesh, balancer=ROUND_ROBIN, hedge=Hedge(max_extra=1.0))
        channel = mesh.channel("echo")
        await ready(channel, 2)
        for method, attempts in ((PLAIN, 1), (IDEMPOTENT, 2)):
            say = channel.unary_unary(method)
            for server in (a, b):
                server.is_slow = False
            for _ in range(WARM + 1):
                await say(b"")
            for server in (a, b):
                server.is_slow = True
                server.seen.clear()
            call = say(b"", timeout=0.5 if attempts == 1 else 10)
            if attempts == 1:
                assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            else:
                await asyncio.gather(a.calls(1), b.calls(1))
                call.cancel()
            assert len(a.seen) + len(b.seen) == attempts


async def test_a_call_that_must_not_be_tried_again_is_not_hedged(payments):
    """`call_options(retry=False)` means one attempt."""
    await payments.start()
    payments.answer(payments.after(60, "first"), payments.after(0, "hedge"))
    with meshrpc.call_options(retry=False):
        call = payments.call()
    assert (await payments.clock.run(call)).id == "first"
    assert payments.received == 1


async def test_where_nobody_else_is_there_is_no_hedge(payments):
    """One instance gets one attempt, and the budget keeps its token."""
    await payments.start(instances=1, hedge="{max_extra: 5%}")
    payments.answer(payments.after(1, "alone"))
    assert (await payments.clock.run(payments.call())).id == "alone"
    assert payments.received == 1
    await payments.service.add()
    await ready(payments.channel, 2)
    payments.answer(payments.after(60, "first"), payments.after(0, "hedge"))
    assert (await payments.clock.run(payments.call())).id == "hedge"


async def test_hedges_are_at_most_5_percent_of_the_calls(payments):
    """When all calls become slow at once, one in twenty is hedged."""
    await payments.start(hedge="{percentile: 95%, max_extra: 5%}")
    payments.answer(payments.after(1, "slow"))
    calls = [payments.call() for _ in range(60)]
    await payments.clock.run(asyncio.gather(*calls))
    assert 60 < payments.received <= 60 + (WARM + 60) * 0.05
    assert payments.is_quiet()


async def test_a_hedge_that_fails_changes_nothing(payments):
    """The first attempt goes on, and nobody tries again for the hedge."""
    await payments.start(instances=3)
    payments.answer(payments.after(0.5, "first"), Failure(UNAVAILABLE), payments.after(0, "third"))
    call = payments.call()
    await payments.clock.advance(0.4)
    assert not call.done()
    assert (await payments.clock.run(call)).id == "first"
    assert payments.received == 2
    assert payments.is_quiet()


async def test_a_mistake_that_only_the_hedge_finds_is_not_the_answer(payments):
    """It may be there only because two attempts are at it."""
    await payments.start()
    payments.answer(payments.after(0.5, "first"), Failure(grpc.StatusCode.ABORTED, "two at it"))
    assert (await payments.clock.run(payments.call())).id == "first"


async def test_a_first_attempt_that_fails_leaves_its_place_to_the_hedge(payments):
    """The call waits for what is under way already, and does not try again."""
    await payments.start(instances=3)
    payments.answer(
        payments.after(0.2, Failure(UNAVAILABLE)),
        payments.after(0.5, "hedge"),
        payments.after(0, "third"),
    )
    call = payments.call()
    assert (await payments.clock.run(call)).id == "hedge"
    assert payments.received == 2
    assert call.peer().id == payments.instances()[1]
    assert payments.is_quiet()


async def test_a_mistake_of_the_callers_own_is_told_at_once(payments):
    """NOT_FOUND is an answer: nobody waits for the hedge to say the same."""
    await payments.start()
    payments.answer(
        payments.after(0.2, Failure(grpc.StatusCode.NOT_FOUND, "no such")),
        payments.after(60, "hedge"),
    )
    began, call = payments.clock.now(), payments.call()
    assert await payments.clock.run(call.code()) is grpc.StatusCode.NOT_FOUND
    assert payments.clock.now() - began == pytest.approx(0.2)
    assert await payments.seen_cancelled() == ["hedge"]


@pytest.mark.parametrize("first_fails_after", [0.2, 0.4])
async def test_when_both_failed_the_call_is_tried_again(payments, first_fails_after):
    """As after any failed attempt, elsewhere; whichever failed first."""
    await payments.start(instances=3)
    payments.answer(
        payments.after(first_fails_after, Failure(UNAVAILABLE)),
        payments.after(0.2, Failure(UNAVAILABLE)),
        payments.after(0, "third"),
    )
    assert (await payments.clock.run(payments.call())).id == "third"
    assert len(set(payments.instances())) == 3
    assert payments.is_quiet()


async def test_a_hedge_counts_among_the_attempts(payments):
    """With two attempts allowed, a call whose first and hedge failed has had them."""
    await payments.start(instances=3, more=", retry: {attempts: 2}")
    payments.answer(payments.after(0.2, Failure(UNAVAILABLE, "one")), Failure(UNAVAILABLE, "two"))
    call = payments.call()
    assert await payments.clock.run(call.code()) is UNAVAILABLE
    assert await call.details() == "one"
    assert payments.received == 2
    assert payments.is_quiet()


async def test_a_call_that_failed_before_its_hedge_was_due_is_tried_again_as_ever(payments):
    """And the attempt after it is not hedged: it goes to whoever is left."""
    await payments.start(instances=3)
    payments.answer(Failure(UNAVAILABLE), payments.after(60, "second"), payments.after(0, "third"))
    assert (await payments.clock.run(payments.call())).id == "second"
    assert payments.received == 2


@pytest.mark.parametrize("by_task", [False, True])
async def test_to_cancel_a_call_cancels_both_attempts(payments, by_task):
    """By itself, or with the task that awaits it."""
    await payments.start()
    payments.answer(payments.after(60, "first"), payments.after(60, "hedge"))
    call = payments.call()

    async def ask():
        return await call

    waiting = asyncio.create_task(ask())
    await payments.clock.advance(DUE)
    assert payments.received == 2
    assert waiting.cancel() if by_task else call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert call.cancelled()
    assert payments.is_quiet()
    async with asyncio.timeout(5):
        while len(payments.cancelled) < 2:  # noqa: ASYNC110 - it is grpc's thread that tells
            await asyncio.sleep(0.001)


async def test_to_cancel_a_call_before_its_hedge_is_due_leaves_nothing(payments):
    """No hedge is sent later."""
    await payments.start()
    payments.answer(payments.after(60, "first"))
    call = payments.call()
    await payments.clock.settle()
    call.cancel()
    await payments.clock.advance(1)
    assert payments.received == 1
    assert payments.is_quiet()


async def test_the_deadline_ends_both_attempts(payments):
    """Neither lasts longer than the call may."""
    await payments.start()
    payments.answer(payments.after(60, "first"), payments.after(60, "hedge"))
    began, call = payments.clock.now(), payments.call(timeout=1)
    assert await payments.clock.run(call.code()) is grpc.StatusCode.DEADLINE_EXCEEDED
    assert payments.clock.now() - began == pytest.approx(1)
    assert payments.received == 2
    await payments.clock.settle()
    assert payments.is_quiet()
    first, hedge = payments.service.calls()[WARM:]
    assert first.time_remaining == pytest.approx(1, abs=0.01)
    assert hedge.time_remaining == pytest.approx(1 - DUE, abs=0.02)


async def test_a_call_whose_deadline_comes_first_is_not_hedged(payments):
    """Nothing waits for what cannot come."""
    await payments.start()
    payments.answer(payments.after(60, "first"))
    call = payments.call(timeout=0.05)
    assert payments.channel.bound().waiting == 1  # its deadline
    assert await payments.clock.run(call.code()) is grpc.StatusCode.DEADLINE_EXCEEDED
    assert payments.received <= 1


async def test_leaving_the_mesh_ends_both_attempts(only_tasks):
    """With UNAVAILABLE, and no task stays behind."""
    before = asyncio.all_tasks()
    async with LocalMesh() as mesh:
        payments = await Payments(mesh).start()
        payments.answer(payments.after(60, "first"), payments.after(60, "hedge"))
        hedged, waits_for_it = payments.call(), payments.call()
        destination = payments.channel.bound()
        await payments.clock.advance(DUE)
        payments.call()
        await asyncio.sleep(0)
        assert payments.received == 4
    for call in (hedged, waits_for_it):
        assert await call.code() is UNAVAILABLE
    assert destination.waiting == 0
    assert destination.control.in_flight == 0
    await only_tasks(before)


async def test_an_instance_that_leaves_loses_its_race(payments):
    """Killed under a hedged call, it leaves the answer to the other one."""
    await payments.start()
    payments.answer(payments.after(60, "first"), payments.after(1, "hedge"))
    call = payments.call()
    await payments.clock.advance(DUE)
    (first, _) = payments.instances()
    await payments.service[int(first[-1])].kill()
    assert (await payments.clock.run(call)).id == "hedge"
    assert payments.received == 2


HEDGED_AT = 2.0
"""Seconds, and the others of these races as long: gRPC's own deadline passes in real time."""


def expected(first, hedge, limit):
    """What a call ends with, and when, by its definition."""
    (first_at, first_says), (hedge_takes, hedge_says), (limit_at, limit_says) = first, hedge, limit
    hedge_at = HEDGED_AT + hedge_takes
    if first_at < HEDGED_AT:
        end = first_at, first_says
    elif hedge_at < first_at:
        end = (hedge_at, hedge_says) if hedge_says == "hedge" else (first_at, first_says)
    elif first_says == "aborted":
        end = hedge_at, hedge_says
    else:
        end = first_at, first_says
    return min(end, (limit_at, limit_says))


async def test_races_of_any_shape_end_as_they_should(payments, monkeypatch):
    """Of a hundred at random, each ends once, with the right answer, at its time, and leaves nothing."""
    rng = random.Random(4)
    codes = {"not found": grpc.StatusCode.NOT_FOUND, "aborted": grpc.StatusCode.ABORTED}
    codes |= {"cancelled": grpc.StatusCode.CANCELLED, "late": grpc.StatusCode.DEADLINE_EXCEEDED}
    answers = {name: Failure(code, name) for name, code in codes.items()}
    monkeypatch.setattr(Hedging, "begin", lambda hedging, now: HEDGED_AT)
    await payments.start(
        more=", retry: {attempts: 1, codes: [ABORTED]}, throttle: {max_rejected: 0%}, "
        "outlier: {consecutive_failures: 1000, success_rate_below: 1%}"
    )
    monkeypatch.setattr(Hedging, "grant", lambda hedging, now: True)
    clock = payments.clock
    for _ in range(100):
        first = rng.choice([1.0, 3.0, 5.0, 7.0]), rng.choice(["first", "not found", "aborted"])
        hedge = rng.choice([0.4, 2.0, 4.0, 6.0]), rng.choice(["hedge", "not found", "aborted"])
        limit = rng.choice([0.6, 2.6, 4.4, 6.6, 180.0]), rng.choice(["cancelled", "late"])
        payments.answer(*(payments.after(at, answers.get(say, say)) for at, say in (first, hedge)))
        before, began = payments.received, clock.now()
        call = payments.call(timeout=limit[0] if limit[1] == "late" else None)
        ends = []
        call.add_done_callback(lambda call, ends=ends: ends.append(clock.now()))
        if limit[1] == "cancelled":
            await clock.advance(limit[0])
            call.cancel()
        code = await clock.run(call.code())
        await clock.settle()
        at, says = expected(first, hedge, limit)
        assert (code, ends) == (
            codes.get(says, grpc.StatusCode.OK),
            [pytest.approx(began + at, abs=0.001)],
        ), (first, hedge, limit)
        if code is grpc.StatusCode.OK:
            assert (await call).id == says
        assert payments.is_quiet()
        assert payments.received - before == 1 + (at > HEDGED_AT), (first, hedge, limit)


async def test_what_the_span_of_a_hedged_call_tells(payments, monkeypatch):
    """Its instance is the winner's, the loser an event."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    await payments.start()
    payments.answer(payments.after(60, "first"), payments.after(0.05, "hedge"))
    with monkeypatch.context() as patch:
        patch.setattr(tracing, "TRACER", provider.get_tracer("test"))
        await payments.clock.run(payments.call())
    first, hedge = payments.instances()
    (span,) = (each for each in exporter.get_finished_spans() if each.kind.name == "CLIENT")
    assert span.attributes[tracing.MESH_INSTANCE] == hedge
    assert [dict(event.attributes) for event in span.events] == [
        {tracing.MESH_INSTANCE: first, tracing.RPC_STATUS: grpc.StatusCode.CANCELLED.value[0]}
    ]


class _Tagging(grpc.aio.UnaryUnaryClientInterceptor):
    """Counts its runs, and turns a cancellation into an error of its own if it is to."""

    def __init__(self):
        self.runs = 0
        self.raises = False

    async def intercept_unary_unary(self, continuation, details, request):
        self.runs += 1
        call = await continuation(details, request)
        try:
            await call
        except asyncio.CancelledError:
            if self.raises:
                raise ValueError("cancelled") from None
            raise
        return call


@pytest.mark.parametrize("raises", [False, pytest.param(True, marks=_ENDS_WHAT_RAISES)])
async def test_interceptors_run_for_a_hedge_too(mesh, registry, raises):
    """And what one makes of its cancelled attempt is not the call's end."""

    async def slow_once(server, context):
        if server.is_slow:
            server.is_slow = False
            await hang(server, context)

    tagging = _Tagging()
    async with EchoServer("a", slow_once) as a, EchoServer("b") as b:
        a.is_slow = False
        for server in (a, b):
            await registry.register(server.instance)
        policy(mesh, balancer=ROUND_ROBIN, hedge=Hedge(max_extra=1.0))
        channel = mesh.channel("echo", interceptors=[tagging])
        await channel.channel_ready()
        await ready(channel, 2)
        say = channel.unary_unary(IDEMPOTENT)
        for _ in range(WARM):
            await say(b"")
        a.is_slow, tagging.runs, tagging.raises = True, 0, raises
        answers = [await say(b"", timeout=5) for _ in range(2)]
        assert not a.is_slow
        assert b"@b" in answers
        assert tagging.runs >= 3
        await asyncio.wait_for(a.cancelled.wait(), 5)
        await idle(channel.bound())


class _Obeying(grpc.aio.UnaryUnaryClientInterceptor):
    """Lets the first of its calls do what it is told while it waits for its answer."""

    def __init__(self):
        self.orders = None
        self.answers = asyncio.Event()

    async def intercept_unary_unary(self, continuation, details, request):
        call, orders, self.orders = await continuation(details, request), self.orders, None
        if orders is None:
            return call
        try:
            order = await orders.get()
        except asyncio.CancelledError:
            await self.answers.wait()
            raise
        if order == "raise":
            raise ValueError("told to")
        call.cancel()
        return call


@pytest.fixture
async def two_slow(mesh, registry):
    """Two instances that let every call wait, as soon as the caller knows what is usual."""

    async def slowly(server, context):
        if server.is_slow:
            await hang(server, context)

    async with EchoServer("a", slowly) as a, EchoServer("b", slowly) as b:
        for server in (a, b):
            server.is_slow = False
            await registry.register(server.instance)
        policy(mesh, balancer=ROUND_ROBIN, hedge=Hedge(max_extra=1.0))
        obeying = _Obeying()
        channel = mesh.channel("echo", interceptors=[obeying])
        await channel.channel_ready()
        await ready(channel, 2)
        say = channel.unary_unary(IDEMPOTENT)
        for _ in range(WARM):
            await say(b"")
        for server in (a, b):
            server.is_slow = True
            server.seen.clear()
        obeying.orders = asyncio.Queue()
        yield channel, obeying, a, b
        await idle(channel.bound())
        assert len(a.seen) + len(b.seen) == 2


@pytest.mark.parametrize(
    ("order", "error"),
    [
        ("cancel", asyncio.CancelledError),
        pytest.param("raise", ValueError, marks=_ENDS_WHAT_RAISES),
    ],
)
async def test_what_an_interceptor_does_to_the_first_attempt_it_does_to_the_call(
    two_slow, order, error
):
    """It cancels the call, or raises what is no status: no hedge goes on behind it."""
    channel, obeying, a, b = two_slow
    orders = obeying.orders
    call = channel.unary_unary(IDEMPOTENT)(b"")
    await asyncio.gather(a.calls(1), b.calls(1))
    orders.put_nowait(order)
    with pytest.raises(error):
        await asyncio.wait_for(call, 5)
    assert call.cancelled() is (order == "cancel")


async def test_a_call_that_is_cancelled_has_its_hedge_cancelled_at_once(two_slow):
    """Also while an interceptor of the first attempt takes its time to end."""
    channel, obeying, a, b = two_slow
    call = channel.unary_unary(IDEMPOTENT)(b"")
    first = call.peer().id
    await asyncio.gather(a.calls(1), b.calls(1))
    assert call.cancel()
    await asyncio.wait_for((b if first == "a" else a).cancelled.wait(), 10)
    assert not call.done()
    obeying.answers.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert call.cancelled()


async def test_in_real_time_a_stall_costs_a_hedged_call_milliseconds(mesh, registry):
    """One instance hangs now and then: of 200 calls none waits for it, and nothing stays behind."""
    stalls = iter(range(1000))

    async def stall(server, context):
        if next(stalls) % 25 == 24:
            await hang(server, context)

    async with EchoServer("a", stall) as a, EchoServer("b") as b:
        for server in (a, b):
            await registry.register(server.instance)
        policy(mesh, balancer=ROUND_ROBIN, retry=Retry(attempts=1), hedge=Hedge(max_extra=1.0))
        channel = mesh.channel("echo")
        await channel.channel_ready()
        await ready(channel, 2)
        say = channel.unary_unary(IDEMPOTENT)
        loop, longest = asyncio.get_running_loop(), 0.0
        for _ in range(200):
            began = loop.time()
            await say(b"", timeout=10)
            longest = max(longest, loop.time() - began)
        assert longest < 5
        await idle(channel.bound())
        await asyncio.wait_for(a.cancelled.wait(), 5)


async def test_a_hedged_call_leaves_nothing_for_the_garbage_collector(payments):
    """Neither the call nor its two attempts are part of a cycle."""
    await payments.start()
    payments.answer(payments.after(60, "first"), payments.after(0.05, "hedge"))
    gc.collect()
    gc.disable()
    try:
        before = sum(type(each).__name__ == "HedgedCall" for each in gc.get_objects())
        assert (await payments.clock.run(payments.call())).id == "hedge"
        await payments.clock.settle()
        after = sum(type(each).__name__ == "HedgedCall" for each in gc.get_objects())
    finally:
        gc.enable()
    assert after == before
