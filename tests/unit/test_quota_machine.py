"""Shares of limits over a fleet, whatever happens in whatever order: they never add up to too much."""

import itertools
import random
from collections import deque

import pytest

from meshrpc.control import quota as quota_module
from meshrpc.control.quota import Quota
from meshrpc.control.quota_member import Holder
from meshrpc.limits.rate_limiter import RateLimiter
from meshrpc.limits.shares import EVERY_KEY, WHOLE
from meshrpc.policy.model import RateLimit, RateOverride, ShareMode

KEYED = RateLimit(
    "per-caller",
    50.0,
    20,
    ("caller",),
    share=ShareMode.FLEET,
    max_keys=20,
    overrides=(RateOverride((("caller", "a"),), 5.0, 3),),
)
WHOLE_LIMIT = RateLimit("all", 100.0, 50, share=ShareMode.FLEET)
CALLERS = "abcdefgh"
KEYS = [EVERY_KEY, *(b"=" + caller.encode() for caller in (*CALLERS, "stranger"))]
STEPS = 400


class Stream:
    count = itertools.count()

    def __init__(self):
        self.opened = next(Stream.count)
        self.up, self.down = deque(), deque()
        self.number = 0


class Process:
    def __init__(self, name, now):
        self.name = name
        self.limiter = RateLimiter()
        self.limiter.configure((KEYED, WHOLE_LIMIT), now)
        self.stream = None
        self.is_cut = False

    def report(self):
        self.stream.up.append((self.stream.number, self.limiter.claims()))

    def uses(self, limit, key):
        (found,) = (one for one in self.limiter._limits if one.spec.name == limit)
        fleet = found.fleet
        return fleet.every if key == EVERY_KEY else fleet.of(key.removeprefix(b"=").decode())


