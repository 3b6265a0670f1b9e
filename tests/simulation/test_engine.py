"""The simulator itself: time, order, and a server that queues as theory says."""

import pytest

from tests.simulation.engine import Simulation
from tests.simulation.server import OK, UNAVAILABLE, Server, State, Work


def test_events_happen_in_the_order_of_their_times_and_of_their_making():
    """Whatever order they were made in; what is due at once happens first come, first served."""
    sim, seen = Simulation(0), []
    sim.at(2.0, seen.append, "late")
    sim.at(1.0, seen.append, "first")
    sim.at(1.0, seen.append, "second")
    sim.at(1.5, seen.append, "never").cancel()
    sim.run(3.0)
    assert seen == ["first", "second", "late"]
    assert sim.now == 3.0


def test_an_event_in_the_past_happens_now():
    """Time never goes back."""
    sim, seen = Simulation(0), []
    sim.at(1.0, lambda: sim.at(0.5, lambda: seen.append(sim.now)))
    sim.run(2.0)
    assert seen == [1.0]


def test_streams_of_randomness_do_not_disturb_each_other():
    """What one part draws does not depend on how much the others drew."""
    alone = Simulation(7).rng("a").random()
    both = Simulation(7)
    both.rng("b").random()
    assert both.rng("a").random() == alone
    assert Simulation(8).rng("a").random() != alone


@pytest.mark.parametrize("rate", [20.0, 500.0])
def test_arrivals_are_poisson(rate):
    """Their number lies within five standard deviations (sqrt of it) of rate x time."""
    sim, count = Simulation(1), [0]
    sim.arrivals("calls", rate, 60.0, lambda: count.__setitem__(0, count[0] + 1))
    sim.run(100.0)
    assert abs(count[0] - rate * 60) < 5 * (rate * 60) ** 0.5


def test_a_queue_waits_as_long_as_queueing_theory_says():
    """At 80 % load the mean wait is Pollaczek and Khinchine's, rho (1 + cv^2) / (2 (1 - rho)) x service time."""
    sim = Simulation(3)
    server = Server(sim, "only", service_time=0.01)
    ended: list[float] = []

    def call() -> None:
        begun = sim.now
        server.receive(Work(lambda code, stop: ended.append(sim.now - begun), deadline=1e9))

    sim.arrivals("calls", 80.0, 1000.0, call)
    sim.run(1100.0)
    rho, squared_variation = 0.8, 0.25
    wait = rho * (1 + squared_variation) / (2 * (1 - rho)) * 0.01
    # 80 000 calls, correlated over some hundred calls at this load: 10 % is ample.
    assert sum(ended) / len(ended) == pytest.approx(wait + 0.01, rel=0.1)


def served(server, sim):
    """Send one call and return the list that its answer will be in."""
    answers: list = []
    server.receive(Work(lambda code, stop: answers.append((sim.now, code)), deadline=1e9))
    return answers


def test_a_dead_server_loses_its_work_and_a_frozen_one_keeps_it():
    """What was begun before the freeze is answered at the thaw; before a death never."""
    sim = Simulation(1)
    server = Server(sim, "one", service_time=0.01)
    frozen = served(server, sim)
    sim.at(0.0001, server.set_state, State.FROZEN)
    sim.at(5.0, server.set_state, State.UP)
    sim.run(6.0)
    assert frozen == [(5.0, OK)]
    lost = served(server, sim)
    sim.at(6.0001, server.set_state, State.DEAD)
    sim.at(7.0, server.set_state, State.UP)
    sim.run(8.0)
    assert lost == []
    assert server.busy == 0
    assert len(served(server, sim)) == 0  # and it works again
    sim.run(9.0)
    assert server.worked == 3


def test_a_failing_server_answers_at_once_and_does_not_work():
    """UNAVAILABLE within a millisecond, whatever waits in its queue."""
    sim = Simulation(1)
    server = Server(sim, "one", service_time=0.01)
    server.set_state(State.FAILING)
    answers = served(server, sim)
    sim.run(1.0)
    assert answers == [(0.001, UNAVAILABLE)]
    assert server.worked == 0


def test_what_is_cancelled_or_late_is_not_worked_on():
    """A caller that has left costs a server nothing but a place in the queue."""
    sim = Simulation(1)
    server = Server(sim, "one", service_time=0.01)
    served(server, sim)
    gone = Work(lambda code, stop: None, deadline=1e9)
    server.receive(gone)
    server.receive(Work(lambda code, stop: None, deadline=0.0001))
    gone.cancelled = True
    sim.run(1.0)
    assert (server.arrived, server.worked) == (3, 1)


def test_the_same_seed_is_the_same_run():
    """To the last bit, or a committed curve could not be checked."""

    def run() -> list[float]:
        sim, seen = Simulation(5), []
        server = Server(sim, "one", service_time=0.01)
        sim.arrivals(
            "calls",
            90.0,
            10.0,
            lambda: server.receive(Work(lambda code, stop: seen.append(sim.now), deadline=1e9)),
        )
        sim.run(20.0)
        return seen

    assert run() == run()
