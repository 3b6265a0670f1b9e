"""The channel against real grpc servers on loopback, instances coming and going in a registry."""

import asyncio
import gc
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

import meshrpc
from meshrpc import wire
from meshrpc.client.endpoint import READY
from meshrpc.interceptors.server_call import CURRENT, ServerCall
from meshrpc.policy.model import Retry
from meshrpc.registry.instance import Instance
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.registry.registry import Snapshot
from tests.echo import (
    IDEMPOTENT,
    PLAIN,
    ROUND_ROBIN,
    UNAVAILABLE,
    EchoServer,
    Handlers,
    failing,
    policy,
    ready,
)

_FILES = Path("/proc/self/fd")


async def test_all_four_kinds_of_call_answer_as_grpcio_does(mesh, registry):
    """Unary and streaming, by iterator and by read and write."""
    async with EchoServer("one") as one:
        await registry.register(one.instance)
        channel = mesh.channel("echo")
        assert await channel.unary_unary(PLAIN)(b"hi") == b"hi@one"
        assert [m async for m in channel.unary_stream("/test.Echo/CountUp")(b"3")] == [
            b"0",
            b"1",
            b"2",
        ]

        async def messages():
            yield b"a"
            yield b"b"

        assert await channel.stream_unary("/test.Echo/Join")(messages()) == b"ab"
        assert await channel.stream_unary("/test.Echo/Join")(iter([b"x", b"y"])) == b"xy"
        assert [m async for m in channel.stream_stream("/test.Echo/Mirror")(messages())] == [
            b"a",
            b"b",
        ]
        call = channel.stream_stream("/test.Echo/Mirror")()
        await call.write(b"1")
        assert await call.read() == b"1"
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        joined = channel.stream_unary("/test.Echo/Join")()
        await joined.write(b"p")
        await joined.write(b"q")
        await joined.done_writing()
        assert await joined == b"pq"


async def test_a_call_object_has_all_that_grpcios_has(mesh, registry):
    """Code, details, metadata, done callbacks and a second await, and the peer besides."""

    async def script(server, context):
        await context.send_initial_metadata((("first", "1"),))
        context.set_trailing_metadata((("last", "2"),))

    async with EchoServer("one", script) as one:
        await registry.register(one.instance)
        call = mesh.channel("echo").unary_unary(PLAIN)(b"hi", timeout=5, metadata=(("mine", "3"),))
        done = asyncio.Event()
        call.add_done_callback(lambda c: done.set())
        assert 4 < call.time_remaining() <= 5
        assert dict(await call.initial_metadata())["first"] == "1"
        assert await call == b"hi@one"
        assert await call == b"hi@one"
        assert await call.code() is grpc.StatusCode.OK
        assert dict(await call.trailing_metadata())["last"] == "2"
        assert call.done()
        assert not call.cancelled()
        assert not call.cancel()
        assert call.peer().id == "one"
        assert isinstance(call, grpc.aio.UnaryUnaryCall)
        await asyncio.wait_for(done.wait(), 10)
        assert one.seen[0]["mine"] == "3"


async def test_the_callee_learns_who_calls_and_which_instance_is_meant(mesh, registry):
    """`mesh-caller` and `mesh-target` travel with every call."""
    async with EchoServer("one") as one:
        await registry.register(one.instance)
        await mesh.channel("echo").unary_unary(PLAIN)(b"")
        assert one.seen[0][wire.CALLER] == "shell"
        assert one.seen[0][wire.TARGET] == "one"


async def test_calls_are_spread_over_every_ready_instance(mesh, registry):
    """Round robin over three instances: ten calls each of thirty."""
    async with EchoServer("a") as a, EchoServer("b") as b, EchoServer("c") as c:
        for server in (a, b, c):
            await registry.register(server.instance)
        channel = mesh.channel("echo")
        policy(mesh, balancer=ROUND_ROBIN)
        call = channel.unary_unary(PLAIN)
        await call(b"")
        await ready(channel, 3)
        for server in (a, b, c):
            server.seen.clear()
        for _ in range(30):
            await call(b"")
        assert [len(server.seen) for server in (a, b, c)] == [10, 10, 10]


