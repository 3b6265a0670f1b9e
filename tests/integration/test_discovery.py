"""What a caller makes of what its registry says, against real grpc servers."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import AsyncExitStack
from dataclasses import replace

import grpc
import pytest

import meshrpc
from meshrpc.client import destination, discovery
from meshrpc.client.destination import Destination
from meshrpc.client.endpoint import Dialing
from meshrpc.client.view import view
from meshrpc.policy.model import effective
from meshrpc.registry.doubt import HOLD
from meshrpc.registry.instance import Health, State
from meshrpc.registry.read_only import ReadOnly
from meshrpc.registry.registry import LEASE, Snapshot
from tests.echo import PLAIN, ROUND_ROBIN, EchoServer, policy, ready

PATIENCE = 20


class SayingRegistry(ReadOnly):
    """Says what the test tells it, and nothing before."""

    because = "it says what a test tells it"

    def __init__(self):
        self.away: str | None = None
        self._on_snapshot = None

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    def watch(self, service, on_snapshot):
        self._on_snapshot = on_snapshot
        return self

    def close(self):
        pass

    def why_silent(self):
        return self.away

    def say(self, *servers, **rest):
        instances = sorted((each.instance for each in servers), key=lambda one: one.id)
        self._on_snapshot(Snapshot("echo", tuple(instances), **rest))


@pytest.fixture
def registry():
    return SayingRegistry()


@pytest.fixture
async def three():
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(EchoServer(name)) for name in "abc"]


@pytest.fixture
async def channel(mesh, registry, three):
    """A channel to three instances in turn."""
    policy(mesh, balancer=ROUND_ROBIN)
    channel = mesh.channel("echo")
    channel.get_state(try_to_connect=True)
    registry.say(*three)
    await ready(channel, 3)
    return channel


def states(channel):
    return {each.instance.id: each.instance.state for each in channel.bound().endpoints}


async def answers(channel, count=6):
    call = channel.unary_unary(PLAIN)
    return {(await call(b""))[-1:] for _ in range(count)}


async def test_instances_that_vanish_together_are_called_on_over_the_same_connections(
    channel, registry, caplog
):
    """A registry that was restarted empty is not noticed by any call, and stands in the log."""
    before = {id(each) for each in channel.bound().endpoints}
    with caplog.at_level(logging.WARNING, "meshrpc.client"):
        registry.say()
    assert set(states(channel).values()) == {State.HELD}
    assert {id(each) for each in channel.bound().endpoints} == before
    assert await answers(channel) == {b"a", b"b", b"c"}
    assert "3 instances of echo vanished from the registry without a word" in caplog.text


async def test_one_that_is_held_and_fails_is_gone(channel, registry, three):
    """Its connection breaks and cannot be made again: the registry was right."""
    registry.say()
    await three[0].server.stop(None)
    async with asyncio.timeout(PATIENCE):
        while "a" in states(channel):
            await channel.bound().changed()
    assert await answers(channel) == {b"b", b"c"}


async def test_one_that_fails_already_is_not_held(channel, registry, three):
    """What the registry says now fits what was seen before."""
    await three[0].server.stop(None)
    async with asyncio.timeout(PATIENCE):
        while channel.bound().ready_count > 2:
            await channel.bound().changed()
        endpoint = next(each for each in channel.bound().endpoints if each.id == "a")
        while endpoint.state is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            await channel.bound().changed()
    registry.say()
    assert states(channel) == {"b": State.HELD, "c": State.HELD}


async def test_those_that_left_by_their_word_get_no_further_call(channel, registry, three):
    """Deregistering is one, and the mark of those that leave is one."""
    registry.say(three[0], departed=frozenset("bc"))
    assert await answers(channel) == {b"a"}


async def test_an_instance_that_does_not_serve_gets_no_call_while_others_do(
    channel, registry, three
):
    """If none says that it serves, somebody may be wrong about that, and all get calls."""
    out = [replace(each.instance, health=Health.NOT_SERVING) for each in three]
    take_in = channel.bound().discovery.take_in
    take_in(Snapshot("echo", (out[0], three[1].instance, three[2].instance)))
    assert await answers(channel) == {b"b", b"c"}
    take_in(Snapshot("echo", tuple(out)))
    await ready(channel, 3)
    assert await answers(channel) == {b"a", b"b", b"c"}


async def test_a_view_shows_what_the_process_makes_of_each(channel, registry, three):
    """Held, draining, ejected; connected or not; and what was left out."""
    registry.say(three[0])
    registry.away = "no answer"
    destination = channel.bound()
    destination.discovery.skipped = ("bad: no port",)
    seen = view("echo", [destination])
    assert seen.is_called
    assert seen.away == "no answer"
    assert list(seen.skipped) == ["bad: no port"]
    shown = {one.instance.id: (one.state, one.connectivity) for one in seen.instances}
    assert shown == {"a": ("active", "ready"), "b": ("held", "ready"), "c": ("held", "ready")}
    assert not view("other", [destination]).is_called


class Remembering:
    """What was last known, without a disk."""

    def __init__(self, *servers):
        self._instances = tuple(each.instance for each in servers)
        self.kept = []

    def instances(self, service):
        return meshrpc.last_known.Remembered(self._instances, age=240.0)

    def keep_instances(self, service, instances, *, is_partial):
        self.kept.append(({each.id: each.state.value for each in instances}, is_partial))


class Caller:
    """A destination on a clock that only the test moves."""

    def __init__(self, registry, clock, rng, last_known=None):
        self.clock = clock
        self.destination = Destination(
            "echo",
            Dialing("shell"),
            effective("echo", {}),
            member="shell-1",
            zone=None,
            clock=clock,
            rng=rng,
            last_known=last_known,
        )
        self.destination.open(registry)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.destination.close(0.0)

    @property
    def believed(self):
        return {each.id: each.state.value for each in self.destination.discovery.instances}


@pytest.fixture
def rng():
    return random.Random(1)


class Foreign(EchoServer):
    """One that registered nothing itself, so that it cannot register again."""

    @property
    def instance(self):
        return replace(super().instance, pid=None)


@pytest.fixture
async def foreign():
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Foreign(name)) for name in "abc"]


async def test_a_hold_ends_after_two_lease_times(registry, virtual_clock, foreign, rng):
    """Whoever is alive has registered again by then, if it is one of ours."""
    async with Caller(registry, virtual_clock, rng) as caller:
        registry.say(*foreign)
        registry.say(foreign[0])
        await virtual_clock.advance(HOLD - 0.1)
        assert caller.believed == {"a": "active", "b": "held", "c": "held"}
        await virtual_clock.advance(0.2)
        assert caller.believed == {"a": "active"}


async def test_a_hold_does_not_end_while_the_registry_is_away(
    registry, virtual_clock, foreign, rng
):
    """It forgot everybody, and died: nobody can have come back."""
    async with Caller(registry, virtual_clock, rng) as caller:
        registry.say(*foreign)
        registry.say()
        registry.away = "no answer"
        await virtual_clock.advance(10 * HOLD)
        assert set(caller.believed.values()) == {"held"}
        registry.away = None
        await virtual_clock.advance(LEASE)
        assert caller.believed == {}


async def test_one_of_ours_that_is_alive_is_held_on(registry, virtual_clock, three, rng):
    """It is cut off from a registry that its callers hear: nobody else could take its calls."""
    async with Caller(registry, virtual_clock, rng) as caller:
        registry.say(*three)
        async with asyncio.timeout(PATIENCE):
            while caller.destination.ready_count < 3:
                await caller.destination.changed()
        registry.say()
        await virtual_clock.advance(3 * HOLD)
        assert caller.believed == {"a": "held", "b": "held", "c": "held"}


async def test_what_was_last_known_is_used_when_the_registry_is_silent(
    registry, virtual_clock, three, rng, caplog
):
    """Not before a registry that is there would have answered; its word comes first then."""
    registry.away = "cannot reach it"
    async with Caller(registry, virtual_clock, rng, Remembering(*three[:2])) as caller:
        await virtual_clock.advance(discovery.REMEMBER_AFTER - 0.01)
        assert caller.believed == {}
        await virtual_clock.advance(0.02)
        assert caller.believed == {"a": "active", "b": "active"}
        assert caller.destination.discovery.age() == pytest.approx(240.0, abs=1)
        assert "using 2 instances of echo as they were 4 min ago: cannot reach it" in caplog.text
        registry.say(three[0], three[2])
        assert caller.believed == {"a": "active", "c": "active"}
        assert caller.destination.discovery.age() is None


async def test_a_first_answer_that_lists_nobody_is_doubted_too(registry, virtual_clock, three, rng):
    """A process that starts just after the registry was restarted empty knows no better otherwise."""
    async with Caller(registry, virtual_clock, rng, Remembering(*three)) as caller:
        registry.say()
        assert caller.believed == {"a": "held", "b": "held", "c": "held"}


async def test_what_is_believed_is_kept(registry, virtual_clock, foreign, rng):
    """The next start is to know as much; what a recovering registry says is not all there is."""
    last_known = Remembering()
    async with Caller(registry, virtual_clock, rng, last_known):
        registry.say(*foreign[:2], is_recovering=True)
        registry.say(*foreign)
        registry.say()
    two, three = (dict.fromkeys(ids, "active") for ids in ("ab", "abc"))
    assert last_known.kept == [(two, True), (three, False), (dict.fromkeys("abc", "held"), False)]


async def test_held_ones_that_fail_together_are_given_up_together(channel, registry, monkeypatch):
    """Of a thousand whose site has gone, each would cost a roster drawn among all the others."""
    registry.say()
    rosters = []
    draw = destination.draw
    monkeypatch.setattr(
        destination, "draw", lambda *args, **rest: rosters.append(args) or draw(*args, **rest)
    )
    bound = channel.bound()
    for endpoint in bound.endpoints:
        endpoint.state = grpc.ChannelConnectivity.TRANSIENT_FAILURE
        bound.on_state(endpoint, grpc.ChannelConnectivity.READY)
    await asyncio.sleep(0)
    assert not bound.discovery.instances
    assert len(rosters) == 1


async def test_one_that_fails_while_all_is_closed_leaves_no_task(registry, virtual_clock, foreign):
    """Connections end after discovery has; the holds of the others are nobody's by then."""
    caller = Caller(registry, virtual_clock, random.Random(1))
    registry.say(*foreign)
    registry.say()
    await caller.destination.discovery.close()
    before = asyncio.all_tasks()
    caller.destination.discovery.failed(["a"])
    assert asyncio.all_tasks() == before
    await caller.destination.close(0.0)


async def test_a_registry_that_has_just_started_has_not_said_that_there_is_nobody(
    mesh, registry, three
):
    """A caller that starts just then, and knows nothing, waits for those that register again."""
    channel = mesh.channel("echo")
    call = channel.unary_unary(PLAIN)(b"", timeout=PATIENCE)
    while registry._on_snapshot is None:  # noqa: ASYNC110 - no event tells of it
        await asyncio.sleep(0)
    registry.say(is_recovering=True)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(call)), 0.1)
    registry.say(three[0], is_recovering=True)
    assert await call == b"@a"


async def test_when_it_has_recovered_nobody_means_nobody(mesh, registry):
    """The call fails at once, and says so."""
    channel = mesh.channel("echo")
    call = channel.unary_unary(PLAIN)(b"", timeout=PATIENCE)
    while registry._on_snapshot is None:  # noqa: ASYNC110 - no event tells of it
        await asyncio.sleep(0)
    registry.say(is_recovering=True)
    discovery = channel.bound().discovery
    assert discovery.why_silent() == "the registry has just started, and lists none yet"
    registry.say()
    assert discovery.why_silent() is None
    with pytest.raises(grpc.aio.AioRpcError, match="has no instances in the registry"):
        await call
