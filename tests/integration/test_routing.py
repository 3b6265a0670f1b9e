"""Routes: which instances a call goes to, and what else holds for it."""

import asyncio
import math
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace

import grpc
import pytest

import meshrpc
from meshrpc.policy.model import (
    Comparison,
    Fallback,
    Fault,
    HashKey,
    KeySource,
    Match,
    MetadataMatch,
    Mirror,
    Retry,
    Route,
    Target,
)
from meshrpc.registry.instance import State
from meshrpc.testing import blackhole
from meshrpc.wire import NOT_EXECUTED
from services.payment.v1 import payment_pb2, payment_pb2_grpc
from tests.echo import (
    COUNT_UP,
    IDEMPOTENT,
    PLAIN,
    ROUND_ROBIN,
    UNAVAILABLE,
    EchoServer,
    failing,
    hang,
    policy,
    ready,
)

SUBSETS = {"v1": {"version": "v1"}, "v2": {"version": "v2"}, "v3": {"version": "v3"}}
V1, V2, V3 = (Target(subset, 1) for subset in SUBSETS)
PAYMENT = payment_pb2.DESCRIPTOR.services_by_name["PaymentService"]
BETA = Match(metadata=(MetadataMatch("x-group", Comparison.EXACT, "beta"),))
USER = HashKey(KeySource.METADATA, "x-user")


@pytest.fixture
async def versions(mesh, registry):
    """Two instances of v1 and one of v2, connected to."""
    async with AsyncExitStack() as stack:
        servers = {}
        for name, version in (("a", "v1"), ("b", "v1"), ("c", "v2")):
            server = await stack.enter_async_context(EchoServer(name))
            await registry.register(replace(server.instance, version=version))
            servers[name] = server
        channel = mesh.channel("echo")
        await ready(channel, 3)
        yield channel, servers


async def until(holds):
    """Wait until something holds that nobody tells of."""
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.001)


async def counts(call, number, *, metadata=()):
    """Make calls one after another; return how many each instance answered."""
    return Counter([(await call(b"", metadata=metadata)).decode() for _ in range(number)])


async def test_the_first_route_that_fits_decides(mesh, versions):
    """By metadata here; a call that fits none is anybody's."""
    channel, _ = versions
    policy(
        mesh,
        balancer=ROUND_ROBIN,
        subsets=SUBSETS,
        routes=(
            Route("beta", BETA, split=(V2,)),
            Route(
                "present",
                Match(metadata=(MetadataMatch("x-group", Comparison.PRESENT, "true"),)),
                split=(V1,),
            ),
        ),
    )
    say = channel.unary_unary(PLAIN)
    assert await counts(say, 6, metadata=(("x-group", "beta"),)) == {"@c": 6}
    assert await counts(say, 6, metadata=(("x-group", "other"),)) == {"@a": 3, "@b": 3}
    assert await counts(say, 6) == {"@a": 2, "@b": 2, "@c": 2}


async def test_a_route_is_for_its_methods_and_callers(mesh, versions):
    """The mesh calls itself `shell` here."""
    channel, _ = versions
    policy(
        mesh,
        subsets=SUBSETS,
        routes=(
            Route("others", Match(caller="order"), split=(V3,)),
            Route("mine", Match(method="test.Echo/*", caller="shell"), split=(V2,)),
            Route("rest", split=(V1,)),
        ),
    )
    assert await counts(channel.unary_unary(PLAIN), 5) == {"@c": 5}
    assert "@c" not in await counts(channel.unary_unary(IDEMPOTENT), 5)


async def test_a_split_holds_and_its_subsets_take_turns_of_their_own(mesh, versions):
    """90 to 10 within five standard deviations; round robin stays even within a subset."""
    channel, _ = versions
    split = (Target("v1", 90), Target("v2", 10))
    policy(mesh, balancer=ROUND_ROBIN, subsets=SUBSETS, routes=(Route("canary", split=split),))
    came = await counts(channel.unary_unary(PLAIN), 1000)
    assert abs(came["@c"] - 100) <= 5 * math.sqrt(1000 * 0.9 * 0.1)
    assert abs(came["@a"] - came["@b"]) <= 1


async def test_a_split_sticks_by_key(mesh, versions):
    """Calls of one user see one version, whatever instance of it answers."""
    channel, _ = versions
    split = (Target("v1", 50), Target("v2", 50))
    policy(mesh, subsets=SUBSETS, hash_key=USER, routes=(Route("canary", split=split),))
    say = channel.unary_unary(PLAIN)
    versions_seen = {}
    for user in map(str, range(40)):
        came = await counts(say, 4, metadata=(("x-user", user),))
        assert set(came) in ({"@c"}, {"@a"}, {"@b"}, {"@a", "@b"})
        versions_seen[user] = "@c" in came
    assert 5 <= sum(versions_seen.values()) <= 35


