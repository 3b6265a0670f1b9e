"""Claims about what the registry commands decide, without any registry."""

import asyncio
from dataclasses import replace

import pytest
from click.testing import CliRunner

from meshrpc.cli.registry import registry
from meshrpc.cli.registry_check import duplicates, merged, skew
from meshrpc.cli.registry_list import _notes, _seen_record
from meshrpc.cli.registry_register import default_id
from meshrpc.cli.registry_watch import LOOK_EVERY, changes, differences
from meshrpc.load_report import LoadReport
from meshrpc.registry.finding import Finding, Problem
from meshrpc.registry.instance import Instance, State
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.settings import valid_name
from meshrpc.v1.control_pb2 import ProcessStatus, SeenInstance, ViewResponse


def instance(id_="payment-1", service="payment", address="127.0.0.1:5001", **fields):
    return Instance(id=id_, service=service, address=address, **fields)


def changed(old, new):
    return differences({old.id: old}, {new.id: new})


def test_a_load_that_moves_is_no_change():
    """Instances report one every few seconds; together with something else it goes unsaid."""
    old = instance(load=LoadReport(utilization=0.1, rps=1.0))
    busy = replace(old, load=LoadReport(utilization=0.9, rps=9.0))
    assert changed(old, busy) == []
    (change,) = changed(old, replace(busy, weight=3))
    assert change["changes"] == {"weight": [1, 3]}
    assert change["load"]["utilization"] == 0.9


def test_a_change_says_what_was_before():
    """Each field that differs is told with both values; a new incarnation is a change, too."""
    old = instance(version="v1", labels={"tier": "gold"})
    new = replace(old, version="v2", labels={"tier": "silver"}, incarnation=1)
    (change,) = changed(old, new)
    assert next(iter(change.items())) == ("change", "changed")
    assert change["changes"] == {
        "version": ["v1", "v2"],
        "labels": [{"tier": "gold"}, {"tier": "silver"}],
        "incarnation": [0, 1],
    }


def test_a_drain_has_a_word_of_its_own_and_its_end_is_a_change():
    """Marked: draining. The mark taken back: changed, from draining to active."""
    active, draining = instance(), instance(state=State.DRAINING)
    assert changed(active, draining)[0]["change"] == "draining"
    (back,) = changed(draining, active)
    assert (back["change"], back["changes"]) == ("changed", {"state": ["draining", "active"]})


def test_instances_that_come_and_go_are_ordered_by_id():
    """One snapshot may take one away and bring another."""
    found = differences({"b": instance("b")}, {"a": instance("a"), "c": instance("c")})
    assert [(each["change"], each["id"], each["changes"]) for each in found] == [
        ("added", "a", {}),
        ("removed", "b", {}),
        ("added", "c", {}),
    ]


async def test_a_watch_of_everything_finds_new_services(virtual_clock):
    """No registry tells of new services, so they are looked for."""
    async with MemoryRegistry(clock=virtual_clock) as registry:
        watching = changes(registry, None, clock=virtual_clock)
        following = asyncio.ensure_future(anext(watching))
        await virtual_clock.advance(LOOK_EVERY)
        await registry.register(instance("order-1", "order"))
        await virtual_clock.advance(LOOK_EVERY)
        assert (await following)["id"] == "order-1"
        await watching.aclose()


def test_an_address_of_several_instances_is_found_at_each_of_those_asked_for():
    """Also between services; every finding names the others."""
    listed = {
        "order": [instance("order-1", "order")],
        "payment": [instance("payment-1"), instance("payment-2", address="127.0.0.1:5002")],
    }
    (found,) = duplicates(listed, ["payment"])
    assert (found.problem, found.id) == (Problem.DUPLICATE_ADDRESS, "payment-1")
    assert found.detail.startswith("127.0.0.1:5001 is also that of order-1 of order")
    assert [each.id for each in duplicates(listed, listed)] == ["order-1", "payment-1"]


def test_another_patch_release_is_no_skew():
    """Only a release that differs in its first two numbers is one; who says none is left alone."""
    processes = [
        ProcessStatus(service="payment", instance=release or "silent", library=release)
        for release in ("1.2.0", "1.2.7", "1.3.0", "2.2.0", "")
    ]
    assert [each.id for each in skew(processes, "1.2.3")] == ["1.3.0", "2.2.0"]


def test_what_is_found_twice_is_told_once_in_the_registry_s_words():
    """Those without an id are told apart by their detail; the order is that of services and ids."""
    first = Finding(Problem.UNREACHABLE, "payment", "payment-1", "the registry asked")
    bad = [Finding(Problem.BAD_RECORD, "order", "", f"record {number}") for number in (1, 2)]
    again = replace(first, detail="we asked")
    assert merged([first, *bad, again, bad[0]]) == (*bad, first)


@pytest.mark.parametrize(
    ("address", "id_"),
    [
        ("10.0.0.5:50051", "legacy-10.0.0.5-50051"),
        ("db.example.com:1", "legacy-db.example.com-1"),
        ("[2001:db8::1]:5001", "legacy-2001-db8-1-5001"),
    ],
)
def test_an_id_made_of_an_address_is_a_name(address, id_):
    """The same address makes the same id, so that registering twice is registering once."""
    assert default_id("legacy", address) == id_ == valid_name(id_)


def test_what_else_a_caller_says_is_a_note_each():
    """That its registry is silent, that what it knows is from disk and how old, what it skipped."""
    view = ViewResponse(away="connection\nrefused", age_seconds=61.4, skipped=["'x': no port"])
    assert _notes(view, "order-1") == [
        "order-1 keeps what it last knew, its registry does not answer: connection refused",
        "order-1 has this from its disk, it is 61 s old",
        "order-1 skipped 'x': no port",
    ]
    assert _notes(ViewResponse(is_called=True), "order-1") == []


@pytest.mark.parametrize("state", ["active", "draining", "held", "ejected", "resting"])
def test_a_seen_instance_has_the_state_its_caller_gives_it(state):
    """Also one that a newer release may have; what only callers know comes last."""
    seen = SeenInstance(instance=instance().to_wire(), state=state, connectivity="ready", pending=2)
    record = _seen_record(seen)
    assert record["state"] == state
    assert list(record.items())[-2:] == [("connectivity", "ready"), ("pending", 2)]
    assert list(record)[:-2] == list(instance().to_json())


def test_no_command_s_summary_is_cut_short():
    """`meshrpc registry --help` says of each command in whole words what it does."""
    shown = CliRunner().invoke(registry, ["--help"], terminal_width=80).output
    summaries = shown.partition("Commands:")[2]
    assert all(name in summaries for name in registry.commands)
    assert "..." not in summaries
