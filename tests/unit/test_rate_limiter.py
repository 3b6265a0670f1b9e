"""Several limits over the calls of one process."""

from dataclasses import replace

import pytest

from meshrpc.limits.rate_limiter import RateLimiter, Refusal
from meshrpc.limits.shares import EVERY_KEY, MOST_KEYS, WHOLE, Share
from meshrpc.policy.model import LimitMode, RateLimit, RateOverride, ShareMode

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


# Overrides

BATCH = RateOverride((("caller", "batch"),), 0.5, 1)
PER_CALLER = RateLimit("a", 10.0, 5, ("caller",), overrides=(BATCH,))


def test_a_key_with_an_override_has_its_own_rate_and_burst():
    """The others have the limit's, and each bucket is still one's own."""
    limiter = RateLimiter((PER_CALLER,))
    assert admitted(limiter, 0.0, 10, caller="batch") == 1
    assert admitted(limiter, 0.0, 10, caller="order") == 5
    refusal = check(limiter, 0.0, caller="batch")
    assert refusal is not None
    assert (refusal.rate, refusal.wait) == (0.5, pytest.approx(2.0))
    assert admitted(limiter, 2.0, 10, caller="batch") == 1


def test_an_override_of_several_keys_names_all_of_them():
    """It is for that combination alone; a method is named as policies name it."""
    override = RateOverride((("caller", "batch"), ("method", "shop.Shop/Buy")), 1.0, 9)
    limiter = RateLimiter((RateLimit("a", 1.0, 2, ("method", "caller"), overrides=(override,)),))
    assert admitted(limiter, 0.0, 20, caller="batch") == 9
    assert admitted(limiter, 0.0, 20, caller="order") == 2
    assert admitted(limiter, 0.0, 20, caller="batch", method="/shop.Shop/Sell") == 2


def test_a_key_with_an_override_keeps_its_bucket_however_many_others_come():
    """It is neither pushed out nor mixed up with newcomers, and room is counted with it."""
    limiter = RateLimiter((replace(PER_CALLER, max_keys=10),))
    for number in range(100):
        admitted(limiter, 0.0, 9, caller=f"c{number}")
    assert admitted(limiter, 0.0, 9, caller="batch") == 1
    limit = limiter._limits[0]
    assert len(limit._buckets) + len(limit._own) == 10


def test_an_override_that_comes_and_goes_earns_nothing():
    """The bucket keeps what it has, as far as that fits: in both directions, seen before or not."""
    plain = replace(PER_CALLER, overrides=())
    for first in (plain, PER_CALLER):
        limiter = RateLimiter((first,))
        passed = admitted(limiter, 0.0, 9, caller="batch")
        for _ in range(10):
            limiter.configure((PER_CALLER,), 0.0)
            limiter.configure((plain,), 0.0)
            passed += admitted(limiter, 0.0, 9, caller="batch")
        assert passed <= 5
    limiter = RateLimiter((PER_CALLER,))  # never asked for: as full as its override allows
    limiter.configure((plain,), 0.0)
    assert admitted(limiter, 0.0, 9, caller="batch") == 1


def test_an_override_that_names_no_bucket_is_an_error():
    """It would never apply."""
    with pytest.raises(ValueError, match="a value for each of caller"):
        RateLimiter((replace(PER_CALLER, overrides=(RateOverride((), 1.0, 1),)),))


# Over the fleet

FLEET = RateLimit("a", 100.0, 50, share=ShareMode.FLEET)