async def test_a_key_may_stand_in_a_field_of_the_request_or_be_said(mesh, versions):
    """What `call_options` says wins."""
    channel, _ = versions
    key = HashKey(KeySource.FIELD, "payment_id")
    split = (Target("v1", 50), Target("v2", 50))
    policy(mesh, subsets=SUBSETS, hash_key=key, routes=(Route("canary", split=split),))
    get = channel.unary_unary(IDEMPOTENT, payment_pb2.GetPaymentRequest.SerializeToString)
    seen = {}
    for number in map(str, range(30)):
        request = payment_pb2.GetPaymentRequest(payment_id=number)
        seen[number] = {(await get(request)).endswith(b"@c") for _ in range(4)}
    assert all(len(each) == 1 for each in seen.values())
    assert set.union(*seen.values()) == {True, False}
    with meshrpc.call_options(hash_key="7"):
        for number in range(8):
            request = payment_pb2.GetPaymentRequest(payment_id=str(number))
            assert {(await get(request)).endswith(b"@c")} == seen["7"]


async def test_a_subset_without_instances_leaves_its_share_to_the_others(mesh, versions):
    """With nobody in any of them the fallback decides."""
    channel, _ = versions
    say = channel.unary_unary(PLAIN)
    policy(mesh, subsets=SUBSETS, routes=(Route("r", split=(V3, V2)),))
    assert await counts(say, 10) == {"@c": 10}
    policy(mesh, subsets=SUBSETS, routes=(Route("r", split=(V3,), fallback=Fallback.ANY),))
    assert sum((await counts(say, 10)).values()) == 10
    policy(mesh, subsets=SUBSETS, routes=(Route("r", split=(V3,)),))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await say(b"")
    assert caught.value.code() is UNAVAILABLE
    assert caught.value.details() == (
        "service 'echo' has no active instance in subset 'v3' (version=v3)"
    )


async def test_a_split_waits_for_the_first_instances_before_it_is_drawn(mesh, registry):
    """The registry had not answered when the call was made, so nobody knew who is empty."""
    async with EchoServer("a") as server:
        channel = mesh.channel("echo")
        call = channel.unary_unary(PLAIN)(b"", wait_for_ready=True, timeout=5)
        policy(
            mesh, subsets=SUBSETS, routes=(Route("r", split=(Target("v2", 99), Target("v1", 1))),)
        )
        later = channel.unary_unary(PLAIN)(b"", wait_for_ready=True, timeout=5)
        await registry.register(replace(server.instance, version="v1"))
        assert (await call, await later) == (b"@a", b"@a")


async def test_what_a_call_says_itself_wins_over_its_route(mesh, versions):
    """A subset named in `call_options` is asked, whatever the split."""
    channel, _ = versions
    policy(mesh, subsets=SUBSETS, routes=(Route("r", split=(V1,)),))
    with meshrpc.call_options(subset="v2"):
        assert await counts(channel.unary_unary(PLAIN), 5) == {"@c": 5}


async def test_a_route_has_its_own_timeout_and_retries(mesh, versions):
    """Where it has none, the document's hold."""
    channel, servers = versions
    servers["c"].script = hang
    servers["a"].script = servers["b"].script = failing()
    policy(
        mesh,
        subsets=SUBSETS,
        timeout=30.0,
        retry=Retry(attempts=2),
        routes=(
            Route("beta", BETA, split=(V2,), timeout=0.05),
            Route("rest", split=(V1,), retry=Retry(attempts=1)),
        ),
    )
    get = channel.unary_unary(IDEMPOTENT)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await get(b"", metadata=(("x-group", "beta"),))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(grpc.aio.AioRpcError):
        await get(b"")
    assert len(servers["a"].seen) + len(servers["b"].seen) == 1
    call = get(b"")
    assert 29 < call.time_remaining() <= 30
    with pytest.raises(grpc.aio.AioRpcError):
        await call


