"""When an endpoint is ejected, for how long, and how it comes back."""

import random

import pytest

from meshrpc.policy.model import Outlier
from meshrpc.resilience.health import Admission, Health
from meshrpc.resilience.outcome import Outcome
from meshrpc.resilience.outlier import OutlierDetector
from meshrpc.resilience.success_rates import Comparison

SUCCESS, FAILURE = Outcome.SUCCESS, Outcome.FAILURE
IGNORED, UNREACHED, ABANDONED = Outcome.IGNORED, Outcome.UNREACHED, Outcome.ABANDONED
ADMITTED, EJECTED = Admission.ADMITTED, Admission.EJECTED
PROBATION, PROBING = Admission.PROBATION, Admission.PROBING


class Latest(random.Random):
    """Chance that always comes out at one end: ejections without jitter, or with all of it."""

    def __init__(self, end=0.0):
        super().__init__(0)
        self._end = end

    def uniform(self, a, b):
        return a + (b - a) * self._end


def detector(members=10, rng=None, **policy):
    made = OutlierDetector(Outlier(**policy), rng or Latest())
    healths = [Health() for _ in range(members)]
    for health in healths:
        made.add(health)
    return made, healths


def tell(outliers, health, outcome, now=0.0, times=1):
    """Report attempts that began just now; return whether any changed the admission."""
    reports = [outliers.record(health, health.generation, outcome, now) for _ in range(times)]
    return any(reports)


def eject(outliers, health, now=0.0):
    tell(outliers, health, FAILURE, now, outliers._policy.consecutive_failures)
    assert health.admission is EJECTED


def serve(outliers, health):
    """Let its ejection end; return when that was."""
    at = health.ejected_until
    assert outliers.advance(at)
    assert health.admission is PROBATION
    return at


def readmit(outliers, health):
    """Let its ejection end and its probe succeed; return when that was."""
    at = serve(outliers, health)
    outliers.begin_probe(health, at)
    assert tell(outliers, health, SUCCESS, at)
    assert health.admission is ADMITTED
    return at


def test_the_fifth_failure_in_a_row_ejects():
    """Not the fourth; and at once, with the cause to read."""
    outliers, (bad, *_) = detector()
    for _ in range(4):
        assert not tell(outliers, bad, FAILURE)
        assert bad.admission is ADMITTED
    assert tell(outliers, bad, FAILURE)
    assert bad.admission is EJECTED
    assert bad.cause == "5 failures in a row"
    assert bad.ejected_until == 5.0


def test_a_success_in_between_starts_the_row_again():
    """Four failures, a success and four more are no row of five."""
    outliers, (bad, *_) = detector(success_rate_below=0.0)
    tell(outliers, bad, FAILURE, times=4)
    assert not tell(outliers, bad, SUCCESS)
    tell(outliers, bad, FAILURE, times=4)
    assert bad.admission is ADMITTED
    assert tell(outliers, bad, FAILURE)


def test_an_answer_that_is_the_callers_mistake_starts_the_row_again():
    """A stray failure now and then among many NOT_FOUND is no row; the success rate ignores them."""
    outliers, (bad, *_) = detector()
    tell(outliers, bad, FAILURE, times=4)
    assert not tell(outliers, bad, IGNORED)
    assert bad.window.counts(0.0) == (4, 0)
    assert bad.consecutive == 0


@pytest.mark.parametrize("outcome", [UNREACHED, ABANDONED])
def test_what_says_nothing_neither_breaks_the_row_nor_lengthens_it(outcome):
    """Nor does it count into the success rate."""
    outliers, (bad, *_) = detector()
    tell(outliers, bad, FAILURE, times=4)
    assert not tell(outliers, bad, outcome, times=100)
    assert bad.window.counts(0.0) == (4, 0)
    assert tell(outliers, bad, FAILURE)


def test_how_many_in_a_row_is_the_policys():
    """With one, the first failure ejects."""
    outliers, (bad, *_) = detector(consecutive_failures=1)
    assert tell(outliers, bad, FAILURE)


