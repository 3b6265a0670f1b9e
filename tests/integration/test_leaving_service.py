"""What a service does about its last calls: nothing of them is left when it has left."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import grpc
import grpc.aio
import pytest

import meshrpc
from meshrpc.interceptors.sync_handler import SyncHandlers
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.server import intake
from meshrpc.server.active_calls import ActiveCalls
from meshrpc.server.error_mapping import ErrorMapping
from meshrpc.server.guard import Guard

SOON = 10.0  # seconds, of the real clock, for what needs a few milliseconds


def service_of(clock: Any, **handlers: grpc.RpcMethodHandler[Any, Any]) -> meshrpc.Service:
    service = meshrpc.Service("payment", registry=MemoryRegistry(), control="none", clock=clock)
    service.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
    return service


async def test_a_handler_that_heard_last_is_waited_for(hasty_clock, caplog, only_tasks):
    """Its client has gone, so for grpcio the call is over; the handler still cleans up."""
    caplog.set_level(logging.WARNING, "meshrpc.server")
    began, heard, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handle(_request: bytes, _context: Any) -> bytes:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            heard.set()
            for _ in range(200):
                await asyncio.sleep(0)
            await asyncio.sleep(0.05)
            ended.set()
        return b""

    service = service_of(hasty_clock, it=grpc.unary_unary_rpc_method_handler(handle))
    async with asyncio.timeout(SOON):
        before = asyncio.all_tasks()
        async with service:
            channel = grpc.aio.insecure_channel(service.address)
            call = channel.unary_unary("/t.T/it")(b"")
            await began.wait()
            call.cancel()
            await heard.wait()
            await channel.close()
        assert ended.is_set()
        with suppress(asyncio.CancelledError):
            await call
        await only_tasks(before)
    assert "go on" not in caplog.text


@pytest.mark.parametrize("kind", ["unary", "generator", "iterator"])
async def test_plain_handlers_are_told_too(kind: str, hasty_clock):
    """In their threads they wait for the word with a bound, or look; nothing ends them otherwise."""
    began = threading.Event()

    def wait(_request: bytes, _context: Any) -> bytes:
        call = meshrpc.current_call()
        assert call is not None
        assert not call.draining.wait_in_thread(0.001)
        began.set()
        return b"told" if call.draining.wait_in_thread(SOON) else b"not told"

    def generate(_request: bytes, _context: Any) -> Iterator[bytes]:
        call = meshrpc.current_call()
        assert call is not None
        yield b"began"
        while not call.draining.is_set():
            yield b"goes on"
            began.set()
            time.sleep(0.001)
        yield b"told" if call.draining.wait_in_thread() else b"not told"

    def iterate(request: bytes, context: Any) -> Iterator[bytes]:
        return iter([b"began", wait(request, context)])

    stream = grpc.unary_stream_rpc_method_handler
    handler = {
        "unary": grpc.unary_unary_rpc_method_handler(wait),
        "generator": stream(generate),
        "iterator": stream(iterate),
    }[kind]
    service = service_of(hasty_clock, it=handler)
    async with asyncio.timeout(SOON):
        await service.__aenter__()
        channel = grpc.aio.insecure_channel(service.address)
        if kind == "unary":
            answer = asyncio.ensure_future(channel.unary_unary("/t.T/it")(b""))
        else:

            async def last() -> bytes:
                *_, message = [each async for each in channel.unary_stream("/t.T/it")(b"")]
                return message

            answer = asyncio.ensure_future(last())
        await asyncio.to_thread(began.wait, SOON)
        await service.__aexit__(None, None, None)
        assert await answer == b"told"
        await channel.close()


async def test_who_is_cut_while_it_sends_its_status_sends_no_other():
    """grpcio takes one status for a call; a second would be an error in the log."""
    sent, sending = [], asyncio.Event()

    class Raw:
        async def abort(self, *status: Any) -> None:
            sent.append(status)
            sending.set()
            await asyncio.Event().wait()

    async def refuse(_request: bytes, context: Any) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "none")

    active = ActiveCalls()
    guard = Guard(active, (), SyncHandlers(), ErrorMapping())
    handler = guard.around("/t.T/it", grpc.unary_unary_rpc_method_handler(refuse))
    task = asyncio.create_task(handler.unary_unary(b"", Raw()))
    async with asyncio.timeout(SOON):
        await sending.wait()
        active.cut()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert sent == [(grpc.StatusCode.NOT_FOUND, "none", ())]


async def test_a_process_whose_server_broke_does_not_live_on(hasty_clock, monkeypatch):
    """It leaves the registry and ends with an error: alive, but deaf, it would be called."""
    registry = MemoryRegistry()
    service = meshrpc.Service("payment", registry=registry, control="none", clock=hasty_clock)
    instances: asyncio.Queue[Any] = asyncio.Queue()

    def cannot_ask(_core: Any, _method: Any) -> None:
        raise ValueError("out of order")

    async with registry, asyncio.timeout(SOON):
        running = asyncio.create_task(service._run(instances.put_nowait))
        instance = await instances.get()
        monkeypatch.setattr(intake._Core, "_make_request_call_future", cannot_ask)
        monkeypatch.setattr(
            intake._Core, "_request_call", partial(cannot_ask, None, None)
        )  # < 1.83
        channel = grpc.aio.insecure_channel(instance.address)
        with suppress(grpc.aio.AioRpcError):
            await channel.unary_unary("/t.T/it")(b"")
        with pytest.raises(RuntimeError, match="ended by itself: ValueError"):
            await running
        await channel.close()
        assert await registry.services() == ()
