"""Customers of the shop, in the tests or as `python -m tests.faults.customers`: all errands at once.

An open load: each call has its time from a seeded Poisson process, whatever became of those before.
What may be repeated by its proto is called half of the time with `retry=False`, so that a retry hides
nothing. Beside these calls some streams go on for ever, and are begun anew when they end.

The program says `ready` when its first call has ended. When stdin ends, or a file is named there, it
stops; there it writes its `Account`.
"""

import argparse
import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import grpc
import grpc.aio

import meshrpc
from meshrpc.wire import DRAIN
from tests.faults.errands import Errands, WrongAnswerError
from tests.faults.lives import until
from tests.faults.load import STOOD_STILL, Lag
from tests.faults.words import say, told

OK = grpc.StatusCode.OK.name
WRONG = "WRONG"
"""Instead of a status: the answer was not the one to the question."""
HUNG = "HUNG"
"""Instead of a status: a stream fell silent."""
REPEATABLE = {"order": 8.0, "look up": 4.0, "charge": 8.0, "payment": 4.0}
"""Calls a second, by kind, which the mesh may repeat."""
MIXED = {
    **REPEATABLE,
    "order once": 4.0,
    "charge once": 4.0,
    "put": 10.0,
    "slow": 4.0,
    "watch": 2.0,
    "count": 2.0,
    "talk": 2.0,
}
INSISTENT = {"insist": 10.0}
"""Orders a second, each sent again until it is paid."""
JUST_BEFORE = 1.0
"""Seconds."""
ENDLESS = ("endless count", "endless talk")


@dataclass(frozen=True, slots=True)
class Ended:
    """One call that ended, as its customer saw it; times as `time.monotonic`."""

    kind: str
    began: float
    ended: float
    code: str
    details: str = ""
    drained: bool = False
    """Whether it was said that this was because the server leaves."""


@dataclass(slots=True, repr=False)
class Account:
    """What became of the calls of some customers."""

    ended: list[Ended] = field(default_factory=list)
    paid: dict[str, str] = field(default_factory=dict)
    """Orders that were answered as paid, by the version of payment that took the money."""
    charged: list[str] = field(default_factory=list)
    """Payments that were answered, beside those of orders."""
    stood_still: list[tuple[float, float]] = field(default_factory=list)
    """From when to when a process of customers hardly ran, and with it, the others of its machine."""

    def __repr__(self):
        counts = dict(Counter(f"{each.kind} {each.code}" for each in self.ended))
        still = sum(end - begin for begin, end in self.stood_still)
        return f"<Account {counts} stood_still={still:.1f}>"

    def add(self, other):
        """Take in what became of others' calls."""
        self.ended += other.ended
        self.paid |= other.paid
        self.charged += other.charged
        self.stood_still += other.stood_still

    def of(self, *kinds):
        """Return the calls of these kinds."""
        return [each for each in self.ended if each.kind in kinds]

    def failed(self, *kinds):
        """Return the calls that failed, of these kinds or of all that have an end.

        Those are left out that did so while, or just after, the machine hardly ran its processes:
        none answers a ping in time then.
        """
        ending = {each.kind for each in self.ended}.difference(ENDLESS)
        failed = [each for each in self.of(*(kinds or ending)) if each.code != OK]
        return [each for each in failed if not self.stood_still_during(each)]

    def stood_still_during(self, call):
        """Return whether the machine hardly ran its processes during a call, or just before."""
        return any(
            begin <= call.ended and end >= call.began - JUST_BEFORE
            for begin, end in self.stood_still
        )


class Customers:
    """Customers in one process.

    `rates`: calls a second by kind. `endless`: so many streams of each kind that has no end. `takes`:
    the seconds that slow calls and streams take, from and to.
    """

    def __init__(self, name, *, rates, takes, endless, seed, **membership):
        self.account = Account()
        self._rng = random.Random(seed)
        self._rates = rates
        self._endless = endless
        self._errands = Errands(name, self._rng, takes)
        self._mesh = meshrpc.Mesh(name, rng=random.Random(seed), **membership)
        self._lag = Lag()

    def __repr__(self):
        return f"<Customers {self.account}>"

    @contextlib.asynccontextmanager
    async def shopping(self):
        """Make calls from before the block to its end, and then wait for those under way."""
        async with self._mesh, asyncio.TaskGroup() as group:
            await self._errands.prepare(self._mesh)
            over = asyncio.Event()
            load = group.create_task(self._load(over))
            beside = [group.create_task(self._lag.measure())]
            streams = [self._go_on(kind) for kind in ENDLESS * self._endless]
            beside += [group.create_task(each) for each in streams]
            try:
                await until(lambda: self.account.ended, "a call has ended")
                yield
            finally:
                over.set()
                await load
                for each in beside:
                    each.cancel()
                self._errands.close()
                self.account.paid = self._errands.paid
                self.account.charged = self._errands.charged
                self.account.stood_still = self._lag.longer_than(STOOD_STILL)

    async def _load(self, over):
        kinds, weights = list(self._rates), list(self._rates.values())
        meant = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while not over.is_set():
                meant += self._rng.expovariate(sum(weights))
                await asyncio.sleep(max(0.0, meant - time.monotonic()))
                (kind,) = self._rng.choices(kinds, weights)
                group.create_task(self._make(kind))

    async def _go_on(self, kind):
        while True:
            await self._make(kind)

    async def _make(self, kind):
        """Make one call and note how it ended."""
        errand = getattr(self._errands, kind.removesuffix(" once").replace(" ", "_"))
        began = time.monotonic()
        code, details, drained = OK, "", False
        try:
            with meshrpc.call_options(retry=not kind.endswith(" once")):
                await errand()
        except grpc.aio.AioRpcError as error:
            code, details = error.code().name, error.details() or ""
            drained = any(key == DRAIN for key, _ in error.trailing_metadata() or ())
        except WrongAnswerError as error:
            code, details = WRONG, str(error)
        except TimeoutError as error:
            code, details = HUNG, str(error)
        self.account.ended.append(Ended(kind, began, time.monotonic(), code, details, drained))


async def main(given):
    customers = Customers(**given)
    async with customers.shopping():
        say("ready")
        file = await anext(told(), None)
    if file is not None:
        await asyncio.to_thread(Path(file).write_text, json.dumps(asdict(customers.account)))
        say(file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("given", type=json.loads, help="the arguments of Customers, as JSON")
    asyncio.run(main(parser.parse_args().given))
