"""What an endpoint reports of itself becomes a weight as gRFC A58 says."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrpc.balancer.capacity import Capacity
from meshrpc.load_report import LoadReport
from meshrpc.policy.model import Balancer, BalancerKind

KIND = BalancerKind.WEIGHTED_ROUND_ROBIN
POLICY = Balancer(KIND)
AT_ONCE = Balancer(KIND, blackout=0.0)

figure = st.floats(min_value=0.0, allow_nan=False, allow_infinity=False)


def reported(report, policy=AT_ONCE):
    capacity = Capacity()
    capacity.report(report, 0.0)
    return capacity.weight(0.0, policy)


@pytest.mark.parametrize(
    ("report", "penalty", "weight"),
    [
        (LoadReport(0.5, 100.0), 1.0, 200.0),
        (LoadReport(2.0, 100.0), 1.0, 50.0),  # more than it should
        (LoadReport(0.5, 100.0, eps=50.0), 1.0, 100.0),
        (LoadReport(0.5, 100.0, eps=50.0), 0.0, 200.0),
        (LoadReport(0.5, 100.0, eps=50.0), 3.0, 50.0),
        (LoadReport(0.5, 1000.0, eps=100.0), 2.0, 1000.0 / 0.7),
    ],
)
def test_the_weight_is_calls_by_utilization_and_failures(report, penalty, weight):
    """rps / (utilization + eps / rps x error penalty)."""
    policy = Balancer(KIND, blackout=0.0, error_penalty=penalty)
    assert reported(report, policy) == pytest.approx(weight, rel=1e-12)


@pytest.mark.parametrize("report", [LoadReport(0.0, 5.0), LoadReport(0.5, 0.0), LoadReport(0, 0)])
def test_a_report_without_calls_or_utilization_says_nothing(report):
    """It is no weight, starts no blackout, and an earlier report stays and grows no younger."""
    assert reported(report) is None

    capacity = Capacity()
    capacity.report(LoadReport(0.5, 100.0), 0.0)
    capacity.report(report, 170.0)
    assert capacity.weight(179.0, POLICY) == 200.0
    assert capacity.weight(180.0, POLICY) is None

    late = Capacity()
    late.report(report, 0.0)
    late.report(LoadReport(0.5, 100.0), 9.0)
    assert late.weight(18.9, POLICY) is None
    assert late.weight(19.0, POLICY) == 200.0


def test_no_report_is_no_weight():
    """An endpoint that never reported has none, at any time."""
    assert Capacity().weight(0.0, AT_ONCE) is None
    assert Capacity().weight(1e9, AT_ONCE) is None


def test_reports_count_after_the_blackout():
    """The blackout begins with the first report, and the newest report counts after it."""
    capacity = Capacity()
    for second in range(12):
        capacity.report(LoadReport(0.5, 100.0 + second), 50.0 + second)
        weight = capacity.weight(50.0 + second, POLICY)
        assert weight == (None if second < 10 else 2 * (100.0 + second))


def test_a_report_expires_and_the_blackout_begins_anew():
    """An endpoint that went quiet is not believed again before it has reported for a while."""
    capacity = Capacity()
    capacity.report(LoadReport(0.5, 100.0), 0.0)
    assert capacity.weight(179.9, POLICY) == 200.0
    assert capacity.weight(180.0, POLICY) is None
    capacity.report(LoadReport(0.5, 300.0), 200.0)
    assert capacity.weight(209.9, POLICY) is None
    assert capacity.weight(210.0, POLICY) == 600.0


def test_a_reconnected_endpoint_is_in_the_blackout_again():
    """Who answers there may be another process: nothing of the old one's reports is left."""
    capacity = Capacity()
    capacity.report(LoadReport(0.5, 100.0), 0.0)
    assert capacity.weight(20.0, POLICY) == 200.0
    capacity.forget()
    assert capacity.weight(20.0, AT_ONCE) is None
    capacity.report(LoadReport(0.5, 300.0), 21.0)
    assert capacity.weight(30.9, POLICY) is None
    assert capacity.weight(31.0, POLICY) == 600.0


def test_the_registrys_word_counts_while_no_answers_does():
    """A caller without calls of its own goes by the record; once answers report, by those."""
    capacity = Capacity()
    capacity.hint(LoadReport(0.5, 100.0), 0.0)
    assert capacity.weight(9.9, POLICY) is None
    assert capacity.weight(10.0, POLICY) == 200.0
    capacity.report(LoadReport(0.5, 10.0), 11.0)
    assert capacity.weight(11.0, POLICY) == 20.0
    capacity.hint(LoadReport(0.5, 400.0), 100.0)
    assert capacity.weight(190.9, POLICY) == 20.0
    assert capacity.weight(191.0, POLICY) == 800.0
    assert capacity.weight(10_000.0, POLICY) == 800.0


@pytest.mark.parametrize("empty", [None, LoadReport(0.0, 0.0)])
def test_a_record_without_a_report_voids_the_earlier_one(empty):
    """The registry's word is what it says now."""
    capacity = Capacity()
    capacity.hint(LoadReport(0.5, 100.0), 0.0)
    capacity.hint(empty, 1.0)
    assert capacity.weight(20.0, POLICY) is None


def test_a_hint_outlives_a_reconnection():
    """The record is about the process that is registered now; its blackout begins anew."""
    capacity = Capacity()
    capacity.hint(LoadReport(0.5, 100.0), 0.0)
    capacity.forget()
    assert capacity.weight(20.0, POLICY) is None
    assert capacity.weight(30.0, POLICY) == 200.0


@given(figure, figure, figure, figure)
def test_a_weight_is_a_number_to_calculate_with(utilization, rps, eps, penalty):
    """Whatever figures are reported, the weight is finite and above 0, or there is none."""
    policy = Balancer(KIND, blackout=0.0, error_penalty=penalty)
    weight = reported(LoadReport(utilization, rps, eps), policy)
    assert weight is None or 0.0 < weight < math.inf
