"""Load reports are ORCA's on the wire, and nothing that is none gets through."""

import math
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshrpc.load_report import LONGEST, LoadReport
from meshrpc.v1.orca_pb2 import OrcaLoadReport

FIGURES = ("utilization", "rps", "eps", "queue_time", "cpu")

figure = st.floats(min_value=0.0, allow_nan=False, allow_infinity=False)


def double(number, value):
    """Field `number` of a message, a double, by hand: tag, then eight bytes."""
    return bytes([number << 3 | 1]) + struct.pack("<d", value)


def named(key, value):
    entry = bytes([1 << 3 | 2, len(key)]) + key.encode() + double(2, value)
    return bytes([8 << 3 | 2, len(entry)]) + entry


@given(figure, figure, figure, figure, figure)
def test_what_is_written_is_read(utilization, rps, eps, queue_time, cpu):
    """Every figure arrives as it was sent; a utilization of 0 reads as that of the CPU."""
    report = LoadReport(utilization, rps, eps, queue_time, cpu)
    read = LoadReport.from_wire(report.to_wire())
    assert read == LoadReport(utilization or cpu, rps, eps, queue_time, cpu)


def test_the_wire_is_orcas():
    """The bytes are those of xds.data.orca.v3.OrcaLoadReport, field by field."""
    wire = double(1, 0.3) + double(6, 120.0) + double(7, 1.5) + named("queue_time", 0.02)
    assert LoadReport(0.5, 120.0, 1.5, 0.02, 0.3).to_wire() == wire + double(9, 0.5)
    assert LoadReport.from_wire(wire) == LoadReport(0.3, 120.0, 1.5, 0.02, 0.3)


def test_what_orca_has_beyond_is_passed_over():
    """Memory, costs, utilizations and metrics of other names break nothing."""
    wire = OrcaLoadReport(
        cpu_utilization=0.4,
        mem_utilization=0.9,
        rps_fractional=7.0,
        request_cost={"db": 3.0},
        utilization={"disk": 0.7},
        named_metrics={"else": math.nan},
    ).SerializeToString()
    old_whole_number_rps = bytes([3 << 3, 7])
    assert LoadReport.from_wire(wire + old_whole_number_rps) == LoadReport(0.4, 7.0, cpu=0.4)


def test_the_applications_own_utilization_goes_first():
    """A process whose event loop is full has no room, however idle its CPU is."""
    assert LoadReport.from_wire(double(1, 0.1) + double(9, 1.7)).utilization == 1.7


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, -1e-300])
def test_a_figure_that_cannot_be_is_refused(name, value):
    """Whoever makes a report and whoever reads one learns at once that it is none."""
    figures = dict.fromkeys(FIGURES, 1.0) | {name: value}
    with pytest.raises(ValueError, match="finite numbers not below 0"):
        LoadReport(**figures)
    wire = OrcaLoadReport(
        application_utilization=figures["utilization"],
        rps_fractional=figures["rps"],
        eps=figures["eps"],
        named_metrics={"queue_time": figures["queue_time"]},
        cpu_utilization=figures["cpu"],
    ).SerializeToString()
    with pytest.raises(ValueError, match="finite numbers not below 0"):
        LoadReport.from_wire(wire)


@settings(max_examples=500)
@given(st.binary(max_size=200))
def test_garbage_is_a_report_or_a_value_error(data):
    """No bytes make reading raise anything else, or give figures that cannot be."""
    try:
        report = LoadReport.from_wire(data)
    except ValueError:
        return
    assert all(0.0 <= getattr(report, name) < math.inf for name in FIGURES)


def test_a_damaged_report_is_a_report_or_a_value_error():
    """The same for a true report with a few bytes changed, which gets further into the parser."""
    rng = random.Random(1)
    refused = 0
    for _ in range(3000):
        data = bytearray(LoadReport(0.5, 120.0, 1.5, 0.02, 0.3).to_wire())
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            report = LoadReport.from_wire(bytes(data[: rng.randrange(1, len(data) + 1)]))
        except ValueError:
            refused += 1
        else:
            assert all(0.0 <= getattr(report, name) < math.inf for name in FIGURES)
    assert 300 < refused < 3000


def test_a_megabyte_is_refused_unread():
    """However long a report is, reading it costs no more than the longest that is allowed."""
    entry = named("queue_time", 1.0)
    longest = entry * (LONGEST // len(entry))
    assert LoadReport.from_wire(longest).queue_time == 1.0
    with pytest.raises(ValueError, match="at most 16384 bytes, not 1000000"):
        LoadReport.from_wire(bytes(1_000_000))


def test_an_empty_trailer_is_a_report_of_nothing():
    """No bytes are a valid message of no fields, as everywhere in protobuf."""
    assert LoadReport.from_wire(b"") == LoadReport(0.0, 0.0)