async def test_a_failed_idempotent_call_succeeds_on_another_instance(mesh, registry):
    """The second attempt avoids the instance of the first."""
    async with EchoServer("bad", failing()) as bad, EchoServer("good") as good:
        await registry.register(bad.instance)
        await registry.register(good.instance)
        channel = mesh.channel("echo")
        policy(mesh, balancer=ROUND_ROBIN)
        await channel.channel_ready()
        await ready(channel, 2)
        answers = [await channel.unary_unary(IDEMPOTENT)(b"") for _ in range(6)]
        assert answers == [b"@good"] * 6
        assert len(bad.seen) == 3


async def test_a_failed_call_that_may_not_be_repeated_fails_as_it_did(mesh, registry):
    """No second attempt, and the server's own code, details and trailers."""
    script = failing(UNAVAILABLE, "broken pipe", (("why", "because"),))
    async with EchoServer("bad", script) as bad, EchoServer("bad2", script) as bad2:
        await registry.register(bad.instance)
        await registry.register(bad2.instance)
        call = mesh.channel("echo").unary_unary(PLAIN)(b"")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call
        assert raised.value.code() is UNAVAILABLE
        assert raised.value.details() == "broken pipe"
        assert dict(raised.value.trailing_metadata())["why"] == "because"
        assert await call.code() is UNAVAILABLE
        assert len(bad.seen) + len(bad2.seen) == 1


async def test_what_was_refused_before_its_handler_is_sent_elsewhere(mesh, registry):
    """`mesh-not-executed` makes any call repeatable, a stream of requests included."""
    script = failing(UNAVAILABLE, "leaving", ((wire.NOT_EXECUTED, "1"),))
    async with EchoServer("leaving", script) as leaving, EchoServer("good") as good:
        await registry.register(leaving.instance)
        await registry.register(good.instance)
        channel = mesh.channel("echo")
        policy(mesh, balancer=ROUND_ROBIN)
        await channel.channel_ready()
        await ready(channel, 2)
        for _ in range(4):
            assert await channel.unary_unary(PLAIN)(b"") == b"@good"
            assert await channel.stream_unary("/test.Echo/Join")(iter([b"only"])) == b"only"
            stream = channel.unary_stream("/test.Echo/CountUp")(b"2")
            assert [m async for m in stream] == [b"0", b"1"]
        assert leaving.seen


async def test_a_stream_that_has_begun_is_never_repeated(mesh, registry):
    """After its first message a broken stream fails, although the method is idempotent."""

    class Breaking(Handlers):
        def service(self, details):
            async def one_then_break(request, context):
                await self.echo.enter(context)
                yield b"first"
                await context.abort(UNAVAILABLE, "broke")

            return grpc.unary_stream_rpc_method_handler(one_then_break)

    async with EchoServer("one") as one:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Breaking(one),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        await registry.register(replace(one.instance, address=f"127.0.0.1:{port}"))
        received = []
        with pytest.raises(grpc.aio.AioRpcError, match="broke"):
            async for message in mesh.channel("echo").unary_stream(IDEMPOTENT)(b""):
                received.append(message)  # noqa: PERF401 - kept although the loop raises
        assert received == [b"first"]
        assert len(one.seen) == 1
        await server.stop(None)


async def test_a_dead_instance_that_is_still_registered_costs_no_call(mesh, registry):
    """A refused connection never carried the call, so even a plain one goes elsewhere."""
    async with EchoServer("good") as good:
        async with EchoServer("dead") as dead:
            pass
        await registry.register(dead.instance)
        await registry.register(good.instance)
        channel = mesh.channel("echo")
        for _ in range(10):
            assert await channel.unary_unary(PLAIN)(b"", timeout=5) == b"@good"


async def test_a_service_without_instances_fails_at_once_and_says_so(mesh):
    """Fail fast is the default, as in gRPC."""
    with pytest.raises(grpc.aio.AioRpcError, match="'echo' has no instances") as raised:
        await mesh.channel("echo").unary_unary(PLAIN)(b"", timeout=30)
    assert raised.value.code() is UNAVAILABLE


async def test_wait_for_ready_waits_for_an_instance_to_come(mesh, registry):
    """The call goes out when the first instance is there."""
    call = mesh.channel("echo").unary_unary(PLAIN)(b"hi", wait_for_ready=True, timeout=10)
    async with EchoServer("late") as late:
        await registry.register(late.instance)
        assert await call == b"hi@late"


