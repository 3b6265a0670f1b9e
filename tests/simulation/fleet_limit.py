"""One limit over a fleet: processes with skewed demand, control that divides it, and what goes wrong.

The limiter, the reports and the quota are those that run in production; between them lies a network
that takes a few milliseconds and delivers in order. A process that dies stops at once and tells
nobody. A control service that is restarted begins with nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from meshrpc.control.quota import Quota
from meshrpc.control.quota_member import Grant, Holder
from meshrpc.fleet_limits import LOOK_EVERY, ShareReports
from meshrpc.limits.rate_limiter import RateLimiter
from meshrpc.limits.shares import WHOLE, Claim
from meshrpc.policy.model import RateLimit, ShareMode
from meshrpc.v1 import control_pb2
from tests.simulation.chart import Chart, Panel, Shade, line
from tests.simulation.engine import Simulation

LIMIT = RateLimit("all", 100.0, 50, share=ShareMode.FLEET)
DEMAND = (300.0, 60.0, 20.0, 10.0, 5.0, 1.0)
"""Calls per second, of each process."""
METHOD = "/shop.Shop/Buy"
NETWORK = (0.002, 0.02)
"""Seconds that a message takes."""
CHANGE_OF_STREAM = 0.5
"""Seconds from the return of control to the first report, at most, in the simulation."""


_opened = itertools.count()


class Control:
    """A control service: there, or away."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.quota: Quota | None = None
        self.streams: dict[Stream, None] = {}
        self.started = 0.0

    def start(self) -> None:
        self.quota, self.started = Quota(self.sim.now), self.sim.now
        self._tick(self.quota)

    def stop(self) -> None:
        self.quota = None
        for stream in tuple(self.streams):
            stream.break_off()

    def _tick(self, quota: Quota) -> None:
        if quota is not self.quota:
            return
        for stream, grant in quota.grants(self.sim.now):
            stream.to_process(grant)
        self.sim.after(0.02, self._tick, quota)


class Stream:
    """What a process says to control and hears from it, in order."""

    def __init__(self, process: Process, control: Control) -> None:
        self.process, self.control, self.sim = process, control, process.sim
        self.opened = next(_opened)
        self.reports = ShareReports(process, self.to_control, clock=process)
        self._rng = process.rng
        self._arrived = {"up": 0.0, "down": 0.0}
        self.is_broken = False
        control.streams[self] = None
        self._look()

    def _look(self) -> None:
        if not self.is_broken and self.process.is_alive:
            self.reports.look()
            self.sim.after(LOOK_EVERY, self._look)

    def _deliver(self, way: str, action: Callable[[], None]) -> None:
        at = max(self._arrived[way], self.sim.now + self._rng.uniform(*NETWORK))
        self._arrived[way] = at
        self.sim.at(at, action)

    def to_control(self, report: control_pb2.QuotaReport) -> None:
        quota = self.control.quota
        claims = [Claim(c.limit, c.key, c.demand, c.share, c.is_granted) for c in report.claims]

        def arrive() -> None:
            if self.control.quota is quota is not None and not self.is_broken:
                holder = Holder("default", "shop", self.process.name)
                quota.report(holder, self, report.grant, claims, self.sim.now)

        self._deliver("up", arrive)

    def to_process(self, grant: Grant) -> None:
        message = control_pb2.QuotaGrant(number=grant.number)
        for one in grant.shares:
            message.shares.add(
                limit=one.limit, key=one.key, share=one.share or 0, forget=one.share is None
            )

        def arrive() -> None:
            if not self.is_broken and self.process.is_alive:
                self.reports.take(message)

        self._deliver("down", arrive)

    def break_off(self) -> None:
        self.is_broken = True
        self.control.streams.pop(self, None)
        if self.control.quota is not None:
            self.control.quota.leave(self)


class Process:
    """One instance: a limiter, and callers."""

    def __init__(self, sim: Simulation, fleet: Fleet, name: str, limit: RateLimit) -> None:
        self.sim, self.fleet, self.name = sim, fleet, name
        self.rng = sim.rng(name)
        self.limiter = RateLimiter()
        self.limiter.configure((limit,), sim.now)
        self.is_alive = True
        self.born = sim.now
        self.rates: dict[str, float] = {}
        self.stream: Stream | None = None

    # What ShareReports needs: limits, and a clock.

    def now(self) -> float:
        return self.sim.now

    @property
    def has_fleet_limits(self) -> bool:
        return self.limiter.has_fleet_limits

    def look(self) -> bool:
        return self.limiter.look(self.sim.now)

    def claims(self) -> tuple[Claim, ...]:
        return self.limiter.claims()

    def take_shares(self, shares: Iterable) -> None:
        self.limiter.take_shares(shares, self.sim.now)
        self.fleet.check()

    # Callers.

    def call(self, caller: str, rate: float) -> None:
        """Have `caller` call `rate` times a second from now on, evenly but for some jitter."""
        began = caller in self.rates
        self.rates[caller] = rate
        if not began:
            self._arrive(caller, first=True)

    def _arrive(self, caller: str, *, first: bool = False) -> None:
        if not self.is_alive:
            return
        rate = self.rates[caller]
        if rate and not first:
            refusal = self.limiter.check(self.sim.now, caller, METHOD, ())
            self.fleet.calls.append((self.sim.now, self.name, caller, refusal is None))
        gap = self.rng.uniform(0.5, 1.5) / rate if rate else 0.1
        self.sim.after(min(gap, 2.0), partial(self._arrive, caller))

    def share(self, key: str) -> int:
        (limit,) = self.limiter._limits
        assert limit.fleet is not None
        return limit.fleet.of(key)