async def test_a_policy_that_comes_while_a_call_runs_changes_nothing_for_it(mesh, versions):
    """Its next attempt still goes to its subset, though the policy has forgotten that."""
    channel, servers = versions
    policy(mesh, subsets=SUBSETS, routes=(Route("r", split=(V1,)),))
    may_fail = asyncio.Event()

    async def script(server, context):
        if len(servers["a"].seen) + len(servers["b"].seen) == 1:
            await may_fail.wait()
            await context.abort(UNAVAILABLE, "no")

    servers["a"].script = servers["b"].script = script
    call = channel.unary_unary(IDEMPOTENT)(b"")
    await until(lambda: servers["a"].seen or servers["b"].seen)
    policy(
        mesh,
        retry=Retry(attempts=1),
        subsets={"v2": {"version": "v2"}},
        routes=(Route("r", split=(V2,)),),
    )
    may_fail.set()
    assert await call in (b"@a", b"@b")
    assert (len(servers["a"].seen), len(servers["b"].seen)) == (1, 1)
    assert await channel.unary_unary(PLAIN)(b"") == b"@c"


@pytest.mark.parametrize(
    ("method", "trailers"), [(IDEMPOTENT, ()), (PLAIN, ((NOT_EXECUTED, "1"),))]
)
async def test_a_call_whose_subset_has_emptied_goes_on_in_another_of_its_split(
    mesh, versions, registry, method, trailers
):
    """Its only instance drains, and fails the call or has not taken it."""
    channel, servers = versions
    split = (Target("v2", 1_000_000), Target("v1", 1))
    policy(mesh, subsets=SUBSETS, routes=(Route("r", split=split),))
    may_end = asyncio.Event()

    async def script(server, context):
        await may_end.wait()
        await context.abort(UNAVAILABLE, "draining", trailers)

    servers["c"].script = script
    call = channel.unary_unary(method)(b"", timeout=5)
    await servers["c"].calls(1)
    instance = replace(servers["c"].instance, version="v2", state=State.DRAINING)
    await registry.register(instance)
    await ready(channel, 2)
    may_end.set()
    assert await call in (b"@a", b"@b")


# Mirrors.


async def test_a_mirror_gets_copies_that_nobody_waits_for(mesh, versions):
    """The same request and metadata; the original's answer comes, whatever becomes of the copy."""
    channel, servers = versions
    servers["c"].script = hang
    policy(mesh, subsets=SUBSETS, routes=(Route("r", split=(V1,), mirror=Mirror("v2", 1.0)),))
    say = channel.unary_unary(PLAIN)
    for _ in range(5):
        assert await say(b"x", metadata=(("x-user", "u"),)) in (b"x@a", b"x@b")
    await servers["c"].calls(5)
    assert all(each["x-user"] == "u" for each in servers["c"].seen)
    assert all(each["mesh-target"] == "c" for each in servers["c"].seen)
    destination = channel.bound()
    assert len(destination.mirrors) == 5
    assert destination.control.in_flight == 0  # the circuit breaker is not theirs


async def test_a_mirror_that_fails_fails_nothing_and_is_not_tried_again(mesh, versions):
    """Its failures are nothing to the throttle either."""
    channel, servers = versions
    servers["c"].script = failing()
    policy(mesh, subsets=SUBSETS, routes=(Route("r", split=(V1,), mirror=Mirror("v2", 1.0)),))
    assert sum((await counts(channel.unary_unary(IDEMPOTENT), 4)).values()) == 4
    await servers["c"].calls(4)
    await until(lambda: not channel.bound().mirrors)
    assert len(servers["c"].seen) == 4


async def test_a_mirror_has_a_budget_of_its_own(mesh, versions):
    """What comes on top of `max_active` is not copied."""
    channel, servers = versions
    servers["c"].script = hang
    mirror = Mirror("v2", 1.0, max_active=2)
    policy(mesh, subsets=SUBSETS, routes=(Route("r", split=(V1,), mirror=mirror),))
    say = channel.unary_unary(PLAIN)
    await asyncio.gather(*(say(b"") for _ in range(20)))
    await servers["c"].calls(2)
    assert len(channel.bound().mirrors) == 2
    assert len(servers["c"].seen) == 2


async def test_a_part_of_the_calls_is_mirrored(mesh, versions):
    """20 % within five standard deviations; streams are not."""
    channel, servers = versions
    policy(mesh, subsets=SUBSETS, routes=(Route("r", split=(V1,), mirror=Mirror("v2", 0.2)),))
    await counts(channel.unary_unary(PLAIN), 500)
    await until(lambda: not channel.bound().mirrors)
    copies = len(servers["c"].seen)
    assert abs(copies - 100) <= 5 * math.sqrt(500 * 0.2 * 0.8)
    policy(mesh, subsets=SUBSETS, routes=(Route("r", split=(V1,), mirror=Mirror("v2", 1.0)),))
    assert [each async for each in channel.unary_stream(COUNT_UP)(b"2")] == [b"0", b"1"]
    assert len(servers["c"].seen) == copies


