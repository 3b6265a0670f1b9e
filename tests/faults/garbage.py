"""Servers that answer nonsense in a registry's place, in one process: `python -m tests.faults.garbage`.

It says `<kind>=<port>` for each on stdout, and lives until stdin ends. What a process finds behind an
address that it takes for Consul's, or for the control service's:

    html        200, a page of a proxy or a captive portal, as HTTP/1.1
    truncated   200, the first half of a JSON document
    cut         200, fewer bytes than were promised
    error       500, with a line of text
    types       200, JSON of other types than were asked for, each time another one
    random      bytes that are no protocol at all
    unimplemented, internal    a gRPC server that has no such method, or fails in each
    junk        a gRPC server whose answers are no messages of ours
"""

import asyncio
import contextlib
import itertools
import json
import random

import grpc
import grpc.aio

from tests.faults.words import say, told

OTHER_TYPES = (
    None,
    {},
    [],
    7,
    "no",
    [None, 3, "x", {"Service": 5}],
    {"a": [1]},
    [{"Service": {"ID": 1, "Port": "x", "Meta": []}, "Checks": {}, "Node": None}],
)
PAGE = b"<!DOCTYPE html><html><body><h1>Welcome to our network</h1></body></html>"


def http(status, body, *, promised=None, kind="application/json", index="5"):
    """Return an answer as HTTP/1.1 has it."""
    lines = (
        f"HTTP/1.1 {status}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body) if promised is None else promised}",
        f"X-Consul-Index: {index}",
        "Connection: close",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def answers():
    """Return what makes the answers, by kind."""
    rng = random.Random(5)
    others = itertools.cycle(
        http("200 OK", json.dumps(body).encode(), index=index)
        for body, index in zip(OTHER_TYPES, itertools.cycle(("5", "x", "-1")), strict=False)
    )
    half = b'[{"Node": {"Node": "one", "Address": "127.0.0.1"}, "Service": {"ID": "direct'
    return {
        "html": lambda: http("200 OK", PAGE, kind="text/html"),
        "truncated": lambda: http("200 OK", half),
        "cut": lambda: http("200 OK", half, promised=1000),
        "error": lambda: http("500 Internal Server Error", b"rpc error: No cluster leader"),
        "types": lambda: next(others),
        "random": lambda: rng.randbytes(200),
    }


async def serve(answer):
    """Answer whatever is asked so, and hang up; return the server and its port."""

    async def talk(reader, writer):
        with contextlib.suppress(OSError):
            await reader.read(65536)
            writer.write(answer())
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


class Nonsense(grpc.GenericRpcHandler):
    """Every method fails with INTERNAL, or answers what is no message."""

    def __init__(self, *, fails):
        self._fails = fails

    def service(self, details):
        is_stream = details.method.endswith(("/Subscribe", "/Watch"))
        return (
            grpc.stream_stream_rpc_method_handler(self._stream)
            if is_stream
            else grpc.unary_unary_rpc_method_handler(self._answer)
        )

    async def _answer(self, request, context):
        if self._fails:
            await context.abort(grpc.StatusCode.INTERNAL, "this is no registry")
        return b"\xff" * 20

    async def _stream(self, requests, context):
        async for _ in requests:
            yield await self._answer(None, context)


async def grpc_server(*handlers):
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, port


async def main():
    servers = {kind: await serve(answer) for kind, answer in answers().items()}
    servers["unimplemented"] = await grpc_server()
    servers["internal"] = await grpc_server(Nonsense(fails=True))
    servers["junk"] = await grpc_server(Nonsense(fails=False))
    say(" ".join(f"{kind}={port}" for kind, (_, port) in servers.items()))
    async for _ in told():
        pass
    for server, _ in servers.values():
        if isinstance(server, grpc.aio.Server):
            await server.stop(None)


if __name__ == "__main__":
    asyncio.run(main())