def test_a_success_rate_below_the_floor_ejects():
    """3 of 5 is below 80 %."""
    outliers, (bad, *_) = detector()
    tell(outliers, bad, SUCCESS, times=3)
    assert not tell(outliers, bad, FAILURE)
    assert tell(outliers, bad, FAILURE)
    assert bad.cause == "success rate 60 % below 80 %"


def test_a_success_rate_at_the_floor_does_not_eject():
    """4 of 5 is exactly 80 %, and so are 28 of 35."""
    outliers, (bad, *_) = detector()
    for _ in range(7):
        tell(outliers, bad, SUCCESS, times=4)
        assert not tell(outliers, bad, FAILURE)


def test_a_success_rate_of_fewer_than_five_says_nothing():
    """0 of 4 is bad luck as yet."""
    outliers, (bad, *_) = detector(consecutive_failures=1000)
    assert not tell(outliers, bad, FAILURE, times=4)
    assert tell(outliers, bad, FAILURE)
    assert bad.cause == "success rate 0 % below 80 %"


def test_the_success_rate_reaches_back_ten_seconds():
    """What went well before that does not make up for what fails now."""
    outliers, (bad, *_) = detector(consecutive_failures=1000)
    tell(outliers, bad, SUCCESS, now=0.0, times=100)
    tell(outliers, bad, FAILURE, now=9.9, times=5)
    assert bad.admission is ADMITTED
    assert tell(outliers, bad, FAILURE, now=10.0)


def compared(rates, requests=100, now=0.5):
    """Eject by nothing but the comparison; the last endpoint ends with a failure."""
    outliers, healths = detector(
        len(rates), consecutive_failures=1000, success_rate_below=0.0, max_ejected=1.0
    )
    for health, rate in zip(healths, rates, strict=True):
        failures = round(requests * (1 - rate))
        tell(outliers, health, SUCCESS, now, requests - failures)
        health.window.add(now, failures - (health is healths[-1]), 0)
    tell(outliers, healths[-1], FAILURE, now)
    return healths[-1]


def test_a_rate_far_below_the_others_ejects():
    """85 % where four others succeed always: below the mean by two standard deviations."""
    bad = compared([1.0, 1.0, 1.0, 1.0, 0.85])
    assert bad.admission is EJECTED
    assert bad.cause == "success rate 85 % far below that of the others"


@pytest.mark.parametrize(
    ("rates", "requests"),
    [
        ([1.0, 1.0, 1.0, 0.5], 100),
        ([1.0, 1.0, 1.0, 1.0, 0.5], 98),
        ([0.9, 1.0, 0.95, 0.85, 0.82], 100),
        ([1.0, 1.0, 1.0, 1.0, 0.95], 100),
    ],
    ids=["four endpoints", "98 outcomes", "all spread", "hardly below"],
)
def test_a_rate_is_not_compared_among_few_or_with_little_between(rates, requests):
    """Five endpoints and a hundred outcomes it takes, 1.9 deviations and 5 % points."""
    assert compared(rates, requests).admission is ADMITTED


def test_the_comparison_is_made_with_the_admitted_only():
    """The rate of one that is ejected already does not hide the next."""
    outliers, healths = detector(6, max_ejected=1.0, success_rate_below=0.0)
    tell(outliers, healths[0], SUCCESS, 0.5, 95)
    eject(outliers, healths[0], 0.5)
    healths[0].window.add(0.5, 900, 0)
    for good in healths[1:5]:
        tell(outliers, good, SUCCESS, 0.5, 200)
    tell(outliers, healths[5], SUCCESS, 0.5, 170)
    healths[5].window.add(0.5, 29, 0)
    assert tell(outliers, healths[5], FAILURE, 0.5)


def test_the_others_are_asked_once_a_second_at_most():
    """In between their answers of the last time hold, whatever has become of them."""
    comparison = Comparison()
    spotless, spread = [(100, 100)] * 5, [(100, 100), (100, 50)] * 3
    assert comparison.far_below(spotless, 7.0) == pytest.approx(0.95)
    assert comparison.far_below(spread, 7.9) == pytest.approx(0.95)
    assert comparison.far_below(spread, 8.0) == pytest.approx(0.75 - 1.9 * 0.25)
    assert comparison.far_below(spread[:4], 9.0) is None