async def test_wait_for_ready_ends_at_the_deadline(mesh):
    """Nobody came: DEADLINE_EXCEEDED, saying what was waited for."""
    say = mesh.channel("echo").unary_unary(PLAIN)
    with pytest.raises(grpc.aio.AioRpcError, match="has no instances"):
        await say(b"")  # the registry has said so by now
    with pytest.raises(grpc.aio.AioRpcError, match="no instance became ready") as raised:
        await say(b"", wait_for_ready=True, timeout=0.05)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_every_instance_refusing_connections_fails_with_grpcs_own_cause(mesh, registry):
    """The details name the address and "Connection refused"."""
    async with EchoServer("dead") as dead:
        pass
    await registry.register(dead.instance)
    with pytest.raises(grpc.aio.AioRpcError, match="Connection refused") as raised:
        await mesh.channel("echo").unary_unary(PLAIN)(b"", timeout=5)
    assert raised.value.code() is UNAVAILABLE


async def test_a_draining_instance_gets_no_new_call_and_keeps_those_it_has(mesh, registry):
    """The pick set changes at once; what is under way ends undisturbed."""
    release = asyncio.Event()

    async def hold(server, context):
        await release.wait()

    async with EchoServer("old", hold) as old, EchoServer("new") as new:
        await registry.register(old.instance)
        channel = mesh.channel("echo")
        held = channel.unary_unary(PLAIN)(b"held")
        await old.calls(1)
        await registry.register(new.instance)
        await ready(channel, 2)
        await registry.drain(old.instance)
        for _ in range(10):
            assert await channel.unary_unary(PLAIN)(b"") == b"@new"
        await registry.deregister(old.instance)
        release.set()
        assert await held == b"held@old"


async def test_endpoints_keep_their_statistics_across_registry_updates(mesh, registry):
    """An instance that stays is the same endpoint, over the same connection."""
    async with EchoServer("one") as one, EchoServer("two") as two:
        await registry.register(one.instance)
        channel = mesh.channel("echo")
        await channel.unary_unary(PLAIN)(b"")
        (before,) = channel.bound().endpoints
        await registry.register(two.instance)
        await registry.register(replace(one.instance, weight=5))
        after = {e.instance.id: e for e in channel.bound().endpoints}["one"]
        assert after is before
        assert after.instance.weight == 5
        assert after.load.value(mesh.clock.now()) > 0


async def test_the_policys_timeout_bounds_unary_calls_and_an_explicit_one_wins(mesh, registry):
    """And a stream has no deadline nobody asked for."""
    hold = asyncio.Event()

    async def wait(server, context):
        await hold.wait()

    async with EchoServer("slow", wait) as slow:
        await registry.register(slow.instance)
        channel = mesh.channel("echo")
        await channel.channel_ready()
        policy(mesh, timeout=0.05)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary(PLAIN)(b"")
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        call = channel.unary_unary(PLAIN)(b"", timeout=60)
        assert call.time_remaining() > 50
        call.cancel()
        stream = channel.unary_stream("/test.Echo/CountUp")(b"1")
        assert stream.time_remaining() is None
        hold.set()
        assert [m async for m in stream] == [b"0"]


async def test_an_attempt_that_hangs_is_tried_elsewhere_within_the_calls_deadline(mesh, registry):
    """`per_attempt_timeout` ends the attempt, not the call."""

    async def hang_once(server, context):
        if len(server.seen) == 1:
            await asyncio.Event().wait()

    async with EchoServer("hangs", hang_once) as hangs, EchoServer("good") as good:
        await registry.register(hangs.instance)
        await registry.register(good.instance)
        channel = mesh.channel("echo")
        policy(mesh, balancer=ROUND_ROBIN, retry=Retry(per_attempt_timeout=0.5))
        await channel.channel_ready()
        await ready(channel, 2)
        while not hangs.seen:
            assert await channel.unary_unary(IDEMPOTENT)(b"", timeout=10) == b"@good"


async def test_a_changed_policy_holds_from_the_next_call(mesh, registry):
    """Retries can be switched off while running."""
    async with EchoServer("bad", failing()) as bad:
        await registry.register(bad.instance)
        channel = mesh.channel("echo")
        stub = channel.unary_unary(IDEMPOTENT)
        for attempts, expected in ((1, 1), (2, 2)):
            policy(mesh, retry=Retry(attempts=attempts))
            bad.seen.clear()
            with pytest.raises(grpc.aio.AioRpcError):
                await stub(b"", timeout=5)
            assert len(bad.seen) == expected


