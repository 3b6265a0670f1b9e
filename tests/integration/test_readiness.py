"""Services that wait for others before they start, and that say when they want no calls."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import meshrpc
from meshrpc.registry.instance import Health
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.server import requirements
from meshrpc.testing import LocalMesh

SOON = 10.0
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def service_of(name: str, **arguments: Any) -> meshrpc.Service:
    service = meshrpc.Service(name, **{"control": "none", "registry": "memory:", **arguments})

    async def say_who(_request: bytes, _context: Any) -> bytes:
        return service.instance.id.encode()

    handlers = {"it": grpc.unary_unary_rpc_method_handler(say_who)}
    service.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
    return service


async def eventually(mesh: LocalMesh, holds: Any) -> None:
    """Move the clock, a second at a time, until it is so."""
    async with asyncio.timeout(SOON):
        while not await holds():
            await mesh.clock.advance(1)


async def test_callers_go_to_who_is_ready_as_long_as_there_is_one():
    """One of two is not ready: the other gets all calls. Neither is: both get some again."""
    wants = {"a": True, "b": True}
    async with LocalMesh() as mesh:
        one, other = service_of("payment"), service_of("payment")
        one.ready_when(lambda: wants["a"])

        @other.ready_when
        async def other_is_ready() -> bool:
            return wants["b"]

        first, second = await mesh.serve(one), await mesh.serve(other)
        call = mesh.channel("payment").unary_unary("/t.T/it")

        async def called() -> set[str]:
            async with asyncio.timeout(SOON):
                return {(await call(b"", wait_for_ready=True)).decode() for _ in range(40)}

        await eventually(mesh, lambda: _is(called(), {first.id, second.id}))
        wants["a"] = False
        await eventually(mesh, lambda: _is(called(), {second.id}))
        assert first.record.health is Health.NOT_SERVING
        wants["b"] = False
        await eventually(mesh, lambda: _is(called(), {first.id, second.id}))
        assert second.record.health is Health.NOT_SERVING
        wants["a"] = True
        await eventually(mesh, lambda: _is(called(), {first.id}))
        assert first.record.health is Health.SERVING


async def _is(found: Any, wanted: Any) -> bool:
    return bool(await found == wanted)


async def test_health_checks_and_the_record_follow_at_once(hasty_clock, caplog):
    """A watcher and the registry learn of each change, not with the next renewal; the log says why."""
    caplog.set_level(logging.INFO, "meshrpc.server")
    registry, is_up = MemoryRegistry(), True
    service = service_of("payment", registry=registry, clock=hasty_clock)

    @service.ready_when
    def database_is_up() -> bool:
        return is_up

    said: asyncio.Queue[Health] = asyncio.Queue()

    async with registry, asyncio.timeout(SOON):  # noqa: SIM117 - the registry outlasts the service
        async with service, grpc.aio.insecure_channel(service.address) as channel:
            watch = registry.watch(
                "payment", lambda s: [said.put_nowait(each.health) for each in s.instances]
            )
            assert await said.get() is Health.SERVING
            watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            of_one = health_pb2.HealthCheckRequest(service="t.T")
            assert (await watching.read()).status == SERVING
            is_up = False
            assert (await watching.read()).status == NOT_SERVING
            assert await said.get() is Health.NOT_SERVING
            answer = await health_pb2_grpc.HealthStub(channel).Check(of_one)
            assert answer.status == NOT_SERVING
            # It is asked not to be called; whoever calls all the same is served.
            assert await channel.unary_unary("/t.T/it")(b"") == service.instance.id.encode()
            is_up = True
            assert (await watching.read()).status == SERVING
            assert await said.get() is Health.SERVING
            watch.close()
    assert "database_is_up says no" in caplog.text
    assert "ready again" in caplog.text


async def test_who_is_not_ready_at_the_start_registers_as_such(hasty_clock):
    """It listens and is known, and whoever replaces processes one by one waits until it is ready."""
    registry, is_up, ready = MemoryRegistry(), asyncio.Event(), asyncio.Event()
    service = service_of("payment", registry=registry, clock=hasty_clock)
    service.ready_when(is_up.is_set)
    known: asyncio.Queue[Health] = asyncio.Queue()
    async with registry, asyncio.timeout(SOON):
        watch = registry.watch(
            "payment", lambda s: [known.put_nowait(each.health) for each in s.instances]
        )
        running = asyncio.create_task(service._run(lambda _instance: ready.set()))
        assert await known.get() is Health.NOT_SERVING
        assert not ready.is_set()
        is_up.set()
        await ready.wait()
        assert await known.get() is Health.SERVING
        watch.close()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def test_a_check_that_raises_or_hangs_says_no(caplog):
    """A hanging one is not asked again: threads do not pile up. Once it answers, that counts."""
    asked, may_answer = [], threading.Event()
    async with LocalMesh() as mesh:
        hanging, raising = service_of("hanging"), service_of("raising")

        @hanging.ready_when
        def hangs() -> bool:
            asked.append(1)
            if len(asked) == 2:
                may_answer.wait(SOON)
            return True

        fails = False

        @raising.ready_when
        async def raises() -> bool:
            if fails:
                raise TimeoutError("no answer")
            return True

        instances = [await mesh.serve(hanging), await mesh.serve(raising)]
        fails = True

        async def healths() -> list[Health]:
            return [each.record.health for each in instances]

        await eventually(mesh, lambda: _is(healths(), [Health.NOT_SERVING] * 2))
        await mesh.clock.advance(30)
        assert len(asked) == 2
        assert "raises raised TimeoutError" in caplog.text
        assert "hangs has not answered for 5 s" in caplog.text
        fails = False
        may_answer.set()
        await eventually(mesh, lambda: _is(healths(), [Health.SERVING] * 2))

        async def was_asked_again() -> bool:
            return len(asked) > 2

        await eventually(mesh, was_asked_again)


async def test_a_check_whose_own_work_is_cancelled_says_no_and_is_asked_again():
    """What it awaited was cancelled by somebody: that ends neither the asking nor the service."""
    async with LocalMesh() as mesh:
        service, times = service_of("payment"), []

        @service.ready_when
        async def asks_a_task() -> bool:
            times.append(1)
            if len(times) == 2:
                awaited = asyncio.get_running_loop().create_future()
                awaited.cancel()
                await awaited
            return True

        instance = await mesh.serve(service)
        for health in (Health.NOT_SERVING, Health.SERVING):

            async def is_so(health: Health = health) -> bool:
                return instance.record.health is health

            await eventually(mesh, is_so)


async def test_a_service_starts_when_those_it_requires_can_be_called():
    """Until then it does not listen, nor register; its startup hooks come after that."""
    async with LocalMesh() as mesh:
        order = service_of("order", requires=("payment",))
        payment = order.channel("payment").unary_unary("/t.T/it")
        answered = []

        @order.on_startup
        async def ask() -> None:
            answered.append(await payment(b""))

        starting = asyncio.create_task(mesh.serve(order))
        await mesh.clock.advance(5)
        assert not starting.done()
        assert await mesh.client.registry.services() == ()
        served = await mesh.serve(service_of("payment"))
        async with asyncio.timeout(SOON):
            await starting
        assert answered == [served.id.encode()]


async def test_services_that_require_each_other_start_all_the_same(caplog, monkeypatch):
    """After half a minute, which the log explains, every 10 s and at the end."""
    monkeypatch.setattr(requirements, "LOOK_EVERY", 0.002)
    caplog.set_level(logging.INFO, "meshrpc.server")
    async with LocalMesh() as mesh:
        order = service_of("order", requires=("payment", "stock"))
        payment = service_of("payment", requires=["order"])
        async with asyncio.timeout(SOON):
            starting = asyncio.gather(mesh.serve(order), mesh.serve(payment))
            while not starting.done():
                await mesh.clock.advance(1)
                await asyncio.sleep(2 * requirements.LOOK_EVERY)
            await starting
        assert set(await mesh.client.registry.services()) == {"order", "payment"}
    lines = [record.getMessage() for record in caplog.records]
    assert sum(line == "waits for payment, stock before it starts" for line in lines) == 3
    assert any("starts without payment, stock, which it requires" in line for line in lines)


async def test_a_signal_ends_the_wait_for_others(hasty_clock):
    """The process that was told to stop waits for nobody."""
    service = service_of("order", requires=("payment",), clock=hasty_clock)
    told = asyncio.Event()
    entering = asyncio.create_task(service._enter(told, asyncio.Event()))
    await asyncio.sleep(0.01)
    assert not entering.done()
    told.set()
    async with asyncio.timeout(SOON):
        with pytest.raises(Exception, match="order was told to stop"):
            await entering


@pytest.mark.parametrize("grace", [-1, "30", None, float("nan"), float("inf")])
def test_a_grace_that_is_no_time_is_refused(grace: Any):
    """Where the service is made, and not when it leaves."""
    with pytest.raises(meshrpc.SettingsError, match="grace="):
        service_of("order", grace=grace)


def test_requirements_that_mean_nothing_are_refused():
    """Itself, and what is no name: in one sentence, where the service is made."""
    with pytest.raises(meshrpc.SettingsError, match="cannot require itself"):
        service_of("order", requires=("order",))
    with pytest.raises(meshrpc.SettingsError, match="pay ment"):
        service_of("order", requires="pay ment")