@pytest.mark.parametrize(
    ("members", "share", "most"),
    [(2, 0.1, 1), (10, 0.0, 1), (19, 0.1, 1), (20, 0.1, 2), (30, 0.1, 3), (100, 0.29, 29)],
)
def test_ejections_are_capped(members, share, most):
    """A tenth of the endpoints, rounded down, but one may always go."""
    outliers, healths = detector(members, max_ejected=share)
    for health in healths:
        tell(outliers, health, FAILURE, times=6)
    assert sum(health.admission is EJECTED for health in healths) == most


def test_the_cap_counts_those_that_wait_for_a_probe_or_have_one():
    """A slot is free only once its endpoint is admitted again."""
    outliers, (first, second, *_) = detector(5)
    eject(outliers, first)
    at = serve(outliers, first)
    tell(outliers, second, FAILURE, at, times=6)
    assert second.admission is ADMITTED
    outliers.begin_probe(first, at)
    assert not tell(outliers, second, FAILURE, at)
    tell(outliers, first, SUCCESS, at)
    assert tell(outliers, second, FAILURE, at)


def test_the_last_one_is_never_ejected():
    """However much may be ejected, and however much it fails."""
    outliers, (first, second) = detector(2, max_ejected=1.0)
    eject(outliers, first)
    tell(outliers, second, FAILURE, times=100)
    assert second.admission is ADMITTED
    alone, (only,) = detector(1, max_ejected=1.0)
    tell(alone, only, FAILURE, times=100)
    assert only.admission is ADMITTED


def test_each_ejection_is_longer_than_the_one_before():
    """5, 10, 15 seconds … while its probes fail."""
    outliers, (bad, *_) = detector()
    eject(outliers, bad, 100.0)
    begun, lengths = 100.0, []
    for _ in range(5):
        lengths.append(bad.ejected_until - begun)
        begun = serve(outliers, bad)
        outliers.begin_probe(bad, begun)
        assert tell(outliers, bad, FAILURE, begun)
        assert bad.admission is EJECTED
        assert bad.cause == "its probe failed"
    assert lengths == pytest.approx([5.0, 10.0, 15.0, 20.0, 25.0])


def test_a_flapping_endpoint_is_away_longer_each_time():
    """Also when its probe succeeds and it fails again right after."""
    outliers, (bad, *_) = detector()
    now, lengths = 0.0, []
    for _ in range(4):
        eject(outliers, bad, now)
        lengths.append(bad.ejected_until - now)
        now = readmit(outliers, bad) + 1.0
    assert lengths == pytest.approx([5.0, 10.0, 15.0, 20.0])


def test_an_ejection_has_a_longest_length():
    """And beyond it nothing is saved up: two clean intervals later it is shorter by two steps."""
    outliers, (bad, *_) = detector(base_ejection=5.0, max_ejection=12.0)
    now, lengths = 0.0, []
    for _ in range(6):
        eject(outliers, bad, now)
        lengths.append(bad.ejected_until - now)
        now = readmit(outliers, bad)
    assert lengths == pytest.approx([5.0, 10.0, 12.0, 12.0, 12.0, 12.0])
    eject(outliers, bad, now + 20.0)
    assert bad.ejected_until - (now + 20.0) == pytest.approx(10.0)


def test_a_longest_length_below_the_base_is_the_base():
    """As in gRFC A50: max(base, max)."""
    outliers, (bad, *_) = detector(base_ejection=8.0, max_ejection=2.0)
    eject(outliers, bad)
    assert bad.ejected_until == 8.0


def test_jitter_shortens_by_up_to_a_fifth_of_the_base():
    """Never longer, and for later ejections by no more than for the first."""
    lengths = {1: [], 3: []}
    for seed in range(300):
        outliers, (bad, *_) = detector(rng=random.Random(seed))
        now = 0.0
        for number in range(1, 4):
            eject(outliers, bad, now)
            if number in lengths:
                lengths[number].append(bad.ejected_until - now)
            now = readmit(outliers, bad)
    for number, whole in ((1, 5.0), (3, 15.0)):
        assert whole - 1.0 <= min(lengths[number]) < whole - 0.95
        assert whole - 0.05 < max(lengths[number]) <= whole


