"""Startup and shutdown hooks: when they run, what they can do, and what happens if they fail."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from typing import Any

import grpc
import grpc.aio
import pytest

import meshrpc
from meshrpc.errors import StartupError
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.server import hooks

SOON = 10.0


async def echo(request: bytes, _context: Any) -> bytes:
    return request


def service_of(
    clock: Any, name: str = "order", registry: Any = None, handler: Any = echo
) -> meshrpc.Service:
    service = meshrpc.Service(
        name, registry=registry or MemoryRegistry(), control="none", clock=clock
    )
    handlers = {"it": grpc.unary_unary_rpc_method_handler(handler)}
    service.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
    return service


async def test_startup_hooks_run_before_anybody_can_call(hasty_clock):
    """In order, async and plain, with working channels; not listening, not registered yet."""
    registry, log = MemoryRegistry(), []
    order = service_of(hasty_clock, "order", registry)
    payment = order.channel("payment").unary_unary("/t.T/it")

    @order.on_startup
    async def call_another() -> None:
        log.append(await payment(b"from the hook", wait_for_ready=True))
        log.append(await registry.instances("order"))
        with pytest.raises(RuntimeError, match="not entered"):
            _ = order.address

    @order.on_startup
    def plain() -> None:
        log.append(threading.current_thread() is threading.main_thread())

    payments = service_of(hasty_clock, "payment", registry)
    async with registry, payments, asyncio.timeout(SOON), order:
        assert log == [b"from the hook", (), False]
        assert len(await registry.instances("order")) == 1


async def test_shutdown_hooks_run_after_the_last_call(hasty_clock):
    """The last one first, with working channels, and none is skipped because another failed."""
    registry, log = MemoryRegistry(), []
    began = asyncio.Event()

    async def slow(request: bytes, _context: Any) -> bytes:
        began.set()
        call = meshrpc.current_call()
        assert call is not None
        await call.draining.wait()
        await asyncio.sleep(0.05)
        log.append("the last call")
        return request

    order = service_of(hasty_clock, "order", registry, slow)
    payment = order.channel("payment").unary_unary("/t.T/it")

    @order.on_shutdown
    async def first_given() -> None:
        log.append(await payment(b"first given"))

    @order.on_shutdown
    def plain() -> None:
        log.append("plain")
        raise OSError("the pool would not close")

    @order.on_shutdown
    async def last_given() -> None:
        log.append("last given")
        raise StopAsyncIteration

    async with registry, service_of(hasty_clock, "payment", registry), asyncio.timeout(SOON):
        async with order:
            channel = grpc.aio.insecure_channel(order.address)
            call = channel.unary_unary("/t.T/it")(b"x")
            await began.wait()
        assert await call == b"x"
        await channel.close()
    assert log == ["the last call", "last given", "plain", b"first given"]


async def test_a_failing_startup_hook_ends_the_start(hasty_clock, caplog):
    """One error that names it. What started before it is shut down; nobody hears of the service."""
    registry, log = MemoryRegistry(), []
    service = service_of(hasty_clock, "order", registry)

    @service.on_startup
    def open_pool() -> None:
        log.append("opened")

    @service.on_startup
    async def migrate() -> None:
        raise ConnectionError("no database")

    @service.on_startup
    async def never() -> None:
        log.append("never")

    @service.on_shutdown
    async def close_pool() -> None:
        log.append("closed")

    async with registry:
        with pytest.raises(StartupError, match=r"startup hook .*\.migrate failed: ConnectionError"):
            await service.__aenter__()
        assert await registry.services() == ()
    assert log == ["opened", "closed"]
    assert "no database" in caplog.text
    assert isinstance(StartupError(""), meshrpc.MeshError)  # which a worker reports as its failure


@pytest.mark.parametrize("kind", ["async", "plain", "stubborn"])
async def test_a_shutdown_hook_that_hangs_is_given_up(kind: str, hasty_clock, caplog, monkeypatch):
    """After its time; the hooks after it have theirs, and leaving goes on."""
    monkeypatch.setattr(hooks, "SHUTDOWN_WITHIN", 0.05)
    monkeypatch.setattr(hooks, "LAST_MOMENT", 0.02)
    service, log = service_of(hasty_clock), []
    may_end, may_end_thread = asyncio.Event(), threading.Event()
    service.on_shutdown(lambda: log.append("after it"))

    @service.on_shutdown
    async def hang() -> None:
        while not may_end.is_set():
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                if kind == "async":
                    raise

    @service.on_shutdown
    def hang_plainly() -> None:
        if kind == "plain":
            may_end_thread.wait(SOON)

    async with asyncio.timeout(SOON):
        await service.__aenter__()
        if kind == "plain":
            may_end.set()
        await service.__aexit__(None, None, None)
    may_end.set()
    may_end_thread.set()
    assert log == ["after it"]
    name = "hang_plainly" if kind == "plain" else "hang"
    assert f"{name} was given up, after 0.05 s" in caplog.text


async def test_in_a_hurry_hooks_have_a_moment(hasty_clock, caplog, monkeypatch):
    """A second signal does not take away what closes a database properly, unless it hangs."""
    monkeypatch.setattr(hooks, "LAST_MOMENT", 0.2)
    service, log = service_of(hasty_clock), []

    @service.on_shutdown
    async def quick() -> None:
        await asyncio.sleep(0)  # and not on a timer, which might come with the last moment's end
        log.append("quick")

    @service.on_shutdown
    async def slow() -> None:
        await asyncio.Event().wait()

    hurry = asyncio.Event()
    async with asyncio.timeout(SOON / 2):
        await service._enter(asyncio.Event(), hurry)
        hurry.set()
        await service._leave()
    assert log == ["quick"]
    assert "slow was given up, in a hurry" in caplog.text


async def test_a_signal_ends_a_startup_hook(hasty_clock, caplog):
    """The process that was told to stop does not finish starting, and that is no error."""
    caplog.set_level(logging.INFO, "meshrpc.server")
    service, log = service_of(hasty_clock), []

    @service.on_startup
    async def migrate() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    service.on_shutdown(lambda: log.append("shut down"))
    async with asyncio.timeout(SOON):
        await service._run(lambda _instance: log.append("ready"))
    assert log == ["shut down"]
    assert "order was told to stop" in caplog.text


async def test_hooks_are_registered_before_the_service_is_entered(hasty_clock):
    """And are functions; as decorators they leave the function as it was."""
    service = service_of(hasty_clock)

    def hook() -> None:
        pass

    for register in (service.on_startup, service.on_shutdown):
        assert register(hook) is hook
        with pytest.raises(TypeError, match="cannot be called"):
            register("a name")  # type: ignore[type-var]
    async with service:
        with pytest.raises(RuntimeError, match="registered before"):
            service.on_startup(hook)
    assert service.shutdown_within == hooks.SHUTDOWN_WITHIN + hooks.LAST_MOMENT


async def test_a_hook_that_ends_by_what_is_no_exception_fails_as_any_other(hasty_clock, caplog):
    """What it awaits is cancelled, or it calls sys.exit: a StartupError; the next ones still run."""

    async def is_cancelled() -> None:
        awaited = asyncio.get_running_loop().create_future()
        awaited.cancel()
        await awaited

    async def exits() -> None:
        sys.exit(3)

    for hook, said in ((is_cancelled, "was cancelled"), (exits, "raised SystemExit")):
        service, log = service_of(hasty_clock), []
        service.on_startup(hook)
        service.on_shutdown(lambda log=log: log.append("shut down"))
        service.on_shutdown(hook)
        async with asyncio.timeout(SOON):
            with pytest.raises(StartupError, match=said):
                await service.__aenter__()
        assert log == ["shut down"]
    assert caplog.text.count("shutdown hook") == 2


async def test_a_plain_hook_that_raises_what_no_future_carries_is_told(hasty_clock):
    """StopIteration and SystemExit, in a thread: a StartupError, never a wait for ever."""
    for error in (StopIteration(), SystemExit(3)):
        service = service_of(hasty_clock)

        def fail(error: BaseException = error) -> None:
            raise error

        service.on_startup(fail)
        async with asyncio.timeout(SOON):
            with pytest.raises(StartupError, match=f"raised {type(error).__name__}"):
                await service.__aenter__()
