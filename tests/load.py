"""A load on one process and what it leaves behind: `python -m tests.load mesh|bare ...`.

Real servers come and go under steady unary calls and streams of every kind, some of them
cancelled, some dropped half read. At the end everything is as at the beginning, and what is left is
counted: memory, tasks, open files, threads, calls pending. `bare` is the same load over
grpcio alone, one channel to each server, for what grpcio itself leaves behind.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import resource
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import grpc

import meshrpc
from meshrpc.client.channel import Channel
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.registry.registry import RENEW_EVERY
from tests.echo import PLAIN, EchoServer

_PAGE = resource.getpagesize()
STEADY = 2
"""Servers that stay, so that there is always somebody to call."""
CALLERS = (2, 16)
"""Tasks for each kind of stream, and for unary calls."""
COMING = 4
"""Servers that come and go, at most at the same time."""


def memory():
    """Return the resident bytes of this process, when its garbage is collected."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


class OverMesh:
    """One channel to all servers."""

    async def __aenter__(self):
        self.registry = MemoryRegistry()
        await self.registry.__aenter__()
        self.mesh = meshrpc.Mesh("load", registry=self.registry, control="none")
        await self.mesh.__aenter__()
        self._channel = self.mesh.channel("echo")
        self._registered = {}
        self._renewals = asyncio.create_task(self._renew())
        return self

    async def __aexit__(self, *error):
        self._renewals.cancel()
        await self.mesh.__aexit__(*error)
        await self.registry.__aexit__(*error)

    async def _renew(self):
        while True:
            await asyncio.sleep(RENEW_EVERY)
            for instance in self._registered.values():
                assert await self.registry.renew(instance)

    async def come(self, server):
        await self.registry.register(server.instance)
        self._registered[server.name] = server.instance

    async def go(self, server):
        del self._registered[server.name]
        await self.registry.drain(server.instance)
        await self.registry.deregister(server.instance)
        # As a service does that leaves in order: it stops when nobody has calls there any more.
        await asyncio.gather(*self._channel.bound()._endpoints._retiring)

    def channel(self):
        return contextlib.nullcontext(self._channel)

    def pending(self):
        return sum(endpoint.pending for endpoint in self._channel.bound().endpoints)


class OverGrpc:
    """A channel of grpcio to each server, taken in turn."""

    async def __aenter__(self):
        self._channels = {}
        self._under_way = Counter()
        self._turn = 0
        return self

    async def __aexit__(self, *error):
        for channel in self._channels.values():
            await channel.close()

    async def come(self, server):
        channel = grpc.aio.insecure_channel(
            f"ipv4:127.0.0.1:{server.port}", options=[("grpc.use_local_subchannel_pool", 1)]
        )
        await channel.channel_ready()
        self._channels[server.name] = channel

    async def go(self, server):
        channel = self._channels.pop(server.name)
        while self._under_way[server.name]:  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.001)
        del self._under_way[server.name]
        await channel.close()

    @contextlib.contextmanager
    def channel(self):
        self._turn += 1
        names = tuple(self._channels)
        name = names[self._turn % len(names)]
        self._under_way[name] += 1
        try:
            yield self._channels[name]
        finally:
            self._under_way[name] -= 1

    def pending(self):
        return sum(self._under_way.values())


async def unary(channel):
    await channel.unary_unary(PLAIN)(b"hi", timeout=30)


async def read_to_the_end(channel):
    assert len([m async for m in channel.unary_stream("/test.Echo/CountUp")(b"5")]) == 5


async def send_an_iterator(channel):
    async def messages():
        for _ in range(5):
            yield b"a"

    assert await channel.stream_unary("/test.Echo/Join")(messages()) == b"aaaaa"


async def talk(channel):
    call = channel.stream_stream("/test.Echo/Mirror")()
    for number in range(3):
        await call.write(b"%d" % number)
        assert await call.read() == b"%d" % number
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def cancel(channel):
    call = channel.stream_stream("/test.Echo/Mirror")()
    await call.write(b"1")
    assert await call.read() == b"1"
    call.cancel()


async def abandon(channel):
    call = channel.unary_stream("/test.Echo/CountUp")(b"100000")
    async for _ in call:
        break
    if not isinstance(channel, Channel):
        call.cancel()  # grpcio since 1.83 never ends a stream that nobody holds


STREAMS = (read_to_the_end, send_an_iterator, talk, cancel, abandon)


class Load:
    """So many calls, streams and changes, spread over each other, once or more often."""

    def __init__(self, way):
        self.way = way
        self.failed = Counter()
        self.made = 0
        self._came = 0
        self._here = []
        self._growing = True

    async def once(self, calls, streams, changes):
        """Carry it out, and let everybody go who came."""
        left = {unary: calls} | dict.fromkeys(STREAMS, streams // len(STREAMS))

        async def repeat(step):
            while left[step] > 0:
                left[step] -= 1
                try:
                    with self.way.channel() as channel:
                        await step(channel)
                except grpc.aio.AioRpcError as error:
                    self.failed[f"{step.__name__}: {error.code().name}: {error.details()}"] += 1
                self.made += 1

        async def change():
            for number in range(changes):
                # Each at its time, so that there is load all around it.
                while left[unary] > calls * (1 - number / changes):  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                await self._change()

        await asyncio.gather(
            change(), *(repeat(step) for step in left for _ in range(CALLERS[step is unary]))
        )
        while self._here:
            await self._goes()
        self._growing = True

    async def _change(self):
        """One server comes until there are enough, or one goes until there are none."""
        if self._growing:
            self._came += 1
            server = EchoServer(f"s{self._came}")
            await server.__aenter__()
            await self.way.come(server)
            self._here.append(server)
        else:
            await self._goes()
        if len(self._here) in (0, COMING):
            self._growing = not self._here

    async def _goes(self):
        server = self._here.pop(0)
        await self.way.go(server)
        await server.server.stop(10)


def counts(way):
    return {
        "tasks": len(asyncio.all_tasks()),
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
        "pending": way.pending(),
    }


async def main(over, calls, streams, changes, parts):
    async with over() as way:
        steady = [EchoServer(f"steady{number}") for number in range(STEADY)]
        for server in steady:
            await server.__aenter__()
            await way.come(server)
        load = Load(way)
        per_part = [calls // parts, streams // parts, changes // parts]
        await load.once(*per_part)  # what grpc, asyncio and the allocator take once and keep
        for server in steady:
            server.seen.clear()
        await asyncio.sleep(0.5)
        before, sizes, began = counts(way), [memory()], time.monotonic()
        warm = load.made
        for _ in range(parts):
            await load.once(*per_part)
            for server in steady:
                server.seen.clear()
            sizes.append(memory())
        lasted = time.monotonic() - began
        for _ in range(400):  # what grpc ends in its own time
            after = counts(way)
            if all(after[what] <= before[what] for what in before):
                break
            await asyncio.sleep(0.05)
        for server in steady:
            await server.__aexit__(None, None, None)
    return {
        "grpcio": grpc.__version__,
        "python": sys.version.split()[0],
        "calls": load.made - warm,
        "changes": changes,
        "seconds": round(lasted, 1),
        "failed": dict(load.failed),
        "before": before,
        "after": after,
        "sizes": sizes,
        "grown": sizes[-1] - sizes[0],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=["mesh", "bare"])
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--changes", type=int, default=1_000)
    parser.add_argument("--parts", type=int, default=10)
    given = parser.parse_args()
    over = OverMesh if given.way == "mesh" else OverGrpc
    left = asyncio.run(main(over, given.calls, given.streams, given.changes, given.parts))
    sys.stdout.write(json.dumps(left))