def test_ten_clean_seconds_take_one_step_back():
    """After three ejections and 25 clean seconds the next one lasts 10 seconds, not 20."""
    outliers, (bad, *_) = detector()
    now = 0.0
    for _ in range(3):
        eject(outliers, bad, now)
        now = readmit(outliers, bad)
    eject(outliers, bad, now + 25.0)
    assert bad.ejected_until - (now + 25.0) == pytest.approx(10.0)


def test_ten_seconds_with_a_failure_are_not_clean():
    """A failure begins the interval anew; 9 seconds and 9 more take nothing back."""
    outliers, (bad, *_) = detector()
    eject(outliers, bad)
    now = readmit(outliers, bad)
    tell(outliers, bad, FAILURE, now + 9.0)
    tell(outliers, bad, SUCCESS, now + 9.0, times=10)
    eject(outliers, bad, now + 18.0)
    assert bad.ejected_until - (now + 18.0) == pytest.approx(10.0)


def test_exactly_ten_clean_seconds_are_enough():
    """The next ejection is a first one again, and no shorter than that ever."""
    for clean in (10.0, 1000.0):
        outliers, (bad, *_) = detector()
        eject(outliers, bad)
        now = readmit(outliers, bad)
        eject(outliers, bad, now + clean)
        assert bad.ejected_until - (now + clean) == pytest.approx(5.0)


def test_an_endpoint_is_offered_for_a_probe_when_its_time_is_over():
    """Not before; and `next_change` tells when."""
    outliers, (bad, *_) = detector()
    assert outliers.next_change() is None
    eject(outliers, bad, 100.0)
    assert outliers.next_change() == 105.0
    assert not outliers.advance(104.999)
    assert bad.admission is EJECTED
    assert outliers.advance(105.0)
    assert bad.admission is PROBATION
    assert bad.ejected_until is None
    assert outliers.next_change() is None
    assert not outliers.advance(1000.0)


def test_the_earliest_change_is_the_next():
    """Among several ejections, and before the end of a probe."""
    outliers, (first, second, *_) = detector(30)
    eject(outliers, first, 0.0)
    eject(outliers, second, 1.0)
    assert outliers.next_change() == 5.0
    serve(outliers, first)
    outliers.begin_probe(first, 5.0)
    assert outliers.next_change() == 6.0
    serve(outliers, second)
    assert outliers.next_change() == 15.0


def test_there_is_one_probe_at_a_time():
    """A second one is refused while the first is under way."""
    outliers, (bad, *_) = detector()
    eject(outliers, bad)
    at = serve(outliers, bad)
    outliers.begin_probe(bad, at)
    assert bad.admission is PROBING
    with pytest.raises(ValueError, match="not in probation"):
        outliers.begin_probe(bad, at)


@pytest.mark.parametrize("admission", [ADMITTED, EJECTED])
def test_only_who_is_in_probation_is_probed(admission):
    """Neither an admitted endpoint nor one whose time is not over."""
    outliers, (bad, *_) = detector()
    if admission is EJECTED:
        eject(outliers, bad)
    with pytest.raises(ValueError, match=admission.value):
        outliers.begin_probe(bad, 1.0)
    assert bad.admission is admission


@pytest.mark.parametrize("outcome", [SUCCESS, IGNORED])
def test_an_answered_probe_readmits(outcome):
    """With a clean slate: neither the failures in a row nor the success rate are held against it."""
    outliers, (bad, *_) = detector()
    eject(outliers, bad)
    at = serve(outliers, bad)
    outliers.begin_probe(bad, at)
    assert tell(outliers, bad, outcome, at)
    assert bad.admission is ADMITTED
    assert bad.cause == ""
    assert bad.window.counts(at) == (0, 0)
    assert outliers.next_change() is None
    assert not tell(outliers, bad, FAILURE, at, times=4)
    assert tell(outliers, bad, FAILURE, at)


