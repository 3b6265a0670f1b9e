"""The fleet's engine: its servers queue as theory says, and it uses what the mesh uses."""

import pytest

from meshrpc.balancer import create_balancer
from meshrpc.policy.model import Balancer, BalancerKind
from tests.simulation.fleet import TRAVEL, Fleet

SERVICE_TIME = 0.01
RANDOM = Balancer(BalancerKind.RANDOM)


def single(rate, seconds, *, slots=1, seed=1):
    """A fleet of one client and one server, after `seconds` of calls."""
    fleet = Fleet(seed, reports=True)
    servers = fleet.add_servers(["only"], SERVICE_TIME, slots)
    (client,) = fleet.add_clients(["caller"], RANDOM)
    client.connect(servers)
    fleet.run(rate, seconds)
    return fleet


def test_a_call_waits_as_long_as_queueing_theory_says():
    """At 80 % load the mean wait is Pollaczek and Khinchine's, rho (1 + cv^2) / (2 (1 - rho)) x service time."""
    fleet = single(80.0, 1000.0)
    rho, squared_variation = 0.8, 0.25
    wait = rho * (1 + squared_variation) / (2 * (1 - rho)) * SERVICE_TIME
    mean = sum(call.latency for call in fleet.calls) / len(fleet.calls)
    assert mean == pytest.approx(wait + SERVICE_TIME + 2 * TRAVEL, rel=0.1)


def test_more_slots_leave_nobody_waiting():
    """Two calls of ten slots' worth: latency is the service time and the way there and back."""
    fleet = single(200.0, 100.0, slots=10)
    mean = sum(call.latency for call in fleet.calls) / len(fleet.calls)
    assert mean == pytest.approx(SERVICE_TIME + 2 * TRAVEL, rel=0.02)


@pytest.mark.parametrize(("rate", "slots"), [(50.0, 1), (150.0, 2), (1000.0, 1)])
def test_a_server_reports_how_busy_it_is_and_what_it_gets_done(rate, slots):
    """Utilization is rate x service time / slots, 1 at most; calls per second what it can do at most."""
    fleet = single(rate, 60.0, slots=slots)
    reports = []
    for second in range(60, 80):
        fleet.run(rate, second + 1)
        reports.append(fleet.servers[0].report(fleet.now))
    capacity = slots / SERVICE_TIME
    assert all(report.utilization < 1.0 + 1e-9 for report in reports)
    mean = sum(report.utilization for report in reports) / len(reports)
    assert mean == pytest.approx(min(1.0, rate / capacity), rel=0.1)
    done = sum(report.rps for report in reports) / len(reports)
    assert done == pytest.approx(min(capacity, rate), rel=0.1)


def test_a_slow_server_takes_longer_from_the_next_call_on():
    """Twenty times slower, twenty times the mean; and back."""
    fleet = single(1.0, 100.0)
    fleet.servers[0].slowness = 20.0
    fleet.run(1.0, 400.0)
    slow = [call.latency for call in fleet.calls if call.start > 100.0]
    fast = [call.latency for call in fleet.calls if call.start <= 100.0]
    assert sum(slow) / len(slow) == pytest.approx(20 * SERVICE_TIME, rel=0.2)
    assert sum(fast) / len(fast) == pytest.approx(SERVICE_TIME, rel=0.2)


def test_everything_that_starts_ends_and_nothing_is_pending_then():
    """Each endpoint's load is back at none under way once the last answer is there."""
    fleet = Fleet(3)
    servers = fleet.add_servers((f"s{n}" for n in range(5)), SERVICE_TIME)
    clients = fleet.add_clients((f"c{n}" for n in range(5)), Balancer())
    for client in clients:
        client.connect(servers)
    fleet.run(300.0, 5.0)
    assert len(fleet.calls) < sum(server.arrived for server in servers)
    fleet.run(0.0, 10.0)
    assert len(fleet.calls) == sum(server.arrived for server in servers)
    assert not any(each.load.pending for client in clients for each in client.endpoints)


@pytest.mark.parametrize("kind", BalancerKind)
def test_the_same_seed_gives_the_same_run(kind):
    """To the last bit, with every balancer; another seed gives another."""

    def run(seed):
        fleet = Fleet(seed, reports=True)
        servers = fleet.add_servers((f"s{n}" for n in range(5)), SERVICE_TIME)
        for client in fleet.add_clients((f"c{n}" for n in range(5)), Balancer(kind)):
            client.connect(servers)
        draw = fleet.rng("keys").random
        fleet.run(300.0, 1.0, key=lambda: f"{draw():.1f}")
        return [(call.start, call.latency, call.server.id) for call in fleet.calls]

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_who_stays_is_remembered_and_who_comes_is_connected_to():
    """Endpoints keep their statistics when others come and go; each new one is a connection more."""
    fleet = Fleet(1)
    servers = fleet.add_servers(["a", "b", "c"], SERVICE_TIME)
    (client,) = fleet.add_clients(["caller"], RANDOM)
    client.connect(servers[:2])
    before = {each.id: each for each in client.endpoints}
    client.connect(servers[1:])
    after = {each.id: each for each in client.endpoints}
    assert after["b"] is before["b"]
    assert set(after) == {"b", "c"}
    assert client.connected == 3


@pytest.mark.parametrize("kind", [BalancerKind.ROUND_ROBIN, BalancerKind.RANDOM])
def test_in_slow_start_an_endpoint_gets_its_part_of_a_share(kind):
    """A tenth at first, half of it in the middle, as `resilience/slow_start.py` says; all in the end."""
    fleet = Fleet(1, keeps=False)
    servers = fleet.add_servers((f"s{n}" for n in range(10)), SERVICE_TIME, slots=100)
    (client,) = fleet.add_clients(["caller"], Balancer(kind))
    client.connect(servers[:9])
    client.connect(servers, 0.0, 30.0)
    new, rate, shares = servers[9], 2000.0, {}
    for end in (3.0, 14.0, 16.0, 30.0, 40.0):
        before = new.arrived
        start = fleet.now
        fleet.run(rate, end)
        shares[end] = (new.arrived - before) / (rate * (end - start) / 10)
    # Of 400 to 2,000 calls, so within five standard deviations of a tenth of that at most.
    assert shares[3.0] == pytest.approx(0.1, abs=0.08)
    assert shares[16.0] == pytest.approx(0.5, abs=0.18)
    assert shares[40.0] == pytest.approx(1.0, abs=0.11)


def test_one_balancer_may_serve_all_clients():
    """A table of keys need not be made a thousand times; each client has its own endpoints still."""
    fleet = Fleet(1)
    servers = fleet.add_servers((f"s{n}" for n in range(10)), SERVICE_TIME)
    policy = Balancer(BalancerKind.MAGLEV)
    table = create_balancer(policy, fleet.rng("table"))
    one, other = fleet.add_clients(["one", "other"], policy, balancer=table)
    for client in (one, other):
        client.connect(servers)
    assert one.pick(0.0, "key").id == other.pick(0.0, "key").id
    assert one.pick(0.0, "key") is not other.pick(0.0, "key")
