"""What a call can say beyond grpcio's words, and what a handler's calls inherit."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

import grpc
import pytest

import meshrpc
from meshrpc.policy.model import Balancer, BalancerKind, Retry
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


async def register(stack, registry, *servers, **fields):
    for server in servers:
        await stack.enter_async_context(server)
        await registry.register(replace(server.instance, **fields))


async def test_a_subset_is_asked_alone(mesh, registry):
    """Of the instances that have its labels, and as soon as the policy names it."""
    async with AsyncExitStack() as stack:
        one, two = EchoServer("one"), EchoServer("two")
        await register(stack, registry, one, version="v1")
        await register(stack, registry, two, version="v2")
        channel = mesh.channel("echo")
        await ready(channel, 2)
        policy(mesh, subsets=SUBSETS, balancer=ROUND_ROBIN)
        say = channel.unary_unary(PLAIN)
        with meshrpc.call_options(subset="v2"):
            assert {await say(b"") for _ in range(10)} == {b"@two"}
        with meshrpc.call_options(subset="v1"):
            assert {await say(b"") for _ in range(10)} == {b"@one"}
        assert {await say(b"") for _ in range(20)} == {b"@one", b"@two"}


async def test_an_instance_that_changes_its_labels_changes_its_subset(mesh, registry):
    """From the next call on, over the same connection."""
    async with EchoServer("one") as server:
        await registry.register(replace(server.instance, version="v1"))
        channel = mesh.channel("echo")
        policy(mesh, subsets=SUBSETS)
        say = channel.unary_unary(PLAIN)
        with meshrpc.call_options(subset="v2"):
            with pytest.raises(grpc.aio.AioRpcError):
                await say(b"")
            await registry.register(replace(server.instance, version="v2"))
            assert await say(b"") == b"@one"


@pytest.mark.parametrize(
    ("subset", "because"),
    [
        ("v3", "service 'echo' has no active instance in subset 'v3' (version=v3)"),
        ("beta", "the policy of service 'echo' has no subset 'beta', only: v1, v2, v3"),
    ],
)
async def test_a_subset_without_instances_fails_the_call_and_says_so(
    mesh, registry, subset, because
):
    """No other instance is asked instead."""
    async with EchoServer("one") as server:
        await registry.register(server.instance)
        channel = mesh.channel("echo")
        policy(mesh, subsets=SUBSETS)
        await ready(channel, 1)
        with meshrpc.call_options(subset=subset), pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(PLAIN)(b"")
        assert (caught.value.code(), caught.value.details()) == (UNAVAILABLE, because)
        assert server.seen == []


async def test_names_of_subsets_that_are_none_are_not_remembered(mesh, registry):
    """There is no end to what calls may say."""
    async with EchoServer("one") as server:
        await registry.register(server.instance)
        channel = mesh.channel("echo")
        policy(mesh, subsets=SUBSETS)
        await ready(channel, 1)
        for number in range(100):
            with meshrpc.call_options(subset=f"no-{number}"):
                assert await channel.unary_unary(PLAIN)(b"").code() is UNAVAILABLE
        assert len(channel.bound()._choices._by_subset) <= 1 + len(SUBSETS)


async def test_a_call_that_waits_for_its_subset_goes_out_when_it_comes(mesh, registry):
    """Both when an instance of it comes, and when the policy learns of it."""
    async with EchoServer("one") as server:
        channel = mesh.channel("echo")
        say = channel.unary_unary(PLAIN)
        with meshrpc.call_options(subset="v2"):
            call = say(b"", wait_for_ready=True, timeout=5)
            await registry.register(replace(server.instance, version="v2"))
            await ready(channel, 1)
            policy(mesh, subsets=SUBSETS)
            assert await call == b"@one"


async def test_another_attempt_stays_in_the_subset(mesh, registry):
    """Even when everything in it fails."""
    async with AsyncExitStack() as stack:
        bad = EchoServer("bad", failing())
        good = EchoServer("good")
        await register(stack, registry, bad, version="v1")
        await register(stack, registry, good, version="v2")
        channel = mesh.channel("echo")
        await ready(channel, 2)
        policy(mesh, subsets=SUBSETS)
        with meshrpc.call_options(subset="v1"), pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary(IDEMPOTENT)(b"")
        assert (len(bad.seen), len(good.seen)) == (3, 0)


async def test_calls_of_one_hash_key_go_to_one_instance(mesh, registry):
    """With ring_hash; other keys go to others."""
    async with AsyncExitStack() as stack:
        await register(stack, registry, *[EchoServer(f"e{i}") for i in range(3)])
        channel = mesh.channel("echo")
        policy(mesh, balancer=Balancer(BalancerKind.RING_HASH))
        await ready(channel, 3)
        say = channel.unary_unary(PLAIN)
        answers = set()
        for key in range(20):
            with meshrpc.call_options(hash_key=f"cart-{key}"):
                (answer,) = {await say(b"") for _ in range(3)}
            answers.add(answer)
        assert answers == {b"@e0", b"@e1", b"@e2"}


async def test_a_call_that_must_not_be_tried_again_is_sent_once(mesh, registry):
    """Also when its method is idempotent, and no per-attempt timeout cuts its time short."""
    async with AsyncExitStack() as stack:
        servers = [EchoServer("a", failing()), EchoServer("b", failing())]
        await register(stack, registry, *servers)
        channel = mesh.channel("echo")
        await ready(channel, 2)
        with meshrpc.call_options(retry=False), pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary(IDEMPOTENT)(b"")
        assert sum(len(server.seen) for server in servers) == 1
        policy(mesh, retry=Retry(per_attempt_timeout=0.001))

        async def slow(server, context):
            await asyncio.sleep(0.05)

        for server in servers:
            server.script = slow
        with meshrpc.call_options(retry=False):
            await channel.unary_unary(IDEMPOTENT)(b"")


async def test_blocks_nest_and_end_where_they_end(mesh, registry):
    """What the inner one does not say, the outer one does; outside of both nothing is said."""
    async with EchoServer("one") as server:
        await registry.register(server.instance)
        say = mesh.channel("echo").unary_unary(PLAIN)
        with meshrpc.call_options(criticality="sheddable"):
            with meshrpc.call_options(retry=False):
                await say(b"")
            with meshrpc.call_options(criticality="critical"):
                await say(b"")
            with meshrpc.call_options(criticality="default"):
                await say(b"")
        await say(b"")
        said = [seen.get("mesh-criticality") for seen in server.seen]
        assert said == ["sheddable", "critical", None, None]


async def test_options_hold_for_streams_and_tasks_started_inside(mesh, registry):
    """They are read when a call is made."""
    async with EchoServer("one") as server:
        await registry.register(server.instance)
        channel = mesh.channel("echo")
        say = channel.unary_unary(PLAIN)

        async def later():
            await say(b"")

        with meshrpc.call_options(criticality="critical"):
            task = asyncio.create_task(later())
            stream = channel.unary_stream(COUNT_UP)(b"2")
        assert [each async for each in stream] == [b"0", b"1"]
        await task
        assert [seen["mesh-criticality"] for seen in server.seen] == ["critical"] * 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"criticality": "urgent"}, ValueError, "one of critical, default, sheddable"),
        ({"hash_key": 7}, TypeError, "hash_key=7: text, not int"),
        ({"subset": b"v1"}, TypeError, "subset=b'v1': text, not bytes"),
        ({"retry": "no"}, TypeError, "retry='no': True or False"),
    ],
)
def test_options_that_cannot_be_are_refused_where_they_are_said(options, error, message):
    """Not by some call later on."""
    with pytest.raises(error, match=message), meshrpc.call_options(**options):
        pass


# What a handler's calls inherit: front calls back while it serves.


@pytest.fixture
async def front(local_mesh):
    """A service whose handler calls `echo`, as its `script` says."""
    service = meshrpc.Service("front")
    echo = service.channel("echo").unary_unary(PLAIN)
    service.seen = []

    async def handler(request, context):
        service.seen.append(meshrpc.current_call())
        return await service.script(echo)

    async def nested(echo):
        return await echo(b"")

    service.script = nested
    service.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "test.Front", {"Ask": grpc.unary_unary_rpc_method_handler(handler)}
            ),
        )
    )
    await local_mesh.serve(service)
    return service


@pytest.fixture
async def echo(local_mesh):
    """What `front` calls: it is none of the mesh's own."""
    async with (
        EchoServer("one") as server,
        local_mesh.client.register("echo", f"127.0.0.1:{server.port}"),
    ):
        yield server