def test_a_call_from_the_time_of_the_probe_changes_nothing_after_it():
    """In a panic others than the probe may be under way; once it has readmitted they are late."""
    outliers, (bad, *_) = detector()
    eject(outliers, bad)
    at = serve(outliers, bad)
    outliers.begin_probe(bad, at)
    meanwhile = bad.generation
    assert tell(outliers, bad, SUCCESS, at)
    for _ in range(10):
        assert not outliers.record(bad, meanwhile, FAILURE, at)
    assert bad.window.counts(at) == (0, 0)


def test_a_readmitted_endpoint_needs_a_free_slot_to_be_ejected_again():
    """The one it had is another's by now."""
    outliers, (first, second, *_) = detector(5)
    eject(outliers, first)
    at = readmit(outliers, first)
    eject(outliers, second, at)
    tell(outliers, first, FAILURE, at, times=10)
    assert first.admission is ADMITTED


@pytest.mark.parametrize("outcome", [ABANDONED, UNREACHED])
def test_a_probe_that_told_nothing_is_followed_by_another(outcome):
    """Its endpoint was not heard: it waits for the next call, no longer than before."""
    outliers, (bad, *_) = detector()
    eject(outliers, bad)
    at = serve(outliers, bad)
    outliers.begin_probe(bad, at)
    assert tell(outliers, bad, outcome, at)
    assert bad.admission is PROBATION
    assert outliers.next_change() is None
    outliers.begin_probe(bad, at)
    assert tell(outliers, bad, FAILURE, at)
    assert bad.ejected_until == at + 10.0


def test_a_probe_that_does_not_end_is_replaced():
    """After 10 seconds another one is offered, and what the first brings late changes nothing."""
    outliers, (bad, *_) = detector()
    eject(outliers, bad)
    at = serve(outliers, bad)
    outliers.begin_probe(bad, at)
    first = bad.generation
    assert outliers.next_change() == at + 10.0
    assert not outliers.advance(at + 9.999)
    assert outliers.advance(at + 10.0)
    assert bad.admission is PROBATION
    assert not outliers.record(bad, first, SUCCESS, at + 10.1)
    outliers.begin_probe(bad, at + 10.2)
    assert not outliers.record(bad, first, SUCCESS, at + 10.3)
    assert not outliers.record(bad, first, FAILURE, at + 10.3)
    assert bad.admission is PROBING
    assert outliers.next_change() == at + 20.2


@pytest.mark.parametrize("late", list(Outcome))
def test_a_late_answer_from_before_an_ejection_changes_nothing(late):
    """Neither while ejected, in probation or probed, nor after the readmission."""
    outliers, (bad, *_) = detector()
    before = bad.generation
    eject(outliers, bad)

    def come_late(now):
        seen = (bad.admission, bad.generation, bad.ejected_until, bad.window.counts(now))
        for _ in range(10):
            assert not outliers.record(bad, before, late, now)
        assert (
            bad.admission,
            bad.generation,
            bad.ejected_until,
            bad.window.counts(now),
        ) == seen

    come_late(1.0)
    at = serve(outliers, bad)
    come_late(at)
    outliers.begin_probe(bad, at)
    come_late(at)
    tell(outliers, bad, SUCCESS, at)
    come_late(at)
    tell(outliers, bad, FAILURE, at, times=4)
    come_late(at)
    assert tell(outliers, bad, FAILURE, at)


@pytest.mark.parametrize("outcome", list(Outcome))
def test_nothing_is_learned_while_ejected(outcome):
    """Calls may reach it in a panic; they neither readmit it nor count later."""
    outliers, (bad, *_) = detector()
    eject(outliers, bad)
    assert not tell(outliers, bad, outcome, 1.0, times=20)
    assert (bad.admission, bad.ejected_until) == (EJECTED, 5.0)
    assert bad.window.counts(1.0) == (5, 0)
    serve(outliers, bad)
    assert not tell(outliers, bad, outcome, 6.0, times=20)
    assert bad.admission is PROBATION
    assert bad.window.counts(6.0) == (5, 0)


def test_reconnected_with_failures_unanswered_means_probation():
    """At once, with the length of its next ejection unchanged."""
    outliers, (back, *_) = detector()
    tell(outliers, back, FAILURE, 1.0, times=2)
    assert outliers.on_reconnected(back, 2.0)
    assert back.admission is PROBATION
    assert back.cause == "connected again after 2 failures"
    assert outliers.next_change() is None
    outliers.begin_probe(back, 2.0)
    assert tell(outliers, back, FAILURE, 2.0)
    assert back.admission is EJECTED
    assert back.ejected_until == 7.0


