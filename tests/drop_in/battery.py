"""The side-by-side battery: what a user does with a grpc.aio channel, done with a mesh's too.

A scenario is an async function of a `World`. It is run twice, on a bare grpcio channel and on
`mesh.channel(...)`, against the same kind of server, and returns what it observed: values, codes,
the order of events, what the server saw. Both observations must be equal, or the scenario says
which deliberate difference of `docs/drop-in.md` it shows, and what either side observes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from tests.drop_in.handlers import KINDS
from tests.drop_in.world import World

SIDES = ("grpcio", "meshrpc")

_GRPCIO = tuple(int(part) for part in grpc.__version__.split(".")[:2])

Run = Callable[[World], Awaitable[Any]]
RunOfKind = Callable[[World, str], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Difference:
    """A deliberate difference: its heading in docs/drop-in.md, and what either side observes."""

    heading: str
    grpcio: Any
    meshrpc: Any


@dataclass(frozen=True, slots=True)
class Scenario:
    """One thing that users do."""

    name: str
    run: Run
    differs: Difference | None


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    *, differs: Difference | None = None, since: tuple[int, int] = (0, 0)
) -> Callable[[Run], Run]:
    """Put an async function of a `World` into the battery.

    `since`: the version of grpcio that does it right; with an older one it is left out.
    """

    def add(function: Run) -> Run:
        _add(function.__name__, function, function.__doc__, differs, since)
        return function

    return add


def scenario_of_each_kind(
    *kinds: str, differs: Difference | None = None, since: tuple[int, int] = (0, 0)
) -> Callable[[RunOfKind], RunOfKind]:
    """Put an async function of a `World` and a kind of call into the battery, once for each kind.

    `kinds`: those where its claim says something; all four if none is given. For the rest see
    `scenario`.
    """

    def add(function: RunOfKind) -> RunOfKind:
        for kind in kinds or KINDS:
            name = f"{function.__name__}-{kind}"
            _add(name, partial(function, kind=kind), function.__doc__, differs, since)
        return function

    return add


def _add(
    name: str, run: Run, claim: str | None, differs: Difference | None, since: tuple[int, int]
) -> None:
    if name in SCENARIOS:
        raise ValueError(f"two scenarios are called {name}")
    if not claim:
        raise ValueError(f"scenario {name} does not say what it claims")
    if since <= _GRPCIO:
        SCENARIOS[name] = Scenario(name, run, differs)