FRONT = "/test.Front/Ask"


async def test_criticality_is_carried_through_nested_calls(local_mesh, front, echo):
    """Unless the handler says otherwise."""
    ask = local_mesh.channel("front").unary_unary(FRONT)
    with meshrpc.call_options(criticality="sheddable"):
        await ask(b"")
    await ask(b"")

    async def says_otherwise(echo):
        with meshrpc.call_options(criticality="default"):
            return await echo(b"")

    front.script = says_otherwise
    with meshrpc.call_options(criticality="critical"):
        await ask(b"")
    assert [call.criticality for call in front.seen] == ["sheddable", "default", "critical"]
    said = [seen.get("mesh-criticality") for seen in echo.seen]
    assert said == ["sheddable", None, None]


async def test_a_handlers_calls_have_no_more_time_than_it_has(local_mesh, front, echo):
    """On the mesh's own clock, whatever they ask for."""
    ended = []

    async def asks_for_more(call):
        try:
            await call(b"", timeout=3600).code()
        finally:
            ended.append(local_mesh.clock.now())
        return b""

    front.script, echo.script = asks_for_more, hang
    began = local_mesh.clock.now()
    call = local_mesh.channel("front").unary_unary(FRONT)(b"", timeout=30)
    await local_mesh.clock.run(call.code())
    await local_mesh.clock.settle()
    (end,) = ended
    # By its own deadline, or cancelled by its caller: grpc rounds what it tells the server.
    assert end - began == pytest.approx(30, abs=1)


async def test_work_that_is_detached_outlives_its_call_and_has_no_deadline(local_mesh, front, echo):
    """Nor a criticality, nor a current call; a task started in the block keeps that."""
    released = asyncio.Event()
    done = asyncio.get_running_loop().create_future()

    async def wait(server, context):
        await released.wait()
        done.set_result(context.time_remaining())

    async def starts_work(call):
        async def work():
            assert meshrpc.current_call() is None
            await call(b"")

        with meshrpc.detached():
            front.work = asyncio.create_task(work())
        assert meshrpc.current_call() is not None
        return b"answered"

    front.script, echo.script = starts_work, wait
    with meshrpc.call_options(criticality="sheddable"):
        answer = await local_mesh.channel("front").unary_unary(FRONT)(b"", timeout=5)
    assert answer == b"answered"
    released.set()
    assert await done is None
    await front.work
    assert "mesh-criticality" not in echo.seen[0]
