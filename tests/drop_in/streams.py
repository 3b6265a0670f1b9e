"""Scenarios: streams both ways."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio

from tests.drop_in.battery import scenario
from tests.drop_in.handlers import echo_each
from tests.drop_in.observations import status
from tests.drop_in.world import World

EOF = grpc.aio.EOF


async def count(request, context):
    """Answer with the numbers below the request."""
    for number in range(int(request)):
        yield str(number).encode()


async def aiter_of(*messages):
    for message in messages:
        yield message


async def answer(call):
    return [message async for message in call]


@scenario()
async def writing_and_reading_alternate(world: World):
    """Each answer comes before the next request is written."""
    call = world.stream_stream(echo_each)()
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

    call = world.stream_stream(echo_each)(requests())
    received = []
    async for message in call:
        received.append(message)
        turn.set()
    return received, await status(call)


@scenario()
async def requests_from_an_iterator_and_answers_by_read(world: World):
    """Styles are chosen for each direction by itself."""
    call = world.stream_stream(echo_each)([b"1", b"2"])
    return [await call.read() for _ in range(3)], await status(call)


@scenario()
async def requests_written_and_answers_iterated(world: World):
    """Styles are chosen for each direction by itself."""
    call = world.stream_stream(echo_each)()
    await call.write(b"1")
    await call.done_writing()
    return await answer(call)


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
    call = world.stream_stream(echo_each)([b"", b"1", b""])
    return await answer(call)
