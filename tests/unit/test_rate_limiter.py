"""Several limits over the calls of one process."""

from dataclasses import replace

import pytest

from meshrpc.limits.rate_limiter import RateLimiter, Refusal
from meshrpc.policy.model import LimitMode, RateLimit

METHOD = "/shop.Shop/Buy"


def check(
    limiter: RateLimiter, now: float, caller: str = "order", method: str = METHOD, metadata=()
) -> Refusal | None:
    return limiter.check(now, caller, method, tuple(metadata))


def admitted(limiter: RateLimiter, now: float, calls: int, **call) -> int:
    return sum(check(limiter, now, **call) is None for _ in range(calls))


def test_each_key_has_a_bucket_of_its_own():
    """One caller using up its tokens takes nothing from another."""
    limiter = RateLimiter((RateLimit("per-caller", 1.0, 3, ("caller",)),))
    assert admitted(limiter, 0.0, 10, caller="order") == 3
    assert admitted(limiter, 0.0, 10, caller="web") == 3


def test_several_keys_are_one_combined_key():
    """Tokens are counted per combination of the values."""
    limiter = RateLimiter((RateLimit("both", 1.0, 1, ("caller", "method")),))
    assert admitted(limiter, 0.0, 2, caller="a", method="/s/M") == 1
    assert admitted(limiter, 0.0, 2, caller="a", method="/s/N") == 1
    assert admitted(limiter, 0.0, 2, caller="b", method="/s/M") == 1
    refusal = check(limiter, 0.0, caller="b", method="/s/M")
    assert refusal is not None
    assert refusal.key == "caller=b, method=/s/M"


def test_calls_without_the_value_share_the_key_unknown():
    """Leaving a metadata key out buys nobody a bucket of their own."""
    limiter = RateLimiter((RateLimit("tenant", 1.0, 2, ("metadata.X-Tenant",)),))
    assert admitted(limiter, 0.0, 5, caller="a") == 2
    refusal = check(limiter, 0.0, caller="b")
    assert refusal is not None
    assert refusal.key == "metadata.X-Tenant=unknown"
    assert admitted(limiter, 0.0, 5, metadata=[("x-tenant", "acme")]) == 2


def test_a_refused_call_takes_nothing_from_the_other_limits():
    """What one limit granted goes back when another refuses."""
    wide = RateLimit("wide", 1.0, 10)
    narrow = RateLimit("narrow", 1.0, 1, ("caller",))
    for order in ((wide, narrow), (narrow, wide)):
        limiter = RateLimiter(order)
        assert admitted(limiter, 0.0, 50, caller="greedy") == 1
        assert admitted(limiter, 0.0, 1, caller="modest") == 1
        assert limiter.counts["wide"].admitted == 2
        assert sum(admitted(limiter, 0.0, 1, caller=f"c{i}") for i in range(20)) == 8


def test_the_refusal_names_the_limit_that_takes_longest():
    """Coming back after the wait named is not refused again."""
    limiter = RateLimiter((RateLimit("fast", 10.0, 1), RateLimit("slow", 0.5, 1)))
    assert check(limiter, 0.0) is None
    refusal = check(limiter, 0.0)
    assert refusal is not None
    assert refusal.limit.name == "slow"
    assert refusal.wait == pytest.approx(2.0)
    assert check(limiter, refusal.wait) is None


def test_shadow_mode_only_counts():
    """A limit in shadow mode refuses nobody and says whom it would have refused."""
    limiter = RateLimiter((RateLimit("try", 1.0, 2, mode=LimitMode.SHADOW),))
    assert admitted(limiter, 0.0, 5) == 5
    counts = limiter.counts["try"]
    assert (counts.admitted, counts.refused, counts.would_refuse) == (2, 0, 3)