def test_reconnected_takes_the_clean_time_since_the_last_failure_into_account():
    """Ten clean seconds before it take a step back, as they do otherwise."""
    outliers, (back, *_) = detector()
    eject(outliers, back)
    now = readmit(outliers, back)
    tell(outliers, back, FAILURE, now + 1.0)
    outliers.on_reconnected(back, now + 11.0)
    outliers.begin_probe(back, now + 11.0)
    tell(outliers, back, FAILURE, now + 11.0)
    assert back.ejected_until == pytest.approx(now + 16.0)


def test_reconnected_without_failures_changes_nothing():
    """A connection that was closed for being idle is no fault; nor is one of an ejected endpoint."""
    outliers, (fine, bad, *_) = detector()
    tell(outliers, fine, FAILURE)
    tell(outliers, fine, SUCCESS)
    assert not outliers.on_reconnected(fine, 1.0)
    assert fine.admission is ADMITTED
    eject(outliers, bad)
    assert not outliers.on_reconnected(bad, 1.0)
    assert bad.admission is EJECTED


def test_the_last_admitted_one_is_not_put_in_probation():
    """All may have reconnected, but one remains to be asked."""
    outliers, healths = detector(4)
    for health in healths:
        tell(outliers, health, FAILURE)
    assert [outliers.on_reconnected(health, 1.0) for health in healths] == [True] * 3 + [False]


def test_reconnections_take_no_slot_of_the_cap():
    """The first that fails more than it should can still be ejected."""
    outliers, (bad, *others) = detector(5)
    for health in others[:3]:
        tell(outliers, health, FAILURE)
        outliers.on_reconnected(health, 1.0)
    eject(outliers, bad, 1.0)


def test_with_a_failed_probe_but_no_free_slot_it_gets_its_share():
    """After a reconnection there may be no slot left; probed on, it would get every call."""
    outliers, (bad, back, *_) = detector(5)
    eject(outliers, bad)
    tell(outliers, back, FAILURE)
    outliers.on_reconnected(back, 1.0)
    outliers.begin_probe(back, 1.0)
    assert tell(outliers, back, FAILURE, 1.0)
    assert back.admission is ADMITTED


def busy(outliers, healths, successes, failures, now=0.0):
    """Give each of them outcomes that eject nobody: most others of nobody do well meanwhile."""
    for health in healths:
        health.window.add(now, successes + failures, successes)


@pytest.mark.parametrize(("bad", "ejected"), [(4, False), (3, False), (2, True), (1, True)])
def test_what_most_do_alike_is_no_outlier(bad, ejected):
    """Of four others at least half do well, or nobody is ejected: an overload would last."""
    outliers, (one, *others) = detector(5)
    busy(outliers, others[:bad], successes=7, failures=3)
    busy(outliers, others[bad:], successes=8, failures=2)
    assert tell(outliers, one, FAILURE, times=5) is ejected


def test_others_that_were_hardly_asked_do_well():
    """Nothing speaks against them."""
    outliers, (one, *others) = detector(5)
    busy(outliers, others, successes=0, failures=4)
    assert tell(outliers, one, FAILURE, times=5)


def test_how_the_others_do_is_asked_once_a_second():
    """There may be a thousand of them, and a failure each millisecond."""
    outliers, (one, *others) = detector(5)
    busy(outliers, others, successes=0, failures=10)
    assert not tell(outliers, one, FAILURE, times=5)
    for health in others:
        health.window.clear()
    assert not tell(outliers, one, FAILURE, now=0.9)
    assert tell(outliers, one, FAILURE, now=1.0)


def test_a_failed_probe_readmits_when_the_others_do_no_better():
    """It is no worse than they are, and may be the first that works again."""
    outliers, (one, *others) = detector(5)
    eject(outliers, one)
    at = serve(outliers, one)
    busy(outliers, others, successes=0, failures=10, now=at)
    outliers.begin_probe(one, at)
    assert tell(outliers, one, FAILURE, at)
    assert one.admission is ADMITTED