async def test_cancelling_a_call_reaches_the_handler_and_frees_the_endpoint(mesh, registry):
    """Nothing stays pending."""

    async def wait(server, context):
        await asyncio.Event().wait()

    async with EchoServer("one", wait) as one:
        await registry.register(one.instance)
        channel = mesh.channel("echo")
        call = channel.unary_unary(PLAIN)(b"")
        await one.calls(1)
        (endpoint,) = channel.bound().endpoints
        assert endpoint.pending == 1
        assert call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert call.cancelled()
        assert await call.code() is grpc.StatusCode.CANCELLED
        await asyncio.wait_for(one.cancelled.wait(), 5)
        assert endpoint.pending == 0


async def test_cancelling_the_awaiting_task_cancels_the_call(mesh, registry):
    """As with grpcio: `wait_for` over a call leaves nothing running on the server."""

    async def wait(server, context):
        await asyncio.Event().wait()

    async with EchoServer("one", wait) as one:
        await registry.register(one.instance)
        channel = mesh.channel("echo")
        await channel.channel_ready()
        call = channel.unary_unary(PLAIN)(b"")
        await one.calls(1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call, 0.01)
        await asyncio.wait_for(one.cancelled.wait(), 5)


async def test_cancelling_while_waiting_for_an_instance_ends_the_call(mesh):
    """A call without an attempt can be cancelled too."""
    call = mesh.channel("echo").unary_unary(PLAIN)(b"", wait_for_ready=True)
    await asyncio.sleep(0)
    assert call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert call.cancelled()


async def test_a_stream_nobody_holds_any_more_is_cancelled(mesh, registry):
    """The server stops streaming, and nothing stays pending."""

    async def wait(server, context):
        await asyncio.Event().wait()

    async with EchoServer("one", wait) as one:
        await registry.register(one.instance)
        channel = mesh.channel("echo")
        call = channel.unary_stream("/test.Echo/CountUp")(b"5")
        await one.calls(1)
        del call
        gc.collect()
        await asyncio.wait_for(one.cancelled.wait(), 5)


async def test_a_serialiser_that_fails_raises_instead_of_sending_nothing(mesh, registry):
    """grpcio would send an empty message."""
    async with EchoServer("one") as one:
        await registry.register(one.instance)
        channel = mesh.channel("echo")

        def broken(message):
            raise ValueError("cannot be serialised")

        with pytest.raises(ValueError, match="cannot be serialised"):
            await channel.unary_unary(PLAIN, request_serializer=broken)(b"")
        with pytest.raises(ValueError, match="cannot be serialised"):
            await channel.stream_unary("/test.Echo/Join", request_serializer=broken)(iter([b"x"]))
        with pytest.raises(grpc.aio.AioRpcError, match="cannot read the answer") as raised:
            await channel.unary_unary(PLAIN, response_deserializer=broken)(b"")
        assert raised.value.code() is grpc.StatusCode.INTERNAL


async def test_a_request_iterator_that_raises_raises_at_the_caller(mesh, registry):
    """grpcio would cancel the call and lose the reason."""
    async with EchoServer("one") as one:
        await registry.register(one.instance)

        async def messages():
            yield b"a"
            raise RuntimeError("out of messages")

        channel = mesh.channel("echo")
        with pytest.raises(RuntimeError, match="out of messages"):
            await channel.stream_unary("/test.Echo/Join")(messages())
        with pytest.raises(RuntimeError, match="out of messages"):
            async for _ in channel.stream_stream("/test.Echo/Mirror")(messages()):
                pass


async def test_an_endpoint_closed_under_a_call_is_unavailable_not_cancelled(mesh, registry):
    """Nobody cancelled; the connection went away."""

    async def wait(server, context):
        await asyncio.Event().wait()

    async with EchoServer("one", wait) as one:
        await registry.register(one.instance)
        channel = mesh.channel("echo")
        call = channel.unary_unary(PLAIN)(b"")
        await one.calls(1)
        (endpoint,) = channel.bound().endpoints
        await endpoint.close(grace=0.0)
        with pytest.raises(grpc.aio.AioRpcError, match="was closed") as raised:
            await call
        assert raised.value.code() is UNAVAILABLE
        assert await call.code() is UNAVAILABLE


