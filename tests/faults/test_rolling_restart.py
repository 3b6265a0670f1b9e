"""A rolling restart of every worker of every service, while customers make calls of every kind."""

import grpc
import pytest

from tests.faults import crowd
from tests.faults.books import mistakes
from tests.faults.customers import ENDLESS, MIXED
from tests.faults.teams import Shop

# Not alone: customers have patience, and what failed while the machine stood still is left out.
pytestmark = pytest.mark.process

ROUNDS = 5
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.name


def was_told(stream):
    """Return whether a stream was ended because its server left, and heard so."""
    return stream.code == UNAVAILABLE and stream.drained


def check(shop, account):
    """Nothing failed; streams that outlast the grace were told why; the books are right."""
    assert {each.kind for each in account.ended} == {*MIXED, *ENDLESS}
    assert account.failed() == []
    wrong = [each for each in account.failed(*ENDLESS) if not was_told(each)]
    assert wrong == []
    assert {each.kind for each in account.of(*ENDLESS) if was_told(each)} == set(ENDLESS)
    assert mistakes(shop, account) == []
    assert shop.processes().keys() == shop.wanted()


async def test_a_rolling_restart_costs_no_call(shop):
    """Unary, slow and nested calls and streams both ways, repeatable or not: none fails."""
    await shop.ready()
    async with crowd.shopping(shop, endless=1, takes=(0.5, 1.0)) as account:
        await shop.roll()
    check(shop, account)


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_five_rolling_restarts_cost_no_call():
    """Five rounds of every worker of every service at once, with calls of up to three seconds."""
    with Shop(grace=6.0) as shop:
        await shop.ready()
        async with crowd.shopping(shop, endless=2) as account:
            for _ in range(ROUNDS):
                await shop.roll()
        check(shop, account)
        assert set((await shop.close_all()).values()) == {0}
        assert shop.processes().keys() == shop.wanted()
