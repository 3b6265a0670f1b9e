"""What an error says of whether the call may have been executed."""

import asyncio

import grpc
import pytest

import meshrpc
from meshrpc import wire
from tests.echo import MIRROR, PLAIN, EchoServer, Handlers, failing, hang

UNSURE = "(one may have executed the call)"


async def test_a_call_cut_by_leaving_the_mesh_may_have_been_executed(registry):
    """It was under way, and whoever must not make it twice has to know."""
    async with EchoServer("one", hang) as one:
        async with meshrpc.Mesh("shell", registry=registry, control="none") as mesh:
            await registry.register(one.instance)
            call = mesh.channel("echo").unary_unary(PLAIN)(b"")
            await one.calls(1)
        assert await call.details() == f"the mesh was left {UNSURE}"


async def test_a_call_that_waits_when_the_mesh_is_left_was_not_executed(registry):
    """Nobody has seen it."""
    async with meshrpc.Mesh("shell", registry=registry, control="none") as mesh:
        call = mesh.channel("echo").unary_unary(PLAIN)(b"", wait_for_ready=True)
        await asyncio.sleep(0)
    assert await call.details() == "the mesh was left"


async def test_a_stream_that_was_answered_needs_no_telling(registry):
    """Its user knows that it was executed."""
    async with EchoServer("one") as one:
        async with meshrpc.Mesh("shell", registry=registry, control="none") as mesh:
            await registry.register(one.instance)
            stream = mesh.channel("echo").stream_stream(MIRROR)()
            await stream.write(b"1")
            assert await stream.read() == b"1"
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stream.read()
        assert raised.value.details() == "the mesh was left"


async def test_a_call_cut_because_its_server_left_may_have_been_executed(mesh, registry):
    """Its handler was at it; what the server said of it is kept."""
    cut = failing(details="the server is leaving", trailers=((wire.DRAIN, "1"),))
    async with EchoServer("one", cut) as one:
        await registry.register(one.instance)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await mesh.channel("echo").unary_unary(PLAIN)(b"")
    assert raised.value.details() == f"the server is leaving {UNSURE}"
    assert dict(raised.value.trailing_metadata())[wire.DRAIN] == "1"


async def test_a_call_on_a_connection_that_grew_too_old_may_have_been_executed(mesh, registry):
    """The server gives its connections an age, and calls no time to end: it hangs up on them."""
    one = EchoServer("one", hang)
    one.server = grpc.aio.server(
        options=[("grpc.max_connection_age_ms", 100), ("grpc.max_connection_age_grace_ms", 1)]
    )
    one.server.add_generic_rpc_handlers((Handlers(one),))
    one.port = one.server.add_insecure_port("127.0.0.1:0")
    await one.server.start()
    await registry.register(one.instance)
    call = mesh.channel("echo").unary_unary(PLAIN)(b"", timeout=10)
    assert await call.code() is grpc.StatusCode.UNAVAILABLE
    assert (await call.details()).endswith(UNSURE)
    await one.server.stop(None)
