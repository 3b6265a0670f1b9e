"""The simulated client behaves as docs/resilience.md and docs/client.md say of the real one."""

from dataclasses import replace

import pytest

from meshrpc.policy.model import (
    Balancer,
    BalancerKind,
    CircuitBreaker,
    EffectivePolicy,
)
from tests.simulation.client import DEADLINE_EXCEEDED, OK, UNAVAILABLE, Client
from tests.simulation.connection import FOUND_FROZEN, LONGEST_BACKOFF
from tests.simulation.engine import Simulation
from tests.simulation.server import Server, State

POLICY = EffectivePolicy("payment")


def fleet(count=2, policy=POLICY, service_time=0.01):
    sim = Simulation(1)
    servers = [Server(sim, f"payment-{n}", service_time, slots=4) for n in range(count)]
    return sim, servers, Client(sim, "caller", servers, policy)


def calling(client, timeout=5.0):
    ended: list = []
    client.call(timeout, ended.append)
    return ended


def test_a_call_takes_the_way_there_the_work_and_the_way_back():
    """Half a millisecond on the way, and one attempt."""
    sim, _, client = fleet()
    (ended,) = [calling(client)]
    sim.run(1.0)
    assert ended[0].code is OK
    assert 0.0005 < ended[0].latency < 0.1
    assert ended[0].attempts == 1


def test_calls_at_a_server_that_dies_go_to_another():
    """At once: the connection breaks when the process does."""
    sim, servers, client = fleet(service_time=1.0)
    ended = [calling(client) for _ in range(4)]
    assert sum(endpoint.load.pending for endpoint in client.endpoints) == 4
    sim.at(0.01, servers[0].set_state, State.DEAD)
    sim.run(10.0)
    assert [each[0].code for each in ended] == [OK] * 4
    assert sorted(each[0].attempts for each in ended) == [1, 1, 2, 2]
    assert all(endpoint.load.pending == 0 for endpoint in client.endpoints)


def test_a_frozen_server_is_found_after_two_seconds():
    """By a ping a second and a second for its answer; its calls go to another then."""
    sim, servers, client = fleet()
    servers[0].set_state(State.FROZEN)
    ended = [calling(client) for _ in range(2)]
    sim.run(10.0)
    late = max((each[0] for each in ended), key=lambda each: each.latency)
    assert late.code is OK
    assert FOUND_FROZEN < late.latency < FOUND_FROZEN + 0.2


def test_a_server_that_is_back_is_connected_to_within_the_longest_backoff():
    """However long it was away: a second, and a fifth of jitter."""
    sim, servers, client = fleet(count=1)
    servers[0].set_state(State.DEAD)
    sim.run(60.0)
    assert not client.endpoints[0].is_ready()
    servers[0].set_state(State.UP)
    sim.run(60.0 + LONGEST_BACKOFF * 1.2 + 0.01)
    assert client.endpoints[0].is_ready()


def test_a_frozen_server_that_thaws_keeps_its_connection():
    """If nobody waited for it: there are no pings without calls."""
    sim, servers, client = fleet()
    servers[0].set_state(State.FROZEN)
    sim.run(30.0)
    assert client.endpoints[0].is_ready()


@pytest.mark.parametrize("state", [State.DEAD, State.FROZEN])
def test_no_call_ends_after_its_deadline(state):
    """Nobody answers: the error comes at the deadline at the latest."""
    sim, servers, client = fleet()
    for server in servers:
        server.set_state(state)
    ended = [calling(client, timeout=1.0) for _ in range(20)]
    sim.run(10.0)
    assert all(each[0].latency <= 1.0 + 1e-9 for each in ended)
    assert {each[0].code for each in ended} <= {UNAVAILABLE, DEADLINE_EXCEEDED}


def test_calls_beyond_the_circuit_breaker_fail_at_once():
    """The third of three at a limit of two; when one has ended, there is room again."""
    sim, _, client = fleet(policy=replace(POLICY, circuit_breaker=CircuitBreaker(max_requests=2)))
    first, second, third = calling(client), calling(client), calling(client)
    assert (first, second) == ([], [])
    assert (third[0].code, third[0].attempts) == (UNAVAILABLE, 0)
    sim.run(1.0)
    fourth = calling(client)
    assert fourth == []
    sim.run(2.0)
    assert fourth[0].code is OK


def test_a_handler_that_passes_a_failure_on_is_not_asked_again():
    """Its answer carries a negative pushback (chain-stop)."""
    sim, servers, client = fleet()
    for server in servers:
        server.handler = lambda work, finish: finish(UNAVAILABLE, True)
    ended = calling(client)
    sim.run(1.0)
    assert (ended[0].code, ended[0].attempts) == (UNAVAILABLE, 1)


def test_an_ejected_endpoint_comes_back_by_one_probe():
    """Five failures, five seconds without a call, one call that fails; nine seconds, one that does not."""
    turns = replace(POLICY, balancer=Balancer(BalancerKind.ROUND_ROBIN))
    sim, servers, client = fleet(policy=turns)
    bad = servers[0]
    bad.set_state(State.FAILING)

    def call_for(seconds):
        before = bad.arrived
        for _ in range(round(seconds * 10)):
            calling(client)
            sim.run(sim.now + 0.1)
        return bad.arrived - before

    assert call_for(2.0) == 5
    assert client.ejections[0].at < 1.1
    sim.run(client.ejections[0].until - 0.1)
    assert call_for(0.3) == 1
    bad.set_state(State.UP)
    sim.run(client.ejections[1].until - 0.1)
    assert call_for(0.2) == 1
    assert call_for(40.0) > 100  # slow start lasts 30 s; its full share would be 200
    assert len(client.ejections) == 2


def test_one_stray_failure_costs_a_server_its_calls_for_seconds_only():
    """It counts as 5 s of latency, which fades to the others' 10 ms in ln(500) = 6.2 time constants of 1 s."""
    sim, servers, client = fleet(count=4)
    sim.arrivals("calls", 100.0, 40.0, lambda: client.call(1.0, lambda _: None))
    sim.run(10.0)
    stray = servers[0]
    before = stray.arrived
    stray.set_state(State.FAILING)
    while stray.arrived == before:
        sim.run(sim.now + 0.001)
    stray.set_state(State.UP)
    sim.run(20.0)
    missed = stray.arrived
    sim.run(40.0)
    fair = 100.0 * 20 / len(servers)
    assert client.ejections == []
    assert stray.arrived - missed > 0.75 * fair
