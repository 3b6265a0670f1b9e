"""All rate limits of a process, held against exact arithmetic, whatever changes meanwhile."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshrpc.limits.rate_limiter import RateLimiter
from meshrpc.limits.shares import EVERY_KEY, WHOLE, Share, size
from meshrpc.limits.token_bucket import TokenBucket
from meshrpc.policy.model import RateLimit, RateOverride, ShareMode

NS = 1_000_000_000
START = 10**15
CALLERS = "abcde"
METHOD = "/shop.Shop/Buy"

rates = st.sampled_from([0.5, 1.0, 7 / 60, 3.0, 100.0, 1000.0])
bursts = st.integers(1, 6)
pauses = st.one_of(st.just(0), st.integers(0, NS // 10), st.integers(0, 20 * NS))
overrides = st.dictionaries(st.sampled_from("abx"), st.tuples(rates, bursts), max_size=2)
limits = st.builds(
    lambda rate, burst, overrides, max_keys, share: RateLimit(
        "checked",
        rate,
        burst,
        ("caller",),
        share=share,
        max_keys=max_keys,
        overrides=tuple(
            RateOverride((("caller", caller),), *each) for caller, each in overrides.items()
        ),
    ),
    rates,
    bursts,
    overrides,
    st.integers(2, 4),
    st.sampled_from(ShareMode),
)
shares = st.tuples(
    st.sampled_from([EVERY_KEY, b"=a", b"=c"]),
    st.one_of(st.none(), st.integers(0, WHOLE), st.just(WHOLE)),
)
steps = st.lists(
    st.tuples(
        pauses,
        st.one_of(
            st.sampled_from(CALLERS),
            st.sampled_from(CALLERS),
            st.sampled_from(CALLERS),
            limits,
            shares,
        ),
    ),
    min_size=1,
    max_size=80,
)


class Run:
    """What one run admitted, by bucket, and which size each bucket had from when on."""

    def __init__(self, limit):
        self.other = RateLimit("other", 2.0, 4)
        self.at = START
        self.limiter = RateLimiter()
        self.limiter.configure((limit, self.other), self.now)
        self.admitted = {}
        self.sizes = {}
        self.note_sizes()

    @property
    def now(self):
        return self.at / NS

    @property
    def checked(self):
        return self.limiter._limits[0]

    def note_sizes(self):
        """Note the size that every bucket ought to have, by the specification and the shares."""
        spec, fleet = self.checked.spec, self.checked.fleet
        named = {dict(one.values)["caller"]: (one.rate, one.burst) for one in spec.overrides}
        for caller in (*CALLERS, None):
            wanted = named.get(caller, (spec.rate, spec.burst))
            if fleet is not None:
                wanted = size(*wanted, fleet.of(caller))
            self.sizes.setdefault(caller, []).append((self.at, Fraction(wanted[0]), wanted[1]))

    def call(self, caller):
        passed = self.limiter.check(self.now, caller, METHOD, ()) is None
        limit = self.checked
        known = caller in limit._own or caller in limit._buckets
        if passed:
            self.admitted.setdefault(caller if known else None, []).append(int(self.now * NS))
        # What any of the limits has room for, and the keys that once had an override or a share.
        assert len(limit._buckets) <= 4 + len("abxc")

    def allowed(self, bucket, start, end):
        """Rate x time and burst of the bucket between two admissions, with all its sizes."""
        total, burst = Fraction(0), 0
        history = [*self.sizes[bucket], (end + 1, Fraction(0), 0)]
        for (since, rate, most), (until, _, _) in itertools.pairwise(history):
            # A reading of the clock may be a few nanoseconds before the time it was made from.
            begin, finish = max(since - 200, start), min(until, end)
            if begin <= finish:
                total += rate * (finish - begin) / NS
                burst = max(burst, most)
        return total + burst


@settings(deadline=None)
@given(limits, steps)
def test_no_bucket_ever_admits_more_than_rate_and_burst(limit, steps):
    """In any window, also across other rates, overrides that come and go, shares that change,
    tokens given back because another limit refused, and more keys than fit."""
    run = Run(limit)
    for pause, step in steps:
        run.at += pause
        if isinstance(step, RateLimit):
            run.limiter.configure((step, run.other), run.now)
            run.note_sizes()
        elif isinstance(step, tuple):
            key, share = step
            run.limiter.take_shares((Share("checked", key, share),), run.now)
            run.note_sizes()
        else:
            run.call(step)
    for bucket, admitted in run.admitted.items():
        for first, start in enumerate(admitted):
            for last in range(first, len(admitted)):
                assert last - first + 1 <= run.allowed(bucket, start, admitted[last])


@settings(deadline=None)
@given(st.floats(0.5, 5000.0), st.integers(2, 50), st.integers(1, 997), st.integers(0, 3))
def test_under_saturation_nothing_is_lost(rate, burst, jitter, shares):
    """Ten times the rate is offered, to a burst of two or more: at least 99 % of rate x t is admitted, also if the share
    changes to and fro meanwhile, and never more than that and the burst."""
    spec = RateLimit("a", rate, burst, share=ShareMode.FLEET)
    limiter = RateLimiter((spec,))
    limiter.take_shares((Share("a", EVERY_KEY, WHOLE),), START / NS)
    at, admitted, calls = START, 0, 2000
    step = int(NS / rate / 10)
    for number in range(calls):
        at += step + (number * jitter) % 7
        if shares and number % (calls // (shares + 1)) == 0:
            limiter.take_shares((Share("a", EVERY_KEY, WHOLE - 1),), at / NS)
            limiter.take_shares((Share("a", EVERY_KEY, WHOLE),), at / NS)
        admitted += limiter.check(at / NS, "c", METHOD, ()) is None
    seconds = Fraction(at - START, NS)
    # Each change may cost the part of a token that does not fit when the burst is full.
    assert admitted >= Fraction(99, 100) * Fraction(rate) * seconds - 2 - 2 * shares
    assert admitted <= Fraction(rate) * seconds + burst


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, NS // 5), st.integers(0, 3)), min_size=1, max_size=60),
    st.integers(1, 30),
)
def test_shares_that_move_between_processes_mint_nothing(moves, burst):
    """However a limit's shares go round, all processes together never admit more in a window than
    its rate and burst, and one call each: the bound that is documented."""
    rate = 40.0
    spec = RateLimit("a", rate, burst, ("caller",), share=ShareMode.FLEET)
    processes = [RateLimiter((spec,)) for _ in range(4)]
    at = START
    for process in processes:
        process.take_shares((Share("a", EVERY_KEY, WHOLE // 4),), at / NS)
    admitted = []
    for pause, target in moves:
        at += pause
        # Down first, as control has it.
        for number, process in enumerate(processes):
            if number != target:
                process.take_shares((Share("a", b"=c", WHOLE // 100),), at / NS)
        up = WHOLE - 3 * (WHOLE // 100)
        processes[target].take_shares((Share("a", b"=c", up),), at / NS)
        for process in processes:
            while process.check(at / NS, "c", METHOD, ()) is None:
                admitted.append(int(at / NS * NS))
    for first, start in enumerate(admitted):
        for last in range(first, len(admitted)):
            allowed = Fraction(rate) * (admitted[last] - start + 200) / NS + burst + len(processes)
            assert last - first + 1 <= allowed


@pytest.mark.parametrize("share", [1, 12_345, WHOLE // 3, WHOLE])
def test_a_share_is_exact(share):
    """The interval of a bucket is that of its share, rounded up to a nanosecond: never faster."""
    each, burst = size(100.0, 50, share)
    bucket = TokenBucket(each, burst)
    assert bucket._interval >= Fraction(NS) / each
    assert bucket._interval - Fraction(NS) / each < 1
