"""What calls have shown of an endpoint is remembered, faded and compared as documented."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrpc.balancer.load import Load
from meshrpc.resilience.outcome import Outcome

DECAY = 10.0


def known(latency, at=0.0, decay=DECAY):
    """A load with one sample."""
    load = Load(decay)
    load.learn(Outcome.SUCCESS, latency, at)
    return load


def test_a_peak_counts_at_once_and_fades_with_the_decay():
    """Latency jumps to a peak and has sunk to 1/e of it one decay later."""
    load = known(0.010)
    load.learn(Outcome.SUCCESS, 0.500, 1.0)
    assert load.latency(1.0) == 0.5
    assert load.latency(11.0) == pytest.approx(0.5 / math.e)


def test_a_lower_sample_moves_the_average_by_its_weight_in_time():
    """A sample one decay after the last keeps 1/e of the old value."""
    load = known(1.0, decay=2.0)
    load.learn(Outcome.SUCCESS, 0.1, 2.0)
    assert load.latency(2.0) == pytest.approx(1 / math.e + 0.1 * (1 - 1 / math.e))


@pytest.mark.parametrize("decay", [1.0, 10.0, 60.0])
def test_a_lower_sample_after_three_seconds_without_any_replaces_the_memory(decay):
    """However long the decay is: it is news, and a call was spent on it. Not a moment before."""
    load = known(1.0, decay=decay)
    load.learn(Outcome.SUCCESS, 0.1, 3.0)
    assert load.latency(3.0) == 0.1
    soon = known(1.0, decay=decay)
    soon.learn(Outcome.SUCCESS, 0.1, 2.9)
    assert soon.latency(2.9) == pytest.approx(0.1 + 0.9 * math.exp(-2.9 / decay))


def test_a_late_peak_counts_as_any_peak():
    """Only what is lower is mixed in."""
    load = known(0.1)
    load.learn(Outcome.SUCCESS, 1.0, 5.0)
    assert load.latency(5.0) == 1.0


def test_quick_refusals_do_not_make_an_endpoint_look_quick():
    """Answers whose speed means nothing keep the remembered latency from fading."""
    load = known(0.2, decay=1.0)
    for second in range(1, 60):
        load.learn(Outcome.IGNORED, 0.0001, float(second))
    assert load.latency(59.0) == 0.2
    fresh = Load(1.0)
    fresh.learn(Outcome.IGNORED, 0.0001, 0.0)
    assert fresh.latency(0.0) == 0.0001


def test_a_refusal_does_not_bring_a_faded_peak_back():
    """An endpoint that failed a minute ago is not shunned anew for somebody's NOT_FOUND."""
    load = known(5.0)
    faded = load.latency(60.0)
    load.learn(Outcome.IGNORED, 0.001, 60.0)
    assert load.latency(60.0) == pytest.approx(faded)


def test_a_failure_however_fast_makes_an_endpoint_look_slow_for_a_moment():
    """Five seconds at once, 1/e of it a second later, and nothing of it after a success."""
    load = known(0.020)
    load.learn(Outcome.FAILURE, 0.001, 1.0)
    assert load.value(1.0) == 5.0
    assert load.value(2.0) == pytest.approx(5.0 / math.e)
    assert load.value(60.0) == pytest.approx(load.latency(60.0))
    load.learn(Outcome.SUCCESS, 0.020, 2.0)
    assert load.value(2.0) == pytest.approx(0.020, rel=0.2)


def test_an_attempt_given_up_has_lasted_at_least_so_long():
    """A hedge's loser and a caller without patience tell of slowness, never of speed."""
    load = known(0.020)
    load.learn(Outcome.ABANDONED, 0.001, 0.0)
    assert load.latency(0.0) == 0.020
    load.learn(Outcome.ABANDONED, 0.5, 0.0)
    assert load.latency(0.0) == 0.5
    assert not load.is_failing


def test_a_clock_read_out_of_order_does_not_make_a_memory_grow():
    """A `now` from before the last sample counts as that sample's time, whatever the decay."""
    load = known(0.5, at=10.0, decay=0.001)
    assert load.latency(9.0) == 0.5
    load.learn(Outcome.SUCCESS, 0.1, 9.0)
    assert load.latency(9.0) == 0.5


def test_an_answer_that_took_no_time_is_an_answer():
    """On a coarse clock too, an endpoint that has answered is known, and its load counts."""
    quick, slow = known(0.0, at=1.0), known(0.010, at=1.0)
    for load in (quick, slow):
        load.start(1.0)
    assert 0 < quick.value(1.0) < slow.value(1.0)
    assert quick.score < slow.score


def test_calls_that_are_late_count_before_they_end():
    """The mean age of what is under way is the latency once it is above the remembered one."""
    load = known(0.020)
    load.start(1.0)
    load.start(2.0)
    assert load.value(2.0) == pytest.approx(0.5 * 3)
    assert load.latency(2.0) == pytest.approx(0.020 * math.exp(-0.2))
    load.finish(1.0)
    assert load.value(2.0) == pytest.approx(load.latency(2.0) * 2)
    load.finish(2.0)
    assert load.value(9.0) == pytest.approx(load.latency(9.0))


