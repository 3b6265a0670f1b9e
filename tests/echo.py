"""For tests of the client: a bare grpc.aio server that answers with its name, or as scripted."""

import asyncio

import grpc

from meshrpc.policy.model import Balancer, BalancerKind, Policy
from meshrpc.registry.instance import Instance
from services.payment.v1 import payment_pb2  # noqa: F401 - declares which methods are idempotent

IDEMPOTENT = "/payment.v1.PaymentService/GetPayment"
PLAIN = "/test.Echo/Say"
COUNT_UP = "/test.Echo/CountUp"
JOIN = "/test.Echo/Join"
MIRROR = "/test.Echo/Mirror"
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
ROUND_ROBIN = Balancer(BalancerKind.ROUND_ROBIN)


class EchoServer:
    """A bare grpc.aio server; every method answers with the server's name.

    `script` runs first in every handler: it may abort, wait, or answer itself.
    """

    def __init__(self, name, script=None):
        self.name = name
        self.script = script
        self.seen = []
        self.arrived = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.port = 0

    async def __aenter__(self):
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self.server.add_generic_rpc_handlers((Handlers(self),))
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()
        return self

    async def __aexit__(self, *_):
        await self.server.stop(None)

    @property
    def instance(self):
        return Instance(id=self.name, service="echo", address=f"127.0.0.1:{self.port}", pid=1)

    async def calls(self, count):
        """Wait until so many calls have arrived."""
        async with asyncio.timeout(5):
            while len(self.seen) < count:
                self.arrived.clear()
                await self.arrived.wait()

    async def enter(self, context):
        self.seen.append(dict(context.invocation_metadata()))
        self.arrived.set()
        try:
            if self.script is not None:
                await self.script(self, context)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


class Handlers(grpc.GenericRpcHandler):
    def __init__(self, echo):
        self.echo = echo

    def service(self, details):
        echo, kind = self.echo, details.method.rpartition("/")[2]

        async def unary(request, context):
            await echo.enter(context)
            return request + b"@" + echo.name.encode()

        async def count_up(request, context):
            await echo.enter(context)
            for number in range(int(request)):
                yield str(number).encode()

        async def join(requests, context):
            await echo.enter(context)
            return b"".join([request async for request in requests])

        async def mirror(requests, context):
            await echo.enter(context)
            async for request in requests:
                yield request

        if kind == "CountUp":
            return grpc.unary_stream_rpc_method_handler(count_up)
        if kind == "Join":
            return grpc.stream_unary_rpc_method_handler(join)
        if kind == "Mirror":
            return grpc.stream_stream_rpc_method_handler(mirror)
        return grpc.unary_unary_rpc_method_handler(unary)


def failing(code=UNAVAILABLE, details="no", trailers=()):
    """Make a script that ends every call with this status."""

    async def script(server, context):
        await context.abort(code, details, trailers)

    return script


async def hang(server, context):
    """Never answer: a script."""
    await asyncio.Event().wait()


def policy(mesh, **blocks):
    """Lay a policy for "echo" as control would push it."""
    mesh._session.policies._on_document("echo", Policy(service="echo", **blocks))


async def ready(channel, count):
    """Wait until `count` endpoints of the channel are ready."""
    destination = channel.bound()
    async with asyncio.timeout(5):
        while destination.ready_count != count:
            await destination.changed()
