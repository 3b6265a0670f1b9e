"""Client interceptors made of functions, and methods of channels that have them."""

from __future__ import annotations

import grpc.aio

from tests.drop_in.handlers import HANDLERS, Held
from tests.drop_in.observations import begin

TEXT = {"request_serializer": str.encode, "response_deserializer": bytes.decode}


def camel(kind):
    """Return a kind as grpc.aio spells it in the names of its classes."""
    return "".join(part.capitalize() for part in kind.split("_"))


def interceptor(kind, intercept):
    """Make an interceptor of one kind of a function `(continuation, details, request)`."""

    async def method(self, continuation, client_call_details, request):
        return await intercept(continuation, client_call_details, request)

    base = getattr(grpc.aio, f"{camel(kind)}ClientInterceptor")
    return type(camel(kind), (base,), {f"intercept_{kind}": method})()


def intercepted(world, kind, *intercepts, handler=None):
    """Return a method of text on a channel with interceptors of its kind."""
    made = [interceptor(kind, intercept) for intercept in intercepts]
    channel = world.make_channel(interceptors=made)
    return getattr(world, kind)(handler or HANDLERS[kind], channel, **TEXT)


def start(world, kind, *intercepts, handler=None, **options):
    """Start a call of such a method, with "a", and "b" where requests stream."""
    return begin(kind, intercepted(world, kind, *intercepts, handler=handler), "a", "b", **options)


async def passes(continuation, details, request):
    """Only continue."""
    return await continuation(details, request)


class Waits:
    """Waits before it continues until it may go on, or is cancelled."""

    def __init__(self):
        self.inside = Held()

    async def __call__(self, continuation, details, request):
        await self.inside(None)
        return await continuation(details, request)
