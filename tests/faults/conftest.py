"""The fleets that the fault tests break: started once, mended before each test."""

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import pytest

from tests import consul
from tests.faults.network import LOCAL, Namespace
from tests.faults.registries import ConsulRig, EmbeddedRig
from tests.faults.rig import Rig
from tests.faults.teams import Shop


@pytest.fixture(scope="package")
def rig():
    with Rig(LOCAL if Namespace.why_not() else Namespace()) as rig:
        yield rig


@pytest.fixture(scope="package")
def started(rig):
    """Return a fleet, started when it is asked for first."""
    fleets = {}

    def fleet(service, *arguments, **options):
        if service not in fleets:
            fleets[service] = rig.fleet(service, *arguments, **options)
        else:
            fleets[service].heal()
        return fleets[service]

    return fleet


@pytest.fixture
def fleet(started):
    """Four instances on loopback."""
    return started("direct")


@pytest.fixture
def wired(started):
    """Four instances, each behind a proxy."""
    return started("wired", wired=True)


@pytest.fixture
def apart(started, rig):
    """Four instances, the first of them in the rig's own network namespace."""
    why_not = Namespace.why_not()
    if why_not:
        pytest.skip(why_not)
    return started("apart", apart=1)


@pytest.fixture
def chain(started):
    """Three services of two instances each: the first calls the second, that the third."""
    leaf = started("leaf", 2)
    middle = started("middle", 2, calls="leaf")
    return started("front", 2, calls="middle"), middle, leaf


def of_all_kinds(exits, lease):
    """Return a rig of each kind of registry, started side by side."""
    rigs = [EmbeddedRig(lease)]
    binary = consul.find()
    if binary is not None:
        rigs.append(ConsulRig(binary, lease))
    with ThreadPoolExecutor() as threads:
        started = [threads.submit(exits.enter_context, rig) for rig in rigs]
    return [each.result() for each in started]


@pytest.fixture(scope="package")
def holding():
    """Return registries of all kinds whose fleets hold such leases, started when asked for first."""
    with contextlib.ExitStack() as exits:
        yield cache(partial(of_all_kinds, exits))


@pytest.fixture
async def registries(request, holding):
    """Registries of all kinds, mended; the parameter: seconds of leases, None for the usual ones."""
    rigs = holding(request.param)
    await asyncio.gather(*(rig.mended() for rig in rigs))
    return rigs


@pytest.fixture(scope="package")
def shop():
    """The demo's services and a slow one, two workers each: started, `ready` is to be awaited."""
    with Shop(grace=3.0) as shop:
        yield shop