async def test_a_channel_waits_for_its_calls_before_it_closes(mesh, registry):
    """With grace, what is under way ends; what comes after is refused."""
    release = asyncio.Event()

    async def hold(server, context):
        await release.wait()

    async with EchoServer("one", hold) as one:
        await registry.register(one.instance)
        channel = mesh.channel("echo")
        call = channel.unary_unary(PLAIN)(b"x")
        closing = asyncio.create_task(channel.close(grace=10))
        await one.calls(1)
        with pytest.raises(grpc.aio.UsageError, match="closed"):
            channel.unary_unary(PLAIN)(b"y")
        release.set()
        await closing
        assert await call == b"x@one"


async def test_a_mesh_that_is_not_entered_says_how_to_enter_it(registry):
    """The channel may be made before; calling needs the mesh."""
    mesh = meshrpc.Mesh("shell", registry=registry, control="none")
    channel = mesh.channel("echo")
    with pytest.raises(grpc.aio.UsageError, match="async with mesh"):
        channel.unary_unary(PLAIN)(b"")


def test_a_mesh_can_be_entered_again_in_another_event_loop():
    """Stubs made once work in each `asyncio.run`."""
    mesh = meshrpc.Mesh("shell", registry=MemoryRegistry(), control="none")
    stub = mesh.channel("echo").unary_unary(PLAIN)

    async def call_once(name):
        async with mesh, EchoServer(name) as server:
            await mesh.registry.register(server.instance)
            answer = await stub(b"")
            await mesh.registry.deregister(server.instance)
            return answer

    assert asyncio.run(call_once("one")) == b"@one"
    assert asyncio.run(call_once("two")) == b"@two"


async def test_a_static_target_needs_no_registry(mesh):
    """Servers outside the mesh are called through the same channel, without `mesh-target`."""
    async with EchoServer("a") as a, EchoServer("b") as b:
        channel = mesh.channel(f"static:127.0.0.1:{a.port},127.0.0.1:{b.port}")
        await channel.channel_ready()
        answers = {await channel.unary_unary(PLAIN)(b"") for _ in range(40)}
        assert answers == {b"@a", b"@b"}
        assert wire.TARGET not in a.seen[0]


async def test_a_dns_target_is_every_address_of_the_name(mesh, only_tasks):
    """By that name as the authority, and without `mesh-target`; closing leaves no task."""
    before = asyncio.all_tasks()
    async with EchoServer("far") as server:
        target = f"dns://localhost:{server.port}"
        async with mesh.channel(target) as channel:
            assert await channel.unary_unary(PLAIN)(b"hi", wait_for_ready=True) == b"hi@far"
            assert channel.bound()._dialing.authority == f"localhost:{server.port}"
        assert "mesh-target" not in server.seen[0]
    await only_tasks(before)


async def test_a_call_that_waits_for_whoever_is_ready_is_not_bound_to_one(mesh, registry):
    """Its instance's connection breaks just as it is picked: it goes to the one that is ready."""
    async with EchoServer("gone") as gone, EchoServer("there") as there:
        await registry.register(gone.instance)
        channel = mesh.channel("echo")
        await ready(channel, 1)
        (endpoint,) = channel.bound().endpoints
        await gone.server.stop(None)
        while endpoint.is_ready():
            await asyncio.wait_for(channel.wait_for_state_change(READY), 5)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(type(endpoint), "is_ready", lambda self: True)
            call = channel.unary_unary(PLAIN)(b"hi", wait_for_ready=True, timeout=10)
        await registry.register(there.instance)
        assert await call == b"hi@there"


async def test_thousands_of_calls_leave_nothing_behind(mesh, registry, only_tasks):
    """No task, no pending attempt, no call object survives."""
    async with EchoServer("one") as one:
        await registry.register(one.instance)
        channel = mesh.channel("echo")
        stub = channel.unary_unary(PLAIN)
        await stub(b"")
        tasks = asyncio.all_tasks()
        for _ in range(20):
            await asyncio.gather(*(stub(b"") for _ in range(100)))
        (endpoint,) = channel.bound().endpoints
        assert endpoint.pending == 0
        await only_tasks(tasks)
        gc.collect()
        assert len(channel._calls) == 0


