"""How a server takes calls in: many at a time, and no more than it can look at."""

import asyncio
import gc
import warnings

import grpc
import grpc.aio
import pytest
from grpc._cython import cygrpc

from meshrpc.server import intake as intake_module
from meshrpc.server.intake import BEHIND, LEAST, MOST, Intake, create_server
from meshrpc.server.options import SERVER_OPTIONS

OK, CANCELLED = grpc.StatusCode.OK, grpc.StatusCode.CANCELLED


class ManualClock:
    time = 0.0

    def __call__(self):
        return self.time


def filled(count, **arguments):
    intake = Intake(**arguments)
    for number in range(count):
        intake.add(number)
    return intake


async def test_calls_are_given_out_in_the_order_in_which_they_came():
    """And a call that is waited for is given out at once."""
    intake = filled(3)
    assert [intake.next().result() for _ in range(3)] == [0, 1, 2]
    waited_for = intake.next()
    assert not waited_for.done()
    intake.add("late")
    assert waited_for.result() == "late"
    assert len(intake) == 0


async def test_the_newest_go_first_where_the_oldest_have_waited_for_long():
    """Somebody may still wait for them."""
    clock = ManualClock()
    intake = filled(3, clock=clock)
    clock.time = BEHIND + 0.01
    assert intake.next().result() == 2


async def test_who_falls_behind_has_room_for_fewer_and_lets_the_oldest_go():
    """Half of what waits, down to eight, each time; what is dropped is counted."""
    intake = filled(100, most=200)
    for bound in (100, 50, 25, 12, LEAST, LEAST):
        intake.fall_behind()
        assert intake.bound == bound
    assert len(intake) == LEAST
    assert intake.dropped == 100 - LEAST
    assert intake.next().result() == 100 - LEAST


async def test_who_has_caught_up_has_room_for_more_again():
    """For all there ever was, within thirty times of having nothing to do."""
    intake = filled(LEAST + 1)
    while intake.bound > LEAST:
        intake.fall_behind()
    for _ in range(LEAST):
        intake.next()
    for _ in range(30):
        intake.next()
        intake.add(0)
    assert intake.bound == MOST


async def test_an_error_goes_to_whoever_waits_for_a_call():
    """Grpcio's own loop knows whether it is the end."""
    intake = Intake()
    intake.fail(RuntimeError("nobody hears this"))
    future = intake.next()
    intake.fail(RuntimeError("shutdown"))
    with pytest.raises(RuntimeError, match="shutdown"):
        await future


async def echo(request, _context):
    return request


def handlers(behavior=echo):
    method = grpc.unary_unary_rpc_method_handler(behavior)
    return (grpc.method_handlers_generic_handler("test.Echo", {"Say": method}),)


class Served:
    """A server with an intake, and a caller."""

    def __init__(self, behavior=echo):
        self.server, self.intake = create_server(handlers(behavior), SERVER_OPTIONS)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.core = self.server._server

    async def __aenter__(self):
        await self.server.start()
        options = [("grpc.max_concurrent_streams", 10_000)]
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=options)
        self.say = self.channel.unary_unary("/test.Echo/Say")
        return self

    async def holds(self, count):
        async with asyncio.timeout(10):
            while len(self.intake) < count:  # noqa: ASYNC110 - what changes tells nobody
                await asyncio.sleep(0.001)

    async def __aexit__(self, *_):
        await self.channel.close()
        async with asyncio.timeout(10):
            await self.server.stop(5)


async def test_grpcio_asks_the_server_for_calls_by_the_methods_that_it_overrides():
    """Of the installed grpcio: it could do so by others, and then nothing of this would happen."""
    async with Served() as served:
        assert await served.say(b"hello", timeout=10) == b"hello"
        assert served.core._asked == MOST


