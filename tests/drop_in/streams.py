"""Scenarios: streams both ways, and the handlers that scenarios with streams share."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio

from tests.drop_in.battery import (
    World,
    scenario,
    status,
)

EOF = grpc.aio.EOF


async def count(request, context):
    """Answer with the numbers below the request."""
    for number in range(int(request)):
        yield str(number).encode()


async def mirror(requests, context):
    """Answer each request with itself."""
    async for request in requests:
        yield request


async def join(requests, context):
    """Answer with all requests in one."""
    return b" ".join([request async for request in requests])


async def aiter_of(*messages):
    for message in messages:
        yield message


async def collected(call):
    return [message async for message in call]


def handler_of(kind):
    return {"stream_unary": join, "stream_stream": mirror, "unary_stream": count}[kind]


@scenario()
async def writing_and_reading_alternate(world: World):
    """Each answer comes before the next request is written."""
    call = world.stream_stream(mirror)()
    received = []
    for request in (b"1", b"2", b"3"):
        await call.write(request)
        received.append(await call.read())
    await call.done_writing()
    received.append(await call.read() is EOF)
    return received, await status(call)


@scenario()
async def an_iterator_of_requests_may_wait_for_the_answers(world: World):
    """Requests from an iterator and answers by iteration, in lockstep."""
    turn = asyncio.Event()
    turn.set()

    async def requests():
        for number in range(3):
            await turn.wait()
            turn.clear()
            yield str(number).encode()

    call = world.stream_stream(mirror)(requests())
    received = []
    async for message in call:
        received.append(message)
        turn.set()
    return received, await status(call)


@scenario()
async def requests_from_an_iterator_and_answers_by_read(world: World):
    """Styles are chosen for each direction by itself."""
    call = world.stream_stream(mirror)([b"1", b"2"])
    return [await call.read() for _ in range(3)], await status(call)


@scenario()
async def requests_written_and_answers_iterated(world: World):
    """Styles are chosen for each direction by itself."""
    call = world.stream_stream(mirror)()
    await call.write(b"1")
    await call.done_writing()
    return await collected(call)


@scenario()
async def messages_larger_than_the_window_are_taken_as_they_are_read(world: World):
    """A reader that is slow gets every message whole."""

    async def handler(request, context):
        for number in range(20):
            yield bytes([number]) * 100_000

    call = world.unary_stream(handler)(b"")
    return [(message[0], len(message)) async for message in call]


@scenario()
async def a_stream_can_carry_empty_messages(world: World):
    """An empty message is a message, and no end."""
    call = world.stream_stream(mirror)([b"", b"1", b""])
    return await collected(call)
