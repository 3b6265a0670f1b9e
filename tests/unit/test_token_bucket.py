"""The token bucket, held against exact arithmetic."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrpc.limits.token_bucket import TokenBucket

NS = 1_000_000_000

rates = st.one_of(
    st.integers(1, 100_000).map(float),
    st.floats(0.001, 100_000, allow_nan=False),
    st.sampled_from([1 / 3, 100 / 3600, 7 / 60]),
)
bursts = st.integers(1, 50)
# From bursts of calls at one time to idle hours, around a machine that has been up for long.
pauses = st.lists(
    st.one_of(st.just(0), st.integers(0, 10_000), st.integers(0, NS), st.integers(0, 3600 * NS)),
    max_size=120,
)


def times(pauses: list[int], start: int = 10**15) -> list[float]:
    at, readings = start, []
    for pause in pauses:
        at += pause
        readings.append(at / NS)
    return readings


def seen(now: float) -> int:
    """The whole nanoseconds that the bucket takes a reading for."""
    return int(now * NS)


class ExactBucket:
    """A token bucket in fractions, refilled as every textbook does."""

    def __init__(self, rate: float, burst: int) -> None:
        self.per_ns = Fraction(1, math.ceil(NS / Fraction(rate)))
        self.burst = burst
        self.tokens = Fraction(burst)
        self.at: int | None = None

    def take(self, at: int) -> bool:
        if self.at is not None:
            self.tokens = min(Fraction(self.burst), self.tokens + (at - self.at) * self.per_ns)
        self.at = at
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


@given(rates, bursts, pauses)
def test_it_decides_as_exact_arithmetic_does(rate: float, burst: int, pauses: list[int]):
    """Every decision equals that of a bucket counted in fractions."""
    bucket, exact = TokenBucket(rate, burst), ExactBucket(rate, burst)
    for now in times(pauses):
        assert (bucket.take(now) == 0.0) is exact.take(seen(now))


@given(rates, bursts, pauses)
def test_no_window_admits_more_than_rate_and_burst(rate: float, burst: int, pauses: list[int]):
    """Between any two admitted calls there were at most rate x t + burst."""
    bucket = TokenBucket(rate, burst)
    admitted = [seen(now) for now in times(pauses) if bucket.take(now) == 0.0]
    for first, start in enumerate(admitted):
        for last in range(first, len(admitted)):
            allowed = Fraction(rate) * (admitted[last] - start) / NS + burst
            assert last - first + 1 <= allowed


@given(rates, bursts, pauses)
def test_the_wait_it_names_is_neither_too_short_nor_too_long(
    rate: float, burst: int, pauses: list[int]
):
    """After the wait there is a token; a microsecond before there was none."""
    bucket = TokenBucket(rate, burst)
    for now in times(pauses):
        wait = bucket.take(now)
        if wait == 0.0:
            continue
        early = now + wait - 1e-6
        if early > now:
            assert bucket.take(early) > 0.0
        assert bucket.take(now + wait + 1e-6) == 0.0
        return


@given(rates, bursts, st.integers(0, 60), rates, bursts, st.integers(0, 10 * NS))
def test_changing_the_configuration_mints_no_tokens(
    rate: float, burst: int, taken: int, new_rate: float, new_burst: int, pause: int
):
    """After a change a bucket admits no more at once than it held, nor than now fits."""
    start = 10**15
    old, new = TokenBucket(rate, burst), TokenBucket(rate, burst)
    for _ in range(taken):
        old.take(start / NS)
        new.take(start / NS)
    now = (start + pause) / NS
    new = new.reconfigured(new_rate, new_burst, now)
    held = sum(old.take(now) == 0.0 for _ in range(burst + 1))
    kept = sum(new.take(now) == 0.0 for _ in range(new_burst + 1))
    assert kept == min(held, new_burst)


def test_changing_to_and_fro_admits_nothing_extra():
    """Whoever can make the configuration flap cannot call any more often for it."""
    bucket = TokenBucket(10.0, 5)
    assert [bucket.take(100.0) for _ in range(5)] == [0.0] * 5
    for _ in range(10):
        bucket = bucket.reconfigured(1000.0, 50, 100.0).reconfigured(10.0, 5, 100.0)
    assert bucket.take(100.0) > 0.0
    assert bucket.take(100.1) == 0.0


def test_a_long_idle_bucket_holds_its_burst_and_no_more():
    """A year of silence saves up exactly one burst."""
    bucket = TokenBucket(100.0, 7)
    for _ in range(7):
        bucket.take(1.0)
    year = 365 * 86400.0
    assert sum(bucket.take(1.0 + year) == 0.0 for _ in range(20)) == 7


def test_a_token_given_back_can_be_taken_again_and_only_once():
    """Giving back restores the state before the take."""
    bucket = TokenBucket(1.0, 1)
    assert bucket.take(5.0) == 0.0
    bucket.give_back()
    assert bucket.take(5.0) == 0.0
    assert bucket.take(5.0) > 0.0


def test_a_bucket_is_full_exactly_when_nothing_is_missing():
    """`is_full` turns true when the last token is back."""
    bucket = TokenBucket(10.0, 3)
    assert bucket.is_full(1.0)
    bucket.take(1.0)
    assert not bucket.is_full(1.09)
    assert bucket.is_full(1.11)


@pytest.mark.parametrize(
    ("rate", "burst"), [(0.0, 1), (-1.0, 1), (math.inf, 1), (math.nan, 1), (1.0, 0)]
)
def test_impossible_sizes_are_refused(rate: float, burst: int):
    """A bucket that could never, or always, admit is an error where it is made."""
    with pytest.raises(ValueError, match=r"rate|burst"):
        TokenBucket(rate, burst)


def test_it_says_what_it_is():
    """The repr is a status line."""
    assert repr(TokenBucket(100.0, 50)) == "<TokenBucket 100/s burst=50>"