async def test_what_one_connection_may_send_at_once_is_answered():
    """All 900 of them."""
    async with Served() as served:
        calls = [served.say(str(number).encode(), timeout=30) for number in range(900)]
        assert await asyncio.gather(*calls) == [str(number).encode() for number in range(900)]
        assert served.intake.dropped == 0


async def test_a_call_that_is_dropped_ends_at_once_for_its_caller():
    """As CANCELLED; and the next one is served."""
    async with Served() as served:
        await served.say(b"", timeout=10)
        served.intake._wanted, wanted = None, served.intake._wanted
        calls = [served.say(b"", timeout=30) for _ in range(LEAST + 3)]
        await served.holds(LEAST + 3)
        served.intake.fall_behind()
        served.intake.fall_behind()
        codes = [await call.code() for call in calls[:3]]
        assert codes == [CANCELLED] * 3
        wanted.set_result(served.intake.next().result())
        assert await asyncio.gather(*(call.code() for call in calls[3:])) == [OK] * LEAST


async def test_a_server_that_stops_does_not_wait_for_calls_it_has_not_begun():
    """They end as those do that grpc has not given out."""
    async with Served() as served:
        await served.say(b"", timeout=10)
        served.intake._wanted, wanted = None, served.intake._wanted
        calls = [served.say(b"", timeout=30) for _ in range(5)]
        await served.holds(5)
        served.intake._wanted = wanted
        async with asyncio.timeout(5):
            await served.server.stop(60)
        assert [await call.code() for call in calls] == [CANCELLED] * 5


def test_a_loop_may_end_with_a_server_that_nobody_stopped():
    """Its requests are no tasks that could be cancelled with grpc about to write to them."""

    async def run():
        served = Served()
        await served.server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
            await channel.unary_unary("/test.Echo/Say")(b"", timeout=10)
        assert len(asyncio.all_tasks()) < 20
        await served.server.stop(None)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(run())
        gc.collect()


class Sealed:
    """A server of grpcio's that has the methods, and takes no subclass."""

    async def _request_call(self):
        raise AssertionError

    _start_shutting_down = _request_call

    def __init_subclass__(cls):
        raise TypeError("no subclasses")


class Renamed(cygrpc.AioServer):
    """One that asks itself by another name."""

    _request_call = None


class Unlike:
    """One that is no class of grpcio's."""


@pytest.mark.parametrize("found", [Sealed, Renamed, Unlike, None])
async def test_a_grpcio_that_takes_calls_in_some_other_way_does_so(monkeypatch, caplog, found):
    """The server answers all the same, and says once what is missing."""
    true = cygrpc.AioServer
    made = []

    def server(**arguments):
        made.append(arguments)
        monkeypatch.setattr(cygrpc, "AioServer", true)
        return real(**arguments)

    real = intake_module.grpc_server.server
    monkeypatch.setattr(intake_module.grpc_server, "server", server)
    if found is None:
        monkeypatch.delattr(cygrpc, "AioServer")
        monkeypatch.setattr(cygrpc, "AioServer", None, raising=False)
    else:
        monkeypatch.setattr(cygrpc, "AioServer", found)
    async with Served() as served:
        assert await served.say(b"hello", timeout=10) == b"hello"
    assert len(made) == 1
    assert len(served.intake) == 0
    assert [each.message for each in caplog.records if "ways of its own" in each.message]


async def test_what_waits_for_long_is_dropped_and_what_has_just_come_is_not():
    """Down to half, when the oldest is past the time in which somebody should have looked."""
    clock = ManualClock()
    intake = filled(40, clock=clock)
    intake.drop_late()
    assert (intake.bound, len(intake)) == (MOST, 40)
    clock.time = BEHIND + 0.01
    intake.drop_late()
    assert intake.bound == 40
    intake.drop_late()
    assert (len(intake), intake.dropped) == (20, 20)


async def test_few_are_no_reason_to_have_fewer_wait():
    """Else a moment without time would cost the room for a burst."""
    intake = filled(LEAST)
    intake.fall_behind()
    assert intake.bound == MOST
