"""An instance's record, as it travels and as it is shown."""

from __future__ import annotations

from dataclasses import replace

from meshrpc.load_report import LoadReport
from meshrpc.registry.instance import Instance
from meshrpc.v1 import registry_pb2

INSTANCE = Instance(id="p1", service="payment", address="127.0.0.1:5001")
LOADED = replace(INSTANCE, load=LoadReport(0.4182, 118.04, eps=0.5, queue_time=0.00132, cpu=0.3))


def test_a_load_travels_and_none_does_too():
    """All of its figures, as they are; an idle one is another thing than none."""
    idle = replace(INSTANCE, load=LoadReport(0.0, 0.0))
    for instance in (INSTANCE, LOADED, idle):
        wire = registry_pb2.Instance.FromString(instance.to_wire().SerializeToString())
        assert Instance.from_wire(wire) == instance


def test_a_load_that_makes_no_sense_is_none():
    """The instance can be called all the same."""
    for figure in (-1.0, float("nan"), float("inf")):
        wire = LOADED.to_wire()
        wire.load.utilization = figure
        assert Instance.from_wire(wire) == INSTANCE


def test_a_load_is_shown_in_units_for_people():
    """With the digits that mean something."""
    assert INSTANCE.to_json()["load"] is None
    assert LOADED.to_json()["load"] == {"utilization": 0.42, "rps": 118.0, "queue_ms": 1.3}


def test_another_load_is_another_record_of_the_same_identity():
    """Watchers have to be told; sets and tables go by who it is."""
    assert LOADED != INSTANCE
    assert hash(LOADED) == hash(INSTANCE)
