"""What is read off a run: rates, shares and percentiles by stretches of time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tests.simulation.client import OK, Ended
from tests.simulation.engine import Simulation
from tests.simulation.server import Server

Points = list[tuple[float, float]]


def by_stretch(
    calls: Iterable[Ended], width: float, until: float, start: float = 0.0
) -> Iterator[tuple[float, list[Ended]]]:
    """Yield the beginning of each `width` seconds and the calls that started in them."""
    stretches: list[list[Ended]] = [[] for _ in range(round((until - start) / width))]
    for call in calls:
        if start <= call.start < until:
            stretches[int((call.start - start) / width)].append(call)
    for number, stretch in enumerate(stretches):
        yield start + number * width, stretch


def succeeded(calls: Sequence[Ended]) -> float:
    """Return the share of calls that succeeded; of none, all did."""
    return sum(call.code is OK for call in calls) / len(calls) if calls else 1.0


def attempts_per_call(calls: Sequence[Ended]) -> float:
    """Return how many attempts a call took on average."""
    return sum(call.attempts for call in calls) / len(calls)


def percentile(values: Iterable[float], part: float) -> float:
    """Return the smallest value that `part` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def success_by(calls: Iterable[Ended], width: float, until: float) -> Points:
    """Return the percentage of calls that succeeded, by stretches of time."""
    return [(at, 100 * succeeded(part)) for at, part in by_stretch(calls, width, until)]


def arrivals_by(sim: Simulation, servers: Sequence[Server], width: float, until: float) -> Points:
    """Return, once the simulation has run, the calls per second that came in at all `servers`."""
    points: Points = []
    before = 0

    def count() -> None:
        nonlocal before
        arrived = sum(server.arrived for server in servers)
        points.append((sim.now - width, (arrived - before) / width))
        before = arrived

    for number in range(round(until / width)):
        sim.at((number + 1) * width, count)
    return points