class Fleet:
    """All of it. `calls`: when, at which process, by whom, admitted or not."""

    def __init__(self, seed: int, limit: RateLimit = LIMIT, keys: Sequence[str] = ("",)) -> None:
        self.sim = Simulation(seed)
        self.rng = self.sim.rng("fleet")
        self.limit = limit
        self.keys = keys
        self.control = Control(self.sim)
        self.control.start()
        self.processes: dict[str, Process] = {}
        self.calls: list[tuple[float, str, str, bool]] = []
        self.sums: list[tuple[float, float]] = [(0.0, 0.0)]
        """The most that all shares of a key added up to, whenever one changed."""
        self.shares: list[tuple[float, str, float]] = []

    def start(self, name: str, **rates: float) -> Process:
        process = self.processes[name] = Process(self.sim, self, name, self.limit)
        for caller, rate in rates.items():
            process.call(caller, rate)
        self.connect(process, self.rng.uniform(0.0, CHANGE_OF_STREAM))
        self.check()
        return process

    def connect(self, process: Process, within: float) -> None:
        def connect() -> None:
            if process.is_alive and self.control.quota is not None:
                process.stream = Stream(process, self.control)

        self.sim.after(within, connect)

    def die(self, name: str) -> None:
        process = self.processes.pop(name)
        process.is_alive = False
        if process.stream is not None:
            process.stream.break_off()
        self.check()

    def restart_control(self, after: float) -> None:
        """Stop control now, and start it again so much later."""
        self.control.stop()

        def back() -> None:
            self.control.start()
            for process in self.processes.values():
                self.connect(process, self.rng.uniform(0.0, 5.0))

        self.sim.after(after, back)

    def check(self) -> None:
        now = self.sim.now
        most = max(
            sum(process.share(key) for process in self.processes.values()) for key in self.keys
        )
        self.sums.append((now, most / WHOLE))
        for process in self.processes.values():
            self.shares.append((now, process.name, process.share(self.keys[0]) / WHOLE))

    def run(self, until: float) -> None:
        self.sim.run(until)

    def admitted(self, start: float, end: float, name: str | None = None) -> int:
        return sum(
            ok and start <= at < end and name in (None, process)
            for at, process, _, ok in self.calls
        )


def excess(fleet: Fleet, caller: str = "a") -> float:
    """Return by how much any window had more calls admitted than what the shares allow in it.

    That is, for each window, the calls admitted less the rate times the sum of the shares in use
    over its time; the greatest of all.
    """
    sums = [*fleet.sums, (fleet.sim.now, 0.0)]
    index, allowed, at = 0, 0.0, 0.0
    least, most = 0.0, 0.0
    count = 0
    for time, _, who, ok in fleet.calls:
        if not ok or who != caller:
            continue
        while sums[index + 1][0] <= time:
            allowed += (sums[index + 1][0] - at) * sums[index][1] * fleet.limit.rate
            index += 1
            at = sums[index][0]
        allowed += (time - at) * sums[index][1] * fleet.limit.rate
        at = time
        least = min(least, count - allowed)
        count += 1
        most = max(most, count - allowed - least)
    return most


def a_bad_day(seed: int) -> Fleet:
    """Return a fleet after 210 seconds in which everything happens that can."""
    fleet = Fleet(seed)
    fleet.run(20.0)  # control was there before
    for number, rate in enumerate(DEMAND):
        fleet.start(f"p{number}", a=rate)
    fleet.run(40.0)
    fleet.die("p0")
    fleet.run(70.0)
    fleet.start("p6", a=150.0)
    fleet.run(90.0)
    for name, rate in zip(("p1", "p5", "p6"), (5.0, 60.0, 30.0), strict=True):
        fleet.processes[name].call("a", rate)
    fleet.run(110.0)
    fleet.restart_control(50.0)
    fleet.run(130.0)
    fleet.start("p7", a=50.0)
    fleet.run(210.0)
    return fleet


def chart() -> Chart:
    """Draw the calls let in, the sum of the shares, and the shares."""
    fleet = a_bad_day(1)
    start, end, width = 20, 210, 2
    rates = [
        (at + width / 2, fleet.admitted(at, at + width) / width) for at in range(start, end, width)
    ]
    sums = {round(at, 1): 100 * total for at, total in fleet.sums if at >= start}
    away = {"shades": (Shade(110.0, 160.0),), "shade_label": "control is away"}
    span = (float(start), float(end))
    looks = {"p0": "bare", "p1": "ours", "p5": "more", "p6": "else"}
    return Chart(
        "fleet_limit",
        "A limit of 100/s over a fleet",
        "40 s: the largest process dies · 70 s: one starts · 90 s: demand turns round · 130 s: one starts",
        (
            Panel(
                "Calls let in",
                "time (s)",
                "per second",
                (
                    line("by all processes", rates),
                    line("the limit", ((20, 100), (210, 100)), "ideal"),
                ),
                span=span,
                top=120.0,
                **away,
            ),
            Panel(
                "Shares in use, added up",
                "time (s)",
                "% of the limit",
                (line("all processes", [*sums.items(), (end, 100.0)], steps=True),),
                span=span,
                top=120.0,
                **away,
            ),
            Panel(
                "Shares of some",
                "time (s)",
                "% of the limit",
                tuple(
                    line(name, shares_of(fleet, name), look, steps=True)
                    for name, look in looks.items()
                ),
                span=span,
                **away,
            ),
        ),
    )


def shares_of(fleet: Fleet, name: str) -> list[tuple[float, float]]:
    """Return the share of one process in percent, as it changes, once in half a second at most."""
    points = {round(2 * at) / 2: 100 * share for at, who, share in fleet.shares if who == name}
    return [*points.items()]