def test_a_removed_endpoint_frees_its_slot():
    """The next bad one can be ejected."""
    outliers, (first, second, *_) = detector(5)
    eject(outliers, first)
    tell(outliers, second, FAILURE, times=6)
    outliers.remove(first)
    assert outliers.next_change() is None
    assert not outliers.advance(100.0)
    assert tell(outliers, second, FAILURE)


def test_a_removed_endpoint_is_not_ejected():
    """Its last calls may fail: it is nobody's any more, and takes nobody's slot."""
    outliers, (left, second, *_) = detector(5)
    outliers.remove(left)
    assert not tell(outliers, left, FAILURE, times=20)
    assert not outliers.on_reconnected(left, 1.0)
    assert left.admission is ADMITTED
    eject(outliers, second)


def test_a_probe_of_a_removed_endpoint_changes_nothing():
    """It is nobody's any more."""
    outliers, (bad, *_) = detector()
    eject(outliers, bad)
    at = serve(outliers, bad)
    outliers.begin_probe(bad, at)
    outliers.remove(bad)
    for outcome in Outcome:
        assert not tell(outliers, bad, outcome, at)
    assert bad.admission is PROBING


def test_an_endpoint_that_left_ejected_comes_back_ejected():
    """Added again, it takes its slot again, and its time goes on."""
    outliers, (bad, second, *_) = detector(5)
    eject(outliers, bad)
    outliers.remove(bad)
    outliers.add(bad)
    tell(outliers, second, FAILURE, times=6)
    assert second.admission is ADMITTED
    assert outliers.next_change() == 5.0
    readmit(outliers, bad)


def test_new_rules_hold_from_the_next_failure_on():
    """Fewer failures in a row are enough at once; what was counted stays counted."""
    outliers, (bad, *_) = detector()
    tell(outliers, bad, FAILURE, times=2)
    outliers.configure(Outlier(consecutive_failures=3), 1.0)
    assert tell(outliers, bad, FAILURE, 1.0)


def test_new_rules_do_not_let_an_ejection_outlast_their_longest():
    """It ends then, and one that is shorter anyway keeps its end."""
    outliers, (bad, *_) = detector(base_ejection=100.0)
    eject(outliers, bad)
    outliers.configure(Outlier(base_ejection=2.0, max_ejection=30.0), 10.0)
    assert outliers.next_change() == 40.0
    outliers.configure(Outlier(base_ejection=2.0, max_ejection=300.0), 20.0)
    assert outliers.next_change() == 40.0
    assert not outliers.advance(39.9)
    readmit(outliers, bad)


def test_a_lower_cap_readmits_nobody_and_ejects_nobody_more():
    """Who is ejected serves their time; the slots are there once enough are back."""
    outliers, healths = detector(10, max_ejected=0.3)
    for health in healths[:3]:
        eject(outliers, health)
    outliers.configure(Outlier(max_ejected=0.2), 1.0)
    assert [health.admission for health in healths[:3]] == [EJECTED] * 3
    tell(outliers, healths[3], FAILURE, 1.0, times=6)
    readmit(outliers, healths[0])
    assert not tell(outliers, healths[3], FAILURE, 5.0)
    outliers.begin_probe(healths[1], 5.0)
    tell(outliers, healths[1], SUCCESS, 5.0)
    assert tell(outliers, healths[3], FAILURE, 5.0)


@pytest.mark.parametrize(
    ("left", "active", "panics"),
    [(0, 0, False), (0, 1, True), (1, 2, False), (1, 3, True), (2, 4, False), (4, 9, True)],
)
def test_fewer_than_half_is_panic(left, active, panics):
    """Half is enough to go by."""
    assert detector()[0].is_panicking(left, active) is panics


def test_a_status_line_tells_how_things_are():
    """For people, who look at a live object."""
    outliers, (bad, *_) = detector(4)
    eject(outliers, bad)
    assert repr(outliers) == "<OutlierDetector 1 of 4 away>"
    assert repr(bad) == "<Health ejected, generation 1: 5 failures in a row>"