@pytest.mark.parametrize("subset", ["v3", "v2"])
async def test_a_mirror_without_anybody_is_no_mirror(mesh, versions, registry, subset):
    """Nobody in its subset, or nobody connected: the call goes its way."""
    channel, servers = versions
    await registry.deregister(servers["c"].instance)
    await ready(channel, 2)
    policy(mesh, subsets=SUBSETS, routes=(Route("r", split=(V1,), mirror=Mirror(subset, 1.0)),))
    assert sum((await counts(channel.unary_unary(PLAIN), 3)).values()) == 3
    assert len(channel.bound().mirrors) == 0


async def test_a_copy_goes_out_after_its_original(mesh, versions):
    """Also when a fault delays that; of a call that is never sent there is none."""
    channel, servers = versions
    route = Route("r", split=(V1,), mirror=Mirror("v2", 1.0))
    delay = Fault(delay_percent=1.0, delay=0.05)
    order = []

    async def note(server, context):
        order.append(server.name)

    for server in servers.values():
        server.script = note
    policy(mesh, subsets=SUBSETS, routes=(replace(route, fault=delay),))
    say = channel.unary_unary(PLAIN)
    call = say(b"")
    await asyncio.sleep(0.01)
    assert order == []
    await call
    await servers["c"].calls(1)
    assert sorted(order) in (["a", "c"], ["b", "c"])
    policy(mesh, subsets=SUBSETS, routes=(replace(route, fault=replace(delay, abort_percent=1.0)),))
    assert await say(b"").code() is UNAVAILABLE
    with meshrpc.call_options(subset="v3"):
        assert await say(b"").code() is UNAVAILABLE
    policy(mesh, subsets=SUBSETS, routes=(route,))
    await say(b"")
    await servers["c"].calls(2)
    assert Counter(order)["c"] == 2


async def test_a_call_that_is_tried_again_is_copied_once(mesh, versions):
    """And so is one that is hedged."""
    channel, servers = versions
    servers["a"].script = servers["b"].script = failing()
    policy(mesh, subsets=SUBSETS, routes=(Route("r", split=(V1,), mirror=Mirror("v2", 1.0)),))
    assert await channel.unary_unary(IDEMPOTENT)(b"").code() is UNAVAILABLE
    await servers["c"].calls(1)
    await until(lambda: not channel.bound().mirrors)
    assert len(servers["a"].seen) + len(servers["b"].seen) == 3
    assert len(servers["c"].seen) == 1


async def test_copies_end_with_their_channel(mesh, versions):
    """Closing it waits for no copy, and leaves none."""
    channel, servers = versions
    servers["c"].script = hang
    policy(mesh, subsets=SUBSETS, routes=(Route("r", split=(V1,), mirror=Mirror("v2", 1.0)),))
    await channel.unary_unary(PLAIN)(b"")
    await servers["c"].calls(1)
    mirrors = channel.bound().mirrors
    async with asyncio.timeout(5):
        await channel.close(grace=60)
        await servers["c"].cancelled.wait()
    assert len(mirrors) == 0


async def test_a_copy_ends_at_its_calls_deadline_on_the_meshs_clock(local_mesh):
    """Or after 15 seconds where that has none: `max_active` is free again."""
    payment = await local_mesh.script("payment", PAYMENT, version="v1")
    await payment.add(version="v2")
    payment[1].answer("GetPayment", payment_pb2.Payment())
    payment[2].answer("GetPayment", payment_pb2.Payment())
    local_mesh.policy(
        {
            "schema": "meshrpc.policy/v1",
            "service": "payment",
            "subsets": {"v1": {"version": "v1"}, "v2": {"version": "v2"}},
            "routes": [
                {
                    "name": "r",
                    "split": [{"subset": "v1", "weight": 1}],
                    "mirror": {"subset": "v2", "percent": "100%"},
                }
            ],
        }
    )
    channel = local_mesh.channel("payment")
    await ready(channel, 2)
    payment[2].fault(blackhole())
    get = payment_pb2_grpc.PaymentServiceStub(channel).GetPayment
    mirrors, clock = channel.bound().mirrors, local_mesh.clock
    for timeout, lasts in ((3.0, 3.0), (None, 15.0)):
        await clock.run(get(payment_pb2.GetPaymentRequest(), timeout=timeout))
        await clock.advance(lasts - 0.1)
        assert len(mirrors) == 1
        await clock.advance(0.2)
        assert len(mirrors) == 0


# Faults.


