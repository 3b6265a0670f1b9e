"""An instance as Consul stores it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshrpc.load_report import LoadReport
from meshrpc.registry.consul_entry import read, read_all
from meshrpc.registry.consul_record import check_ids, lease_id, registration
from meshrpc.registry.finding import Problem
from meshrpc.registry.instance import Health, Instance, State


def stored(wanted: dict) -> dict:
    """What Consul answers for what it was told."""
    service = {
        "ID": wanted["service_id"],
        "Service": wanted["name"],
        "Address": wanted["address"],
        "Port": wanted["port"],
        "Meta": wanted["meta"],
        "Weights": wanted["weights"],
        "Tags": wanted["tags"],
    }
    checks = [
        {"CheckID": each["CheckID"], "Status": each["Status"], "Output": ""}
        for each in (wanted["check"], *wanted["extra_checks"])
    ]
    return {"Node": {"Address": "127.0.0.1"}, "Service": service, "Checks": checks}


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    labels=st.dictionaries(st.text(min_size=1, max_size=8), st.text(max_size=8), max_size=4),
    id_=st.text(min_size=1, max_size=8),
    address=st.sampled_from(["127.0.0.1:5001", "[::1]:5001", "payment.example:443"]),
    permanent=st.booleans(),
    state=st.sampled_from([State.ACTIVE, State.DRAINING]),
    pid=st.none() | st.integers(1, 2**22),
    load=st.none() | st.builds(LoadReport, *[st.floats(0, 1e6)] * 5),
)
def test_a_record_survives_the_way_through_consul(
    labels, id_, address, state, pid, load, permanent
):
    """Whatever an instance says comes back, in keys that Consul takes."""
    instance = Instance(
        id=id_,
        service="payment",
        address=address,
        namespace="staging",
        labels=labels,
        state=state,
        pid=pid,
        weight=7,
        incarnation=3,
        health=Health.UNKNOWN if permanent else Health.SERVING,
        load=load,
        permanent=permanent,
    )
    wanted = registration(instance, 15.0)
    assert read(stored(wanted)).instance == instance
    assert all(re.fullmatch("[A-Za-z0-9_-]+", key) for key in wanted["meta"])


def test_each_incarnation_has_its_own_checks():
    """So that an old one cannot renew the lease of its successor, nor leave it its failures."""
    one, two = (
        Instance(id="1", service="payment", address="127.0.0.1:1", incarnation=number)
        for number in (1, 2)
    )
    moved = replace(one, address="127.0.0.1:2")
    assert not set(check_ids(one)) & set(check_ids(two))
    assert set(check_ids(one)) & set(check_ids(moved)) == {lease_id(one)}


def test_a_lease_begins_alive_and_lets_consul_remove_the_record():
    """A TTL check that is registered without a status is critical until its first renewal. The
    health check removes nothing: whoever holds a lease would come back at once."""
    wanted = registration(Instance(id="1", service="payment", address="127.0.0.1:1"), 15.0)
    (health,) = wanted["extra_checks"]
    assert wanted["check"]["Status"] == health["Status"] == "passing"
    assert wanted["check"]["TTL"] == "15s"
    assert wanted["check"]["DeregisterCriticalServiceAfter"] == "1m"
    assert (health["GRPC"], health["Interval"], health["Timeout"]) == ("127.0.0.1:1", "10s", "5s")
    assert "DeregisterCriticalServiceAfter" not in health


def test_a_permanent_record_is_checked_and_never_removed():
    """It has no lease."""
    by_hand = Instance(id="1", service="payment", address="127.0.0.1:1", permanent=True)
    wanted = registration(by_hand, 15.0)
    health, (connects,) = wanted["check"], wanted["extra_checks"]
    assert health["GRPC"] == connects["TCP"] == "127.0.0.1:1"
    assert health["Status"] == "warning"
    assert "DeregisterCriticalServiceAfter" not in {**health, **connects}


def test_an_instance_heavier_than_consul_can_say_keeps_its_weight():
    """Consul refuses weights above 65535."""
    heavy = Instance(id="1", service="payment", address="127.0.0.1:1", weight=100_000)
    wanted = registration(heavy, 15.0)
    assert wanted["weights"]["Passing"] == 65535
    assert read(stored(wanted)).instance.weight == 100_000


@pytest.mark.parametrize("text", ["", "busy", "-1", "nan", "inf", None])
def test_a_load_that_cannot_be_read_is_none(text):
    """The instance can be called all the same."""
    instance = Instance(id="1", service="payment", address="127.0.0.1:1", load=LoadReport(0.5, 1.0))
    entry = stored(registration(instance, 15.0))
    meta = entry["Service"]["Meta"]
    assert {key for key in meta if key.startswith("load-")} == {
        *("load-utilization", "load-rps", "load-eps", "load-queue-seconds", "load-cpu")
    }
    if text is None:
        del meta["load-cpu"]
    else:
        meta["load-cpu"] = text
    assert read(entry).instance.load is None
    assert read(entry).instance.id == "1"


def test_what_others_registered_is_an_instance_too():
    """Without our metadata it is in namespace default, at the node's address if it has none."""
    entry = {
        "Node": {"Node": "a", "Address": "10.0.0.5"},
        "Service": {"ID": "db-1", "Service": "db", "Address": "", "Port": 5432, "Meta": None},
    }
    assert read(entry).node == "a"
    assert read(entry).instance == Instance(
        id="db-1", service="db", address="10.0.0.5:5432", health=Health.SERVING
    )


