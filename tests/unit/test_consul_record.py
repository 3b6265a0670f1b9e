"""An instance as Consul stores it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshrpc.load_report import LoadReport
from meshrpc.registry.consul_record import check_id, read, registration
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
    }
    return {"Node": {"Address": "127.0.0.1"}, "Service": service, "Checks": []}


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    labels=st.dictionaries(st.text(min_size=1, max_size=8), st.text(max_size=8), max_size=4),
    id_=st.text(min_size=1, max_size=8),
    address=st.sampled_from(["127.0.0.1:5001", "[::1]:5001", "payment.example:443"]),
    state=st.sampled_from(State),
    pid=st.none() | st.integers(1, 2**22),
    load=st.none() | st.builds(LoadReport, *[st.floats(0, 1e6)] * 5),
)
def test_a_record_survives_the_way_through_consul(labels, id_, address, state, pid, load):
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
        health=Health.SERVING,
        load=load,
    )
    wanted = registration(instance, 15.0)
    assert read(stored(wanted)) == instance
    assert all(re.fullmatch("[A-Za-z0-9_-]+", key) for key in wanted["meta"])


def test_each_incarnation_has_its_own_lease():
    """So that an old one cannot renew the lease of its successor."""
    one, two = (
        Instance(id="1", service="payment", address="127.0.0.1:1", incarnation=number)
        for number in (1, 2)
    )
    assert check_id(one) != check_id(two)


def test_a_lease_begins_alive():
    """A TTL check that is registered without a status is critical until its first renewal."""
    wanted = registration(Instance(id="1", service="payment", address="127.0.0.1:1"), 15.0)
    assert wanted["check"]["Status"] == "passing"
    assert wanted["check"]["TTL"] == "15s"
    assert wanted["check"]["DeregisterCriticalServiceAfter"] == "1m"


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
    assert read(entry).load is None
    assert read(entry).id == "1"


def test_what_others_registered_is_an_instance_too():
    """Without our metadata it is in namespace default, at the node's address if it has none."""
    entry = {
        "Node": {"Node": "a", "Address": "10.0.0.5"},
        "Service": {"ID": "db-1", "Service": "db", "Address": "", "Port": 5432, "Meta": None},
    }
    assert read(entry) == Instance(
        id="db-1", service="db", address="10.0.0.5:5432", health=Health.SERVING
    )


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
    ],
)
def test_what_cannot_be_called_is_an_error_that_says_so(service):
    """Anything may stand in a registry that others write to."""
    with pytest.raises(ValueError):
        read({"Node": {}, "Service": service})