def test_a_limit_over_the_fleet_counts_by_its_share():
    """A tenth until control has said something, then what it says; refusals name it."""
    limiter = RateLimiter((FLEET,))
    assert limiter.has_fleet_limits
    assert admitted(limiter, 0.0, 90) == 5
    refusal = check(limiter, 0.0)
    assert refusal is not None
    assert (refusal.rate, refusal.share, refusal.wait) == (100.0, 10.0, pytest.approx(0.1))
    limiter.take_shares((Share("a", EVERY_KEY, WHOLE // 2), Share("b", EVERY_KEY, 1)), 0.0)
    assert admitted(limiter, 0.0, 90) == 0
    assert admitted(limiter, 10.0, 90) == 25


@pytest.mark.parametrize("spec", [FLEET, replace(FLEET, key=("caller",))])
def test_a_share_that_grows_where_nobody_has_called_brings_no_burst(spec):
    """Another process may just have used up the burst that went with it. It fills at the rate."""
    limiter = RateLimiter((spec,))
    limiter.take_shares((Share("a", EVERY_KEY, WHOLE // 50),), 0.0)
    limiter.take_shares((Share("a", EVERY_KEY, WHOLE),), 100.0)
    limiter.configure((replace(spec, mode=LimitMode.SHADOW),), 100.0)
    limiter.configure((spec,), 100.0)
    assert admitted(limiter, 100.0, 90) == 1
    limiter.take_shares((Share("a", b"=another", WHOLE),), 100.1)
    assert admitted(limiter, 100.1, 90, caller="another") in (10, 11)
    assert admitted(limiter, 110.0, 90, caller="a third") == 50


def test_nobody_waits_long_for_a_share_that_may_grow():
    """With next to nothing, one is to come back in a second: by then there may be more."""
    limiter = RateLimiter((FLEET,))
    limiter.take_shares((Share("a", EVERY_KEY, 1),), 0.0)
    check(limiter, 1.0)
    refusal = check(limiter, 1.0)
    assert refusal is not None
    assert refusal.wait == 1.0


def test_a_key_has_the_share_that_is_its_own_until_it_is_forgotten():
    """Others keep the general one; to be forgotten is to have that again."""
    limiter = RateLimiter((replace(FLEET, key=("caller",)),))
    limiter.take_shares((Share("a", b"=busy", WHOLE), Share("a", EVERY_KEY, WHOLE // 50)), 0.0)
    # What it had when it was raised was the burst of a first share: five.
    assert admitted(limiter, 0.0, 90, caller="busy") == 5
    assert admitted(limiter, 10.0, 90, caller="busy") == 50
    assert admitted(limiter, 10.0, 90, caller="other") == 1
    limiter.take_shares((Share("a", b"=busy", None),), 20.0)
    assert admitted(limiter, 20.0, 90, caller="busy") == 1
    assert limiter.look(20.0) is False
    assert {claim.key for claim in limiter.claims() if claim.is_granted} == {EVERY_KEY}


def test_overrides_are_shared_out_too():
    """Their own rate and burst, by the same share."""
    limiter = RateLimiter((replace(PER_CALLER, share=ShareMode.FLEET),))
    limiter.take_shares((Share("a", EVERY_KEY, WHOLE // 5),), 0.0)
    refusal = [check(limiter, 100.0, caller="batch") for _ in range(2)][1]
    assert refusal is not None
    assert (refusal.rate, refusal.share) == (0.5, 0.1)


def test_whatever_control_sends_memory_is_bounded():
    """Shares of more keys than it may name, and keys that are none, are not kept."""
    limiter = RateLimiter((replace(FLEET, key=("caller",)),))
    limiter.take_shares((Share("a", b"=%d" % number, 1) for number in range(5000)), 0.0)
    limiter.take_shares((Share("a", wire, 1) for wire in (b"", b"=a\0b", b"=\xff")), 0.0)
    assert len(limiter._limits[0].fleet.shares) == len(limiter._limits[0]._own) == 2 * MOST_KEYS


def test_becoming_one_over_the_fleet_keeps_what_is_used_up():
    """And so does ceasing to be one."""
    alone = replace(FLEET, share=ShareMode.INSTANCE)
    limiter = RateLimiter((alone,))
    assert admitted(limiter, 0.0, 90) == 50
    limiter.configure((FLEET,), 0.0)
    assert admitted(limiter, 0.0, 90) == 0
    limiter.configure((alone,), 0.0)
    assert admitted(limiter, 0.0, 90) == 0
    assert not limiter.has_fleet_limits
    assert limiter.claims() == ()
