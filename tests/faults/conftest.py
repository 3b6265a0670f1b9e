"""The fleets that the fault tests break: started once, mended before each test."""

import pytest

from tests.faults.network import LOCAL, Namespace
from tests.faults.rig import Rig


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
