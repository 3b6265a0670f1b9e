"""One instance of a service that misbehaves when told: `python -m tests.faults.victim ...`.

It says `ready` on stdout once it is registered, then takes a word a line on stdin, how its handlers
are to behave from now on, and says it back. When stdin ends it stops at once, so that nothing
outlives the tests. Every execution of a handler is a line in its log, written before anything
else happens: `<monotonic seconds> <method> <call>`.
"""

import argparse
import asyncio
import os
import time

import grpc

import meshrpc
from meshrpc.registry import registration
from meshrpc.registry.embedded import EmbeddedRegistry
from meshrpc.registry.registry import LEASE
from tests.faults.methods import GET, PUT, SERVICE
from tests.faults.words import say, told

TAKES = 0.02
"""Seconds of a handler that works."""
SLOWER = 20
TOLD_TO_FAIL = "told to fail"


class Behaviour:
    """What the handlers do, by word."""

    def __init__(self, log, following):
        self._log = log
        self._following = following
        self.word = "work"

    async def handle(self, method, request, context):
        os.write(self._log, f"{time.monotonic():.6f} {method} {request.decode()}\n".encode())
        match self.word:
            case "fail":
                await context.abort(grpc.StatusCode.UNAVAILABLE, TOLD_TO_FAIL)
            case "hang":
                await asyncio.Event().wait()
            case "block":
                time.sleep(0.5)  # noqa: ASYNC251 - the fault
            case "slow":
                await asyncio.sleep(TAKES * SLOWER)
            case _:
                await asyncio.sleep(TAKES)
        if self._following is None:
            return request
        try:
            return await self._following(method)(request)
        except grpc.aio.AioRpcError as error:
            # As a proxy would, and as makes the worst storm of retries.
            await context.abort(error.code(), error.details())


def handler(behaviour, method):
    async def handle(request, context):
        return await behaviour.handle(method, request, context)

    return grpc.unary_unary_rpc_method_handler(handle)


def shorten(lease):
    """Let instances of this process hold leases of so many seconds, and renew them as often."""
    from meshrpc.registry.consul import ConsulRegistry  # noqa: PLC0415 - takes its time

    for kind in (ConsulRegistry, EmbeddedRegistry):
        kind.__init__.__kwdefaults__["lease"] = lease
    registration.RENEW_EVERY *= lease / LEASE


async def main(given):
    if given.lease:
        shorten(given.lease)
    service = meshrpc.Service(
        given.service, listen=given.listen, advertise=given.advertise, grace=0.5
    )
    service.mesh.id = given.id  # so that it comes back as the same instance
    following = service.channel(given.calls) if given.calls else None
    log = os.open(given.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    behaviour = Behaviour(log, following and following.unary_unary)
    service.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                SERVICE,
                {path.rpartition("/")[2]: handler(behaviour, path) for path in (GET, PUT)},
            ),
        )
    )
    async with service:
        if following is not None:
            following.get_state(try_to_connect=True)
        say("ready")
        async for word in told():
            behaviour.word = word
            say(word)
        os._exit(0)  # the tests are over, or have died: nobody is left to drain for


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("service")
    parser.add_argument("id")
    parser.add_argument("log")
    parser.add_argument("--listen", required=True)
    parser.add_argument("--advertise")
    parser.add_argument("--calls")
    parser.add_argument("--lease", type=float)
    asyncio.run(main(parser.parse_args()))