class Machine:
    """Control, processes, and the messages between them, any of which may come next."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.now = 100.0
        self.names = itertools.count()
        self.quota = Quota(self.now)
        self.processes = []
        self.orphans = []
        """Streams whose end control has not noticed."""
        for _ in range(3):
            self.start()

    def members(self):
        service = self.quota._services.get(("default", "shop"))
        return {} if service is None else service.members

    def buckets(self):
        return [("all", EVERY_KEY), *(("per-caller", key) for key in KEYS)]

    def sums(self):
        members = self.members().values()
        return {
            (limit, key): sum(member.held(limit, key) for member in members)
            for limit, key in self.buckets()
        }

    def check(self):
        """What control counts for a process is never less than what the process uses."""
        for process in self.processes:
            member = self.members().get(process.name)
            if member is None or (member.stream is not process.stream and not process.is_cut):
                continue
            for limit, key in self.buckets():
                if member.counts(limit):
                    assert process.uses(limit, key) <= member.held(limit, key), (limit, key)

    # What may happen.

    def start(self):
        process = Process(f"p{next(self.names)}", self.now)
        self.processes.append(process)
        self.connect(process)

    def connect(self, process):
        process.stream = Stream()
        process.report()

    def wait(self):
        self.now += self.rng.choice([0.01, 0.1, 0.1, 0.3, 1.0, 1.0, self.rng.choice([1.0, 12.0])])

    def call(self):
        process = self.rng.choice(self.processes)
        caller = self.rng.choice([*CALLERS[: self.rng.randint(1, 8)], f"new{self.rng.random()}"])
        for _ in range(self.rng.choice([1, 5, 40])):
            process.limiter.check(self.now, caller, "/shop.Shop/Buy", ())

    def look(self):
        for process in self.processes:
            process.limiter.look(self.now)
            if process.stream is not None:
                process.report()

    def deliver_up(self):
        streams = [(p.stream, p.name) for p in self.processes if p.stream is not None]
        streams = [one for one in [*streams, *self.orphans] if one[0].up]
        if streams:
            stream, name = self.rng.choice(streams)
            number, claims = stream.up.popleft()
            self.quota.report(Holder("default", "shop", name), stream, number, claims, self.now)

    def deliver_down(self):
        streams = [p for p in self.processes if p.stream is not None and p.stream.down]
        if streams:
            process = self.rng.choice(streams)
            grant = process.stream.down.popleft()
            process.limiter.take_shares(grant.shares, self.now)
            process.stream.number = grant.number
            process.report()

    def divide(self):
        before = self.sums()
        made = self.quota.grants(self.now)
        for stream, grant in made:
            stream.down.append(grant)
        service = self.quota._services.get(("default", "shop"))
        for (limit, key), held in self.sums().items():
            whole = WHOLE
            if self.quota._is_recovering and service is not None and limit in service.limits:
                whole = service.limits[limit].whole(key)
            assert held <= max(whole, before[limit, key]), (limit, key)
        for stream in self.quota.overdue():
            for process in self.processes:
                if process.stream is stream:
                    self.cut(process)

    def cut(self, process):
        if process.stream is None:
            return
        stream, process.stream = process.stream, None
        process.is_cut = True
        stream.down.clear()
        self.orphans.append((stream, process.name))

    def notice(self):
        if self.orphans:
            stream, _ = self.orphans.pop(self.rng.randrange(len(self.orphans)))
            self.quota.leave(stream)

    def lose_a_stream(self):
        self.cut(self.rng.choice(self.processes))

    def come_back(self):
        away = [process for process in self.processes if process.stream is None]
        if away:
            process = self.rng.choice(away)
            process.is_cut = False
            self.connect(process)

    def die(self):
        if len(self.processes) > 1:
            process = self.processes.pop(self.rng.randrange(len(self.processes)))
            self.cut(process)

    def restart_control(self):
        self.quota = Quota(self.now)
        self.orphans.clear()
        for process in self.processes:
            process.stream = None
            process.is_cut = False

    def step(self):
        action = self.rng.choices(
            [
                self.wait,
                self.call,
                self.look,
                self.deliver_up,
                self.deliver_down,
                self.divide,
                self.lose_a_stream,
                self.notice,
                self.come_back,
                self.start,
                self.die,
                self.restart_control,
            ],
            [20, 20, 10, 60, 40, 30, 3, 4, 8, 2, 2, 0.5],
        )[0]
        action()
        self.check()

    def settle(self):
        """Let everything arrive, and time pass, until nobody has anything more to say."""
        for _ in range(120):
            self.now += 0.5
            for process in self.processes:
                if process.stream is None:
                    process.is_cut = False
                    self.connect(process)
            self.look()
            for _ in range(3):
                while any(process.stream.up for process in self.processes):
                    self.deliver_up()
                self.divide()
                while any(process.stream.down for process in self.processes):
                    self.deliver_down()
                self.check()
            while self.orphans:
                self.notice()


@pytest.fixture(autouse=True)
def _few_keys(monkeypatch):
    monkeypatch.setattr(quota_module, "MOST_KEYS", 3)


@pytest.mark.parametrize("seed", range(1, 21))
def test_no_order_of_events_gives_out_more_than_there_is(seed):
    """Whatever is lost, late, cut off or restarted: nobody uses more than what control counts for
    it, and no grant takes what control counts above the whole. When all is quiet, nothing is
    missing either."""
    machine = Machine(seed)
    for _ in range(STEPS):
        machine.step()
    machine.settle()
    for (limit, key), held in machine.sums().items():
        used = sum(process.uses(limit, key) for process in machine.processes)
        assert used == held <= WHOLE, (limit, key)
        assert held >= 0.98 * WHOLE, (limit, key)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1000, 1300))
def test_no_order_of_events_gives_out_more_than_there_is_many_times(seed):
    """The same, more often."""
    test_no_order_of_events_gives_out_more_than_there_is(seed)


def test_one_that_is_alone_has_everything_after_the_recovery():
    """The first share is raised to the whole as soon as control knows that nobody else can hold any."""
    machine = Machine(0)
    while len(machine.processes) > 1:
        machine.processes.pop()
    machine.settle()
    (process,) = machine.processes
    assert process.uses("all", EVERY_KEY) > 0.99 * WHOLE
    assert process.uses("per-caller", b"=a") > 0.99 * WHOLE