async def test_a_killed_connection_fails_over_for_idempotent_calls(mesh, registry):
    """A server that vanishes mid-call costs no idempotent call."""
    async with EchoServer("good") as good:
        async with EchoServer("dying") as dying:

            async def hang(server, context):
                await asyncio.Event().wait()

            dying.script = hang
            await registry.register(dying.instance)
            await registry.register(good.instance)
            channel = mesh.channel("echo")
            policy(mesh, balancer=ROUND_ROBIN)
            await channel.channel_ready()
            await ready(channel, 2)
            calls = [channel.unary_unary(IDEMPOTENT)(b"", timeout=10) for _ in range(8)]
            await dying.calls(4)
        assert await asyncio.gather(*calls) == [b"@good"] * 8


async def test_instances_can_come_and_go_while_calls_run(mesh, registry):
    """A hundred changes of the registry under steady calls: none fails."""
    async with EchoServer("a") as a, EchoServer("b") as b:
        await registry.register(a.instance)
        channel = mesh.channel("echo")
        await channel.channel_ready()
        stop = asyncio.Event()

        async def call_steadily():
            made = 0
            while not stop.is_set():
                await channel.unary_unary(PLAIN)(b"", timeout=5)
                made += 1
            return made

        callers = [asyncio.create_task(call_steadily()) for _ in range(4)]
        for _ in range(25):
            for comes, goes in ((b, a), (a, b)):
                await registry.register(comes.instance)
                await ready(channel, 2)
                await registry.drain(goes.instance)
                await registry.deregister(goes.instance)
                await ready(channel, 1)
        stop.set()
        assert sum(await asyncio.gather(*callers)) > 0


async def test_an_instance_at_a_new_address_is_a_new_endpoint(mesh, registry):
    """The old one keeps the call it has; the new one gets those that come."""
    release = asyncio.Event()

    async def hold(server, context):
        await release.wait()

    async with EchoServer("old", hold) as old, EchoServer("new") as new:
        await registry.register(old.instance)
        channel = mesh.channel("echo")
        held = channel.unary_unary(PLAIN)(b"held")
        await old.calls(1)
        await registry.register(replace(old.instance, address=new.instance.address))
        await channel.channel_ready()
        assert await channel.unary_unary(PLAIN)(b"") == b"@new"
        assert len(channel.bound().endpoints) == 1
        release.set()
        assert await held == b"held@old"


async def test_a_record_that_stands_there_twice_is_one_endpoint(mesh, registry):
    """And no connection is opened that nobody would ever close."""
    async with EchoServer("one") as one:
        await registry.register(one.instance)
        channel = mesh.channel("echo")
        await channel.channel_ready()
        tasks = len(asyncio.all_tasks())
        other = replace(one.instance, id="other")
        channel.bound().discovery.take_in(Snapshot("echo", (one.instance, other, other)))
        assert len(channel.bound().endpoints) == 2
        assert len(asyncio.all_tasks()) == tasks + 1


async def test_wait_for_ready_outlasts_instances_that_refuse_connections(mesh, registry):
    """Without it the call fails; with it, it goes out when somebody listens there again."""
    async with EchoServer("one") as one:
        pass
    await registry.register(one.instance)
    call = mesh.channel("echo").unary_unary(PLAIN)(b"x", wait_for_ready=True, timeout=20)
    with pytest.raises(grpc.aio.AioRpcError, match="Connection refused"):
        await mesh.channel("echo").unary_unary(PLAIN)(b"", timeout=5)
    async with one:
        assert await call == b"x@one"


async def test_an_instance_that_cannot_be_dialled_says_why(mesh, registry):
    """Whoever wrote its record did not say where it is."""
    await registry.register(Instance(id="one", service="echo", address="nowhere"))
    with pytest.raises(grpc.aio.AioRpcError, match=r"instance one was skipped: .*host:port"):
        await mesh.channel("echo").unary_unary(PLAIN)(b"")


async def test_a_handlers_remaining_time_bounds_the_calls_it_makes(mesh, registry):
    """The shorter of the two; a stream without a timeout of its own as well."""
    async with EchoServer("one") as one:
        await registry.register(one.instance)
        channel = mesh.channel("echo")
        stub = channel.unary_unary(PLAIN)
        CURRENT.set(ServerCall("/test.Echo/Outer", timeout=5.0))
        assert 4 < stub(b"").time_remaining() <= 5
        assert 4 < stub(b"", timeout=60).time_remaining() <= 5
        assert stub(b"", timeout=1).time_remaining() <= 1
        assert 4 < channel.unary_stream("/test.Echo/CountUp")(b"0").time_remaining() <= 5
        CURRENT.set(ServerCall("/test.Echo/Outer", timeout=0.0))
        with pytest.raises(grpc.aio.AioRpcError, match="before the call was sent") as raised:
            await stub(b"", timeout=60)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.skipif(not _FILES.exists(), reason="open files are counted in /proc")
