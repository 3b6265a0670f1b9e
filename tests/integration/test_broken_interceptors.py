"""Interceptors that leave grpcio without a call, and closes that are given up: nothing is left."""

import asyncio
import gc

import grpc
import grpc.aio
import pytest

from meshrpc import Mesh
from meshrpc.registry.memory import MemoryRegistry
from tests.echo import EchoServer


class AnswersByItself(grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation, details, request):
        async def answers():
            yield b"own"
            yield b"own"

        return answers()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # grpcio's own
@pytest.mark.parametrize("how", ["read to its end", "cancelled", "dropped", "left open"])
async def test_a_stream_that_an_interceptor_answers_by_itself_leaves_nothing(how):
    """Grpcio fails to end such a call; it is pending no longer, and closing raises nothing."""
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # grpcio's own complaint
    async with (
        EchoServer("one") as server,
        Mesh("broken", control="none", registry=MemoryRegistry()) as mesh,
    ):
        channel = mesh.channel(f"static:127.0.0.1:{server.port}", interceptors=[AnswersByItself()])
        await channel.channel_ready()
        (endpoint,) = channel.bound().endpoints
        call = channel.unary_stream("/test.Echo/CountUp")(b"2")
        assert await call.read() == b"own"
        assert endpoint.pending == 1
        if how == "read to its end":
            assert [message async for message in call] == [b"own"]
            assert endpoint.pending == 0
        elif how == "cancelled":
            assert call.cancel()
            assert call.done()
            assert endpoint.pending == 0
        elif how == "dropped":
            del call
            await asyncio.sleep(0)
            assert endpoint.pending == 0
        await channel.close()
    call = None
    gc.collect()  # so that grpcio complains here, and not in a test that comes later


async def test_a_close_that_was_given_up_can_be_asked_for_again():
    """The second `close` ends what the first one waited for."""
    async with (
        EchoServer("one") as server,
        Mesh("broken", control="none", registry=MemoryRegistry()) as mesh,
    ):
        channel = mesh.channel(f"static:127.0.0.1:{server.port}")
        call = channel.stream_stream("/test.Echo/Mirror")()
        await call.write(b"1")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(channel.close(grace=30), 0.01)
        assert not call.done()
        await channel.close()
        assert call.cancelled()
        assert channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