def test_a_stream_is_never_late():
    """It may last for hours, and counts as pending only."""
    load = known(0.020)
    load.start(0.0, timed=False)
    assert load.value(1.0) == pytest.approx(load.latency(1.0) * 2)
    load.finish(0.0, timed=False)
    assert load.value(1.0) == pytest.approx(load.latency(1.0))


def test_who_answers_elsewhere_begins_anew_with_what_is_pending():
    """What is forgotten is the latency and the failure, not the calls under way."""
    load = known(0.020)
    load.start(1.0)
    load.learn(Outcome.FAILURE, None, 1.0)
    load.forget()
    assert (load.is_failing, load.latency(1.0), load.pending) == (False, 0.0, 1)
    load.finish(1.0)
    assert load.value(2.0) == 0.0


LATENCIES = st.floats(0.010, 0.030) | st.floats(0.0, 10.0) | st.sampled_from([0.0, 1e-6])
PAUSES = st.floats(0.0, 0.050) | st.floats(0.0, 300.0)
LEARN = st.tuples(st.just("learn"), st.sampled_from(Outcome), st.none() | LATENCIES)
ANSWER = st.tuples(st.just("learn"), st.just(Outcome.SUCCESS), LATENCIES)
EVENTS = st.one_of(
    st.tuples(st.just("start"), st.booleans()),
    st.tuples(st.just("finish"), st.integers(0, 5)),
    ANSWER,
    LEARN,
    st.tuples(st.just("forget")),
)
HISTORIES = st.lists(st.tuples(st.integers(0, 1), PAUSES, EVENTS), max_size=30)
DECAYS = st.sampled_from([0.1, 1.0, 10.0, 60.0])
SINCE = st.sampled_from([0.0, 1e6])
LATER = st.floats(0.0, 0.1) | st.floats(0.0, 300.0)
ROUNDED = 1e-6
"""More than what is rounded in times of 1e6 s over a decay of 0.1 s."""


def happened(history, decay, changed, since):
    """Two loads after such a history, decays set anew included, and when it ended."""
    now = since
    loads = (Load(decay), Load(decay))
    under_way = ([], [])
    for which, pause, (event, *details) in history:
        now += pause
        load, calls = loads[which], under_way[which]
        if event == "start":
            load.start(now, timed=details[0])
            calls.append((now, details[0]))
        elif event == "finish" and calls:
            began, timed = calls.pop(details[0] % len(calls))
            load.finish(began, timed=timed)
        elif event == "learn":
            load.learn(details[0], details[1], now)
        elif event == "forget":
            load.forget()
    if changed is not None:
        for load in loads:
            load.decay = changed
    return loads, now


def log(value):
    return math.log(value) if value else -math.inf


@given(HISTORIES, DECAYS, st.none() | DECAYS, SINCE, LATER, st.floats(0.0, 0.999))
def test_a_score_is_the_value_while_it_is_plain_and_never_more(
    history, decay, changed, since, later, part
):
    """At any time from the last event on, up to the end of its being plain, and after that."""
    loads, end = happened(history, decay, changed, since)
    for load in loads:
        moments = [end + later]
        if end < load.plain_until < math.inf:
            moments.append(end + part * (load.plain_until - end))
        for now in moments:
            value = log(load.value(now)) + now / load.decay
            if now < load.plain_until:
                assert load.score == pytest.approx(value, abs=ROUNDED)
            else:
                assert load.score <= value + ROUNDED


@given(HISTORIES, DECAYS, st.none() | DECAYS, SINCE, LATER)
def test_scores_order_two_loads_as_their_values_do(history, decay, changed, since, later):
    """At any time from the last event on, while the one with the lower score is plain."""
    (one, other), end = happened(history, decay, changed, since)
    now = end + later
    for low, high in ((one, other), (other, one)):
        if low.score <= high.score and now < low.plain_until:
            assert low.value(now) <= high.value(now) * (1 + ROUNDED)


def test_a_score_is_plain_nearly_as_long_as_it_could_be():
    """An idle endpoint's until its memory is gone, a busy one's until its calls are late."""
    load = known(0.020)
    assert load.plain_until == pytest.approx(10.0 * math.log(0.020 / 1e-6))
    load.start(1.0)
    late = 1.0 + load.latency(1.0)
    assert 0.9 * (late - 1.0) < load.plain_until - 1.0 < late - 1.0
    load.start(1.005, timed=False)
    load.start(1.010)
    assert load.plain_until == pytest.approx(1.005 + load.latency(1.0), abs=0.002)
    assert Load(10.0).plain_until == math.inf


def test_a_decay_set_anew_counts_at_once():
    """Also for what was remembered before."""
    load = known(0.020, at=5.0)
    load.decay = 1.0
    assert load.latency(6.0) == pytest.approx(0.020 / math.e)
    assert load.score == pytest.approx(math.log(0.020) + 5.0)