async def test_endpoints_that_come_and_go_leave_no_task_and_no_connection(mesh, registry):
    """Fifty instances, with the garbage collector off."""

    def open_files():
        return len(list(_FILES.iterdir()))

    async with EchoServer("one") as one:
        await registry.register(one.instance)
        channel = mesh.channel("echo")
        await channel.channel_ready()
        gc.disable()
        try:
            tasks, files = len(asyncio.all_tasks()), open_files()
            for number in range(50):
                other = replace(one.instance, id=f"other-{number}")
                await registry.register(other)
                await ready(channel, 2)
                await registry.deregister(other)
            retiring = channel.bound()._endpoints._retiring
            await asyncio.gather(*retiring)
            async with asyncio.timeout(5):
                while open_files() > files + 2:  # noqa: ASYNC110 - grpc closes in its own time
                    await asyncio.sleep(0.01)
            assert len(asyncio.all_tasks()) <= tasks
        finally:
            gc.enable()


async def test_a_registry_that_never_answers_is_not_waited_for_for_ever(monkeypatch):
    """Without a deadline a call gives up after some seconds, and says what it knows nothing of."""
    monkeypatch.setattr("meshrpc.client.destination.ANSWER_WITHIN", 0.05)
    async with meshrpc.Mesh("shell", control="127.0.0.1:9") as mesh:
        with pytest.raises(grpc.aio.AioRpcError, match="cannot reach the control") as raised:
            await mesh.channel("echo").unary_unary(PLAIN)(b"")
        assert raised.value.code() is UNAVAILABLE


@pytest.mark.parametrize(
    "name", ["", "a b", "a/b", "*", "zählung", " shop", "shop\n", "x" * 200, None, 5]
)
def test_a_name_that_is_none_is_refused_at_once(name):
    """Of a process, a service or a target: one rule for all."""
    with pytest.raises(meshrpc.SettingsError, match="name"):
        meshrpc.Mesh(name, control="none", registry="memory:")
    with pytest.raises(meshrpc.SettingsError, match="name"):
        meshrpc.Service(name, control="none", registry="memory:")
    with pytest.raises(meshrpc.SettingsError, match="channel to"):
        meshrpc.Mesh("shell", control="none", registry="memory:").channel(name)


@pytest.mark.parametrize("target", ["static:", "static:foo", "dns://host", "dns:host:0"])
def test_a_target_that_cannot_be_dialled_is_refused_at_once(target):
    """Not at the first call."""
    with pytest.raises(meshrpc.SettingsError):
        meshrpc.Mesh("shell", control="none", registry="memory:").channel(target)


async def test_a_channel_that_is_dropped_lets_go_of_its_connections(mesh, registry):
    """As grpcio's does, without the garbage collector; but not while a call or a stub is held."""
    async with EchoServer("one") as one:
        await registry.register(one.instance)
        say = mesh.channel("echo").unary_unary(PLAIN)
        assert await say(b"") == b"@one"
        stream = mesh.channel("echo").stream_stream("/t.T/Mirror")()
        await stream.write(b"still here")
        assert await stream.read() == b"still here"
        (destination,) = mesh._session.destinations
        del say
        await stream.write(b"and still")
        assert await stream.read() == b"and still"
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        del stream
        await asyncio.sleep(0)  # the loop is told of it
        await asyncio.gather(*mesh._session._releasing)
        assert destination.closed
        assert mesh._session.destinations == ()


def test_a_channel_that_is_dropped_after_its_loop_harms_nobody():
    """Nothing is left to close."""

    async def main():
        async with EchoServer("one") as one, MemoryRegistry() as registry:
            await registry.register(one.instance)
            mesh = meshrpc.Mesh("shell", registry=registry, control="none")
            async with mesh:
                channel = mesh.channel("echo")
                assert await channel.unary_unary(PLAIN)(b"") == b"@one"
                held.append(channel)

    held = []
    asyncio.run(main())
    held.clear()
