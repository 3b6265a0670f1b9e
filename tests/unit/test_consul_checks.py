"""What Consul's checks mean for callers."""

from __future__ import annotations

import pytest

from meshrpc.registry.consul_checks import judge
from meshrpc.registry.finding import Problem
from meshrpc.registry.instance import Health

LEASE, HEALTH = "lease:default:payment:1:0", "health:default:payment:1:0:127.0.0.1:1"


def check(id_, status="critical", output=""):
    return {"CheckID": id_, "Status": status, "Output": output}


def ours(*checks, permanent=False):
    lease = None if permanent else LEASE
    return judge(list(checks), lease=lease, health=HEALTH, is_ours=True)


def theirs(*checks):
    return judge(list(checks), lease=None, health=None, is_ours=False)


def test_the_lease_alone_decides_whether_an_instance_is_there():
    """A health check that fails makes it NOT_SERVING; a lease that ran out makes it stale."""
    alive = ours(check(LEASE, "passing"), check(HEALTH, output="connection refused"))
    assert (alive.is_listed, alive.health) == (True, Health.NOT_SERVING)
    assert alive.problem is Problem.NOT_SERVING
    assert alive.detail == f"check '{HEALTH}' fails: connection refused"
    dead = ours(check(LEASE), check(HEALTH, "passing"))
    assert (dead.is_listed, dead.problem) == (False, Problem.STALE)
    older = ours(check(LEASE, "passing"), check("lease:default:payment:1:7"))
    assert older.is_listed  # another incarnation's lease is not its own


def test_the_death_of_the_agent_is_the_end_of_its_leases():
    """Nobody counts them any more."""
    assert not ours(check("serfHealth"), check(LEASE, "passing")).is_listed
    assert not theirs(check("serfHealth")).is_listed


@pytest.mark.parametrize("id_", ["_node_maintenance", "_service_maintenance:default:payment:1"])
@pytest.mark.parametrize("who", [ours, theirs])
def test_maintenance_mode_is_draining(who, id_):
    """It is listed, and no check that fails."""
    standing = who(check(id_), check(LEASE, "passing"))
    assert standing.in_maintenance
    assert standing.is_listed
    assert standing.problem is None
    assert not who(check(LEASE, "passing")).in_maintenance


def test_of_others_instances_consuls_word_is_taken():
    """Any critical check takes one out, as Consul's own filter does."""
    assert theirs(check("disk", "passing")).health is Health.SERVING
    assert theirs(check("disk", "warning")).is_warning
    out = theirs(check("disk"), check("db", "passing"))
    assert (out.is_listed, out.problem) == (False, Problem.NOT_SERVING)


@pytest.mark.parametrize("code", ["Unimplemented", "Unauthenticated", "ResourceExhausted"])
def test_a_grpc_server_that_says_nothing_of_its_health_serves(code):
    """It answered; only our own check is read that way."""
    output = f"rpc error: code = {code} desc = Method not found!"
    standing = ours(check(LEASE, "passing"), check(HEALTH, output=output))
    assert (standing.health, standing.problem) == (Health.SERVING, None)
    assert ours(check(LEASE, "passing"), check("x", output=output)).health is Health.NOT_SERVING
    unavailable = check(HEALTH, output="rpc error: code = Unavailable desc = refused")
    assert ours(check(LEASE, "passing"), unavailable).health is Health.NOT_SERVING


def test_a_permanent_one_is_unknown_until_it_was_looked_at():
    """Its health check begins as a warning, which is none to weigh it by."""
    begun = ours(check(HEALTH, "warning"), check("connects:1", "passing"), permanent=True)
    assert (begun.health, begun.is_warning) == (Health.UNKNOWN, False)
    assert ours(check(HEALTH, "passing"), permanent=True).health is Health.SERVING
    refused = ours(check(HEALTH, "warning"), check("connects:1"), permanent=True)
    assert (refused.health, refused.is_listed) == (Health.NOT_SERVING, True)


def test_what_a_check_said_is_shown_in_one_short_line():
    """Scripts print pages."""
    detail = ours(check(LEASE, "passing"), check(HEALTH, output="a\n" * 5000)).detail
    assert "\n" not in detail
    assert len(detail) < 250


@pytest.mark.parametrize("checks", ["passing", {"a": 1}, [None], [["lease"]], [{"CheckID": 5}], 7])
def test_what_are_no_checks_is_an_error(checks):
    """Rather than an instance whose lease cannot run out."""
    with pytest.raises(ValueError):
        judge(checks, lease=LEASE, health=HEALTH, is_ours=True)