def test_reconfiguring_keeps_what_is_used_up():
    """A limit of the same name goes on with the buckets it has; others start full."""
    old = RateLimit("a", 1.0, 3, ("caller",))
    limiter = RateLimiter((old,))
    assert admitted(limiter, 0.0, 3) == 3
    limiter.configure((replace(old, burst=100), RateLimit("b", 1.0, 100)), 0.0)
    assert admitted(limiter, 0.0, 5) == 0
    assert limiter.counts["a"].refused == 5
    limiter.configure((replace(old, burst=100, mode=LimitMode.SHADOW),), 0.0)
    assert admitted(limiter, 0.0, 5) == 5
    limiter.configure((), 0.0)
    assert admitted(limiter, 0.0, 5) == 5
    assert limiter.counts == {}


def test_another_key_starts_anew():
    """Buckets per caller say nothing about methods."""
    old = RateLimit("a", 1.0, 3, ("caller",))
    limiter = RateLimiter((old,))
    assert admitted(limiter, 0.0, 9) == 3
    limiter.configure((replace(old, key=("method",)),), 0.0)
    assert admitted(limiter, 0.0, 9) == 3


def test_inventing_keys_neither_fills_memory_nor_earns_tokens():
    """Above max_keys newcomers share one bucket, whatever they call themselves."""
    limiter = RateLimiter((RateLimit("a", 1.0, 2, ("caller",), max_keys=100),))
    assert sum(admitted(limiter, 0.0, 2, caller=f"old{i}") for i in range(100)) == 200
    assert sum(check(limiter, 0.0, caller=f"new{i}") is None for i in range(5000)) == 2
    # Those who were there first have lost nothing: their next token comes in time.
    assert check(limiter, 1.0, caller="old7") is None
    assert len(limiter._limits[0]._buckets) <= 100


def test_going_round_more_keys_than_fit_earns_nothing():
    """Evicting by age would hand each returning key a full bucket; this does not."""
    limiter = RateLimiter((RateLimit("a", 0.001, 1, ("caller",), max_keys=10),))
    names = [f"k{i}" for i in range(11)]
    calls = sum(check(limiter, 0.0, caller=name) is None for _ in range(50) for name in names)
    assert calls == 11


def test_idle_keys_make_room():
    """A bucket that is full again is forgotten for a newcomer, who gets one of its own."""
    limiter = RateLimiter((RateLimit("a", 1.0, 2, ("caller",), max_keys=10),))
    for i in range(10):
        admitted(limiter, 0.0, 2, caller=f"old{i}")
    assert admitted(limiter, 10.0, 5, caller="new") == 2
    assert admitted(limiter, 10.0, 5, caller="newer") == 2
    assert len(limiter._limits[0]._buckets) <= 10


def test_long_values_take_little_memory_and_stay_apart():
    """A key of kilobytes is kept as a digest; two that differ at the end stay two."""
    limiter = RateLimiter((RateLimit("a", 1.0, 1, ("metadata.token",)),))
    first, second = "x" * 8000 + "1", "x" * 8000 + "2"
    assert admitted(limiter, 0.0, 2, metadata=[("token", first)]) == 1
    assert admitted(limiter, 0.0, 2, metadata=[("token", second)]) == 1
    assert all(len(key) <= 64 for key in limiter._limits[0]._buckets)


def test_an_unknown_key_word_is_an_error_when_configured():
    """A key that means nothing is refused before any call."""
    with pytest.raises(ValueError, match=r"caller, method or metadata\.<name>"):
        RateLimiter((RateLimit("a", 1.0, 1, ("color",)),))


def test_two_limits_of_one_name_are_an_error():
    """By their names limits keep what they counted: two of one would count every call twice."""
    twice = (RateLimit("a", 1.0, 1), RateLimit("a", 2.0, 1))
    with pytest.raises(ValueError, match="one name"):
        RateLimiter(twice)


def test_it_says_what_it_is():
    """The repr is a status line."""
    limiter = RateLimiter((RateLimit("a", 1.0, 1), RateLimit("b", 1.0, 1)))
    assert repr(limiter) == "<RateLimiter a, b>"
    assert repr(RateLimiter()) == "<RateLimiter no limits>"
