"""The user's client interceptors: what they see, and what they cannot break."""

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

import meshrpc
from tests.echo import IDEMPOTENT, PLAIN, EchoServer, ready

CODEC = {
    "request_serializer": StringValue.SerializeToString,
    "response_deserializer": StringValue.FromString,
}
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


@pytest.fixture
async def mesh(registry):
    async with meshrpc.Mesh("shop", control="none", registry=registry) as mesh:
        yield mesh


def interceptor(kind, intercept):
    """An interceptor of one kind that is `intercept(continuation, details, request)`."""
    base = getattr(grpc.aio, kind.title().replace("_", "") + "ClientInterceptor")

    async def method(self, continuation, details, request):
        return await intercept(continuation, details, request)

    return type("Interceptor", (base,), {f"intercept_{kind}": method})()


@pytest.mark.parametrize("kind", KINDS)
async def test_metadata_replaced_by_an_interceptor_loses_nothing_of_the_meshs(mesh, registry, kind):
    """Who calls and who is meant come in beneath it; and what was criticality stays so."""

    async def replace(continuation, details, request):
        return await continuation(details._replace(metadata=(("only", "this"),)), request)

    async with EchoServer("one") as server:
        await registry.register(server.instance)
        channel = mesh.channel("echo", interceptors=[interceptor(kind, replace)])
        path = {"unary_unary": PLAIN, "unary_stream": "/t.T/CountUp", "stream_unary": "/t.T/Join"}
        method = getattr(channel, kind)(path.get(kind, "/t.T/Mirror"))
        with meshrpc.call_options(criticality="critical"):
            call = method(iter([b"1"]) if kind.startswith("stream") else b"1", timeout=5)
        if kind.endswith("stream"):
            assert len([each async for each in call]) == 1
        else:
            await call
        (seen,) = server.seen
        added = {key: value for key, value in seen.items() if key.startswith("mesh-")}
        assert added == {
            "mesh-caller": "shop",
            "mesh-target": "one",
            "mesh-criticality": "critical",
        }
        assert seen["only"] == "this"


async def test_the_mesh_adds_its_metadata_once_however_often_a_call_is_tried(mesh, registry):
    """An interceptor that calls again by itself sends the same again."""

    async def twice(continuation, details, request):
        await (await continuation(details, request))
        return await continuation(details, request)

    async with EchoServer("one") as server:
        await registry.register(server.instance)
        seen = []

        async def script(server, context):
            seen.append([key for key, _ in context.invocation_metadata()])

        server.script = script
        channel = mesh.channel("echo", interceptors=[interceptor("unary_unary", twice)])
        assert await channel.unary_unary(IDEMPOTENT)(b"") == b"@one"
        assert [keys.count("mesh-caller") for keys in seen] == [1, 1]


async def test_what_an_interceptor_makes_and_nobody_can_send_fails_the_call(mesh, registry, caplog):
    """grpcio would send an empty message; the log says what was wrong with it."""

    async def replace(continuation, details, request):
        return await continuation(details, 7)

    async with EchoServer("one") as server:
        await registry.register(server.instance)
        channel = mesh.channel("echo", interceptors=[interceptor("unary_unary", replace)])
        call = channel.unary_unary(PLAIN, **CODEC)(StringValue(value="a"))
        with pytest.raises(TypeError, match="UnsendableMessage"):
            await call
        assert call.done()
        assert server.seen == []
        assert "an interceptor made what cannot be sent" in caplog.text
        (endpoint,) = channel.bound().endpoints
        assert endpoint.pending == 0


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream"])
async def test_an_answer_that_cannot_be_read_is_internal_through_interceptors_too(
    mesh, registry, kind
):
    """grpcio's interceptors, and then its user, would get None."""

    async def pass_on(continuation, details, request):
        return await continuation(details, request)

    async with EchoServer("one") as server:
        await registry.register(server.instance)
        channel = mesh.channel("echo", interceptors=[interceptor(kind, pass_on)])
        path = PLAIN if kind == "unary_unary" else "/t.T/CountUp"
        method = getattr(channel, kind)(path, response_deserializer=StringValue.FromString)
        call = method(b"1")
        with pytest.raises(grpc.aio.AioRpcError, match="cannot read the answer") as raised:
            await (call if kind == "unary_unary" else call.read())
        assert raised.value.code() is grpc.StatusCode.INTERNAL


async def test_kinds_that_nobody_intercepts_take_no_detour(mesh, registry):
    """Their calls are grpcio's plain ones."""

    async def never(continuation, details, request):
        raise AssertionError

    async with EchoServer("one") as server:
        await registry.register(server.instance)
        channel = mesh.channel("echo", interceptors=[interceptor("stream_stream", never)])
        await ready(channel, 1)
        call = channel.unary_unary(PLAIN)(b"")
        assert await call == b"@one"
        assert isinstance(call._attempt.inner, grpc.aio._call.UnaryUnaryCall)