async def test_an_abort_fails_a_call_before_it_is_sent(mesh, versions):
    """With the code of the policy and a text that names the route; it is not tried again."""
    channel, servers = versions
    fault = Fault(abort_percent=1.0, abort_code=grpc.StatusCode.ABORTED)
    policy(mesh, routes=(Route("chaos", Match(method="test.Echo/Say"), fault=fault),))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(PLAIN)(b"")
    assert caught.value.code() is grpc.StatusCode.ABORTED
    assert caught.value.details() == "aborted by the fault of route 'chaos'"
    assert not any(server.seen for server in servers.values())
    assert await channel.unary_unary(IDEMPOTENT)(b"")
    destination = channel.bound()
    assert (destination.faults.active, destination.control.in_flight) == (0, 0)


async def test_a_part_of_the_calls_is_aborted_and_the_throttle_does_not_mind(mesh, versions):
    """30 % of 400 within five standard deviations, and no other fails."""
    channel, _ = versions
    policy(mesh, routes=(Route("chaos", fault=Fault(abort_percent=0.3)),))
    say = channel.unary_unary(PLAIN)
    errors = Counter()
    for _ in range(400):
        try:
            await say(b"")
        except grpc.aio.AioRpcError as error:
            errors[error.details()] += 1
    assert set(errors) == {"aborted by the fault of route 'chaos'"}
    assert abs(errors.total() - 120) <= 5 * math.sqrt(400 * 0.3 * 0.7)


async def test_a_delay_counts_against_the_timeout(mesh, versions):
    """The call goes out when it is over, or ends at its deadline without having been sent."""
    channel, servers = versions
    fault = Fault(delay_percent=1.0, delay=0.05)
    policy(mesh, routes=(Route("slow", fault=fault),))
    say, loop = channel.unary_unary(PLAIN), asyncio.get_running_loop()
    began = loop.time()
    assert await say(b"", timeout=5)
    assert loop.time() - began >= 0.05
    sent = sum(len(server.seen) for server in servers.values())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await say(b"", timeout=0.02)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert sum(len(server.seen) for server in servers.values()) == sent
    assert [each async for each in channel.unary_stream(COUNT_UP)(b"2")] == [b"0", b"1"]
    assert channel.bound().faults.active == 0


async def test_a_call_may_be_delayed_and_then_aborted(mesh, versions):
    """Both dice are thrown; a deadline within the delay is the deadline's error."""
    channel, servers = versions
    fault = Fault(delay_percent=1.0, delay=0.03, abort_percent=1.0)
    policy(mesh, routes=(Route("both", fault=fault),))
    say = channel.unary_unary(PLAIN)
    assert await say(b"").code() is UNAVAILABLE
    assert await say(b"", timeout=0.01).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not any(server.seen for server in servers.values())


async def test_no_more_calls_have_a_fault_than_the_cap_lets(mesh, versions):
    """The others go their way at once; one that is cancelled makes room."""
    channel, _ = versions
    fault = Fault(delay_percent=1.0, delay=60.0, max_active=2)
    policy(mesh, routes=(Route("slow", fault=fault),))
    say = channel.unary_unary(PLAIN)
    delayed = [say(b""), say(b"")]
    assert await say(b"")
    assert not any(call.done() for call in delayed)
    delayed[0].cancel()
    await until(lambda: channel.bound().faults.active == 1)
    third = say(b"")
    await asyncio.sleep(0)
    assert channel.bound().faults.active == 2
    for call in (*delayed, third):
        call.cancel()


# Subsetting and zones.


async def test_no_more_instances_are_connected_to_than_the_policy_lets(mesh, registry):
    """Of each subset so many more: a canary is among those of everybody."""
    async with AsyncExitStack() as stack:
        for number in range(12):
            server = await stack.enter_async_context(EchoServer(f"e{number}"))
            version = "v2" if number == 11 else "v1"
            await registry.register(replace(server.instance, version=version))
        policy_before = {"subset_size": 3, "balancer": ROUND_ROBIN}
        channel = mesh.channel("echo")
        channel.bound()
        policy(mesh, **policy_before)
        await ready(channel, 3)
        destination = channel.bound()
        assert len(destination.endpoints) == 3
        assert sorted((await counts(channel.unary_unary(PLAIN), 9)).values()) == [3, 3, 3]
        policy(mesh, **policy_before, subsets=SUBSETS, routes=(Route("r", BETA, split=(V2,)),))
        assert "e11" in {each.id for each in destination.endpoints}
        assert len(destination.endpoints) <= 3 + 3 + 1
        metadata = (("x-group", "beta"),)
        assert await counts(channel.unary_unary(PLAIN), 5, metadata=metadata) == {"@e11": 5}
        assert len(await counts(channel.unary_unary(PLAIN), 30)) == 3