def test_others_tags_are_labels_where_they_look_like_some():
    """`version` and `zone` are those of the instance, and their own metadata comes first."""
    service = {"ID": "1", "Service": "db", "Address": "10.0.0.5", "Port": 1}
    service["Tags"] = ["primary", "version=v2", "zone=a", "tier=gold=ish", "=x", 7]
    service["Meta"] = {"zone": "b"}
    instance = read({"Service": service}).instance
    assert (instance.version, instance.zone) == ("v2", "b")
    assert instance.labels == {"tier": "gold=ish"}


def test_a_warning_has_the_weight_that_consul_gives_it():
    """As in Consul's own DNS."""
    service = {"ID": "1", "Service": "db", "Address": "10.0.0.5", "Port": 1}
    service["Weights"] = {"Passing": 20, "Warning": 4}
    checks = [{"CheckID": "disk", "Status": "passing"}]
    assert read({"Service": service, "Checks": checks}).instance.weight == 20
    checks[0]["Status"] = "warning"
    assert read({"Service": service, "Checks": checks}).instance.weight == 4
    checks[0] = {"CheckID": "_node_maintenance", "Status": "critical"}
    assert read({"Service": service, "Checks": checks}).instance.state is State.DRAINING


@pytest.mark.parametrize(
    "service",
    [
        None,
        "payment",
        {},
        {"Service": "payment"},
        {"ID": "1", "Service": "payment", "Address": "127.0.0.1"},
        {"ID": "1", "Service": "payment", "Address": "127.0.0.1", "Port": 0},
        {"ID": "1", "Service": "payment", "Address": "127.0.0.1", "Port": 70000},
        {"ID": "1", "Service": "payment", "Address": "127.0.0.1", "Port": "5001"},
        {"ID": "1", "Service": "payment", "Address": 5, "Port": 1},
        {"ID": "", "Service": "payment", "Address": "127.0.0.1", "Port": 1},
        {"ID": "1", "Service": "p", "Address": "::1", "Port": 1, "Meta": {"incarnation": "new"}},
        {"ID": "1", "Service": "p", "Address": "::1", "Port": 1, "Meta": {"label-a_xFF_": ""}},
        {"ID": "1", "Service": "p", "Address": "::1", "Port": 1, "Meta": ["weight"]},
        {"ID": "1", "Service": "p", "Address": "::1", "Port": 1, "Meta": {"label-a": 5}},
        {"ID": "1", "Service": "p", "Address": "::1", "Port": 1, "Meta": {"version": ["v1"]}},
        {"ID": "1", "Service": "p", "Address": "::1", "Port": 1, "Meta": {"weight": "9" * 5000}},
        {"ID": "1", "Service": "p", "Address": "::1", "Port": 1, "Weights": {"Passing": 1e999}},
        {"ID": "1", "Service": "p", "Address": "::1", "Port": True},
        {"ID": "1", "Service": "p", "Address": "two hosts", "Port": 1},
        {"ID": "1", "Service": "p", "Address": "h/path", "Port": 1},
        {"ID": "1", "Service": "p", "Address": "h" * 300, "Port": 1},
    ],
)
def test_what_cannot_be_called_is_an_error_that_says_so(service):
    """Anything may stand in a registry that others write to."""
    with pytest.raises(ValueError):
        read({"Node": {}, "Service": service})


def test_bad_records_are_left_out_one_by_one():
    """The good ones beside them are used, ordered by id; of one id twice, the newest."""
    good = [
        Instance(id=id_, service="p", address=f"127.0.0.1:{5001 + number}", incarnation=number)
        for number, id_ in enumerate(("b", "payment-ü", "a", "a"))
    ]
    entries: list = [stored(registration(each, 15.0)) for each in good]
    bad = stored(registration(replace(good[0], id="bad"), 15.0))
    bad["Service"]["Port"] = 0
    elsewhere = stored(registration(replace(good[0], id="other", namespace="staging"), 15.0))
    elsewhere["Service"]["Port"] = 70000
    listing = read_all([None, *entries, bad, [], elsewhere, "x" * 9999], "default")
    snapshot = listing.snapshot("p")
    assert [(each.id, each.incarnation) for each in snapshot.instances] == [
        ("a", 3),
        ("b", 0),
        ("payment-ü", 1),
    ]
    assert "'bad': 0 is no port" in snapshot.skipped
    assert not any("other" in each for each in snapshot.skipped)
    assert all(len(each) < 200 for each in snapshot.skipped)
    assert {(each.problem, each.id) for each in listing.findings("p")} == {
        (Problem.BAD_RECORD, "bad"),
        (Problem.BAD_RECORD, ""),
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["Service", "Node", "Checks", "ID", "Address", "Port", "Meta", "Tags"]),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(entries=st.lists(JSON, max_size=4))
def test_whatever_a_registry_holds_is_read_or_skipped(entries):
    """No list of anything makes an error."""
    snapshot = read_all(entries, "default").snapshot("p")
    assert len(snapshot.instances) + len(snapshot.skipped) <= len(entries)
