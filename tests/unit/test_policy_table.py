"""The policy as the calls of one method see it."""

from dataclasses import FrozenInstanceError, replace

import grpc
import pytest

from meshrpc.policy.model import (
    Comparison,
    EffectivePolicy,
    Fallback,
    Fault,
    HashKey,
    Hedge,
    KeySource,
    Match,
    MetadataMatch,
    Mirror,
    Retry,
    Route,
    StreamBounds,
    Target,
)
from meshrpc.policy.split import Split
from meshrpc.policy.subset import Subset
from meshrpc.policy.table import MethodPolicy, MirrorTo, PolicyTable
from services.payment.v1 import payment_pb2  # noqa: F401 - its descriptors say what is idempotent

CHARGE = "/payment.v1.PaymentService/Charge"


def table(*routes, caller="order", **document):
    return PolicyTable(EffectivePolicy("payment", routes=routes, **document), caller)


def metadata_match(key, comparison, value):
    return MetadataMatch(key, Comparison(comparison), value)


def beta(name="beta", value="beta", **match):
    condition = metadata_match("x-group", "exact", value)
    return Route(name, Match(metadata=(condition,), **match))


def test_without_routes_the_document_is_all():
    """Calls of every method have the document's own fields, and go to all instances."""
    policy = table(timeout=2.0).method("/a.B/C").fixed
    assert policy == MethodPolicy(timeout=2.0, retry=Retry(), idempotent=False)
    assert (policy.route, policy.split, policy.mirror, policy.fault) == (None, None, None, None)


def test_a_method_is_compiled_once():
    """A call costs a look at a dict, and what it gets cannot change any more."""
    compiled = table(Route("all"))
    assert compiled.method("/a.B/C") is compiled.method("/a.B/C")
    with pytest.raises(FrozenInstanceError):
        compiled.method("/a.B/C").fixed.timeout = 1.0


@pytest.mark.parametrize(
    ("match", "is_taken"),
    [
        (Match(), True),
        (Match(method="a.B/C"), True),
        (Match(method="a.B/*"), True),
        (Match(method="a.B/CC"), False),
        (Match(method="a.BB/*"), False),
        (Match(method="a/*"), False),
        (Match(method="a.B/D"), False),
        (Match(caller="order"), True),
        (Match(caller="payment"), False),
        (Match(caller="unknown"), False),
        (Match(method="a.B/C", caller="order"), True),
        (Match(method="a.B/C", caller="payment"), False),
        (Match(method="a.B/D", caller="order"), False),
    ],
)
def test_a_route_is_for_the_calls_that_fit_all_of_its_match(match, is_taken):
    """Method and caller are decided when the method is compiled: nothing is left for the call."""
    fixed = table(Route("one", match), timeout=1.0).method("/a.B/C").fixed
    assert fixed.route == ("one" if is_taken else None)


def test_a_process_without_a_name_is_the_caller_unknown():
    """A route can be for exactly those."""
    policy = EffectivePolicy("payment", routes=(Route("nameless", Match(caller="unknown")),))
    assert PolicyTable(policy).method("/a.B/C").fixed.route == "nameless"


def test_the_first_route_that_fits_is_taken():
    """Whatever stands behind it."""
    compiled = table(
        Route("other-method", Match(method="a.B/D")),
        Route("other-caller", Match(caller="payment")),
        Route("mine", Match(caller="order")),
        Route("never", Match(method="a.B/C")),
        Route("rest"),
    )
    assert compiled.method("/a.B/C").fixed.route == "mine"
    assert compiled.method("/a.B/D").fixed.route == "other-method"
    elsewhere = table(*compiled.policy.routes, caller="cart")
    assert elsewhere.method("/a.B/C").fixed.route == "never"
    assert elsewhere.method("/a.C/C").fixed.route == "rest"


@pytest.mark.parametrize(
    ("comparison", "value", "metadata", "fits"),
    [
        ("exact", "beta", (("x-group", "beta"),), True),
        ("exact", "beta", (("x-group", b"beta"),), True),
        ("exact", "beta", (("x-group", "beta2"),), False),
        ("exact", "beta", (("x-groups", "beta"),), False),
        ("exact", "beta", (), False),
        ("exact", "", (("x-group", ""),), True),
        ("exact", "", (), False),
        ("exact", "beta", (("x-group", "alpha"), ("x-group", "beta")), False),
        ("prefix", "be", (("a", "b"), ("x-group", "beta")), True),
        ("prefix", "beta-", (("x-group", "beta"),), False),
        ("prefix", "", (("x-group", "beta"),), True),
        ("prefix", "", (("x-group", ""),), True),
        ("prefix", "", (), False),
        ("present", "true", (("x-group", ""),), True),
        ("present", "true", (), False),
        ("present", "false", (), True),
        ("present", "false", (("x-group", ""),), False),
    ],
)
def test_metadata_is_compared_call_by_call(comparison, value, metadata, fits):
    """A method with such a route has no fixed policy; the first value of a key counts."""
    condition = metadata_match("x-group", comparison, value)
    routes = table(Route("one", Match(metadata=(condition,)))).method("/a.B/C")
    assert routes.fixed is None
    assert routes.choose(metadata).route == ("one" if fits else None)


def test_every_condition_on_metadata_has_to_hold():
    """One that fails is enough to go on to the next route."""
    both = (metadata_match("a", "exact", "1"), metadata_match("b", "present", "true"))
    routes = table(Route("both", Match(metadata=both)), Route("rest")).method("/a.B/C")
    assert routes.choose((("a", "1"), ("b", "2"))).route == "both"
    assert routes.choose((("a", "1"),)).route == "rest"
    assert routes.choose((("a", "2"), ("b", "2"))).route == "rest"


def test_routes_that_no_call_can_take_are_compiled_away():
    """Those for other methods and callers, and those behind one that takes every call."""
    compiled = table(
        beta("elsewhere", method="a.B/D"),
        beta("not-us", caller="payment"),
        beta("ours", method="a.B/*", caller="order"),
        Route("all", Match(caller="order")),
        beta("never", "gamma"),
    )
    routes = compiled.method("/a.B/C")
    assert repr(routes) == "<MethodRoutes ours all>"
    assert repr(compiled.method("/a.C/C")) == "<MethodRoutes all>"
    assert compiled.method("/a.C/C").fixed is not None
    assert routes.fixed is None
    assert routes.choose((("x-group", "beta"),)).route == "ours"
    assert routes.choose((("x-group", "gamma"),)).route == "all"


def test_choosing_gives_the_fixed_policy_where_there_is_one():
    """`fixed` is a short cut, not another answer."""
    routes = table(Route("all")).method("/a.B/C")
    assert routes.choose(()) is routes.choose((("x-group", "beta"),)) is routes.fixed


def test_a_route_takes_the_documents_blocks_where_it_has_none():
    """What it says itself takes the place of a whole block."""
    by_user, by_cart = (HashKey(KeySource.METADATA, name) for name in ("x-user", "x-cart"))
    document = {
        "timeout": 2.0,
        "retry": Retry(attempts=4, per_attempt_timeout=0.5),
        "hedge": Hedge(percentile=0.9),
        "hash_key": by_user,
    }
    silent, speaking = (
        table(route, **document).method(CHARGE).fixed
        for route in (
            Route("silent"),
            Route("speaking", timeout=0.5, retry=Retry(2), hedge=Hedge(), hash_key=by_cart),
        )
    )
    assert silent == MethodPolicy(
        2.0, document["retry"], True, Hedge(percentile=0.9), route="silent", hash_key=by_user
    )
    assert speaking == MethodPolicy(
        0.5, Retry(2), True, Hedge(), route="speaking", hash_key=by_cart
    )


def test_a_route_says_by_its_own_retry_what_may_be_repeated():
    """`non_idempotent` of the document is gone with its block; nothing else is ever hedged."""
    named = Retry(non_idempotent=frozenset({"a.B/C"}))
    routes = (
        beta("own", method="a.B/*"),
        Route("named", Match(caller="order"), retry=named, hedge=Hedge()),
    )
    compiled = table(*routes, hedge=Hedge())
    assert compiled.method("/a.B/C").choose(()).idempotent
    assert compiled.method("/a.B/C").choose(()).hedge == Hedge()
    assert not compiled.method("/a.B/D").choose(()).idempotent
    assert compiled.method("/a.B/D").choose(()).hedge is None
    by_route = table(Route("own", retry=Retry(2)), retry=named).method("/a.B/C").fixed
    assert not by_route.idempotent


def test_split_and_mirror_know_the_labels_of_their_subsets():
    """A call needs no other look at the policy; weights of 0 and mirrors of 0 % are gone."""
    subsets = {"v1": {"version": "v1"}, "v2": {"zone": "a", "version": "v2"}}
    v1 = Subset("v1", (("version", "v1"),))
    v2 = Subset("v2", (("version", "v2"), ("zone", "a")))
    targets = (Target("v1", 90), Target("v2", 10))
    compiled = table(
        Route("a", Match("a.B/C"), targets, Fallback.ANY, mirror=Mirror("v2", 0.05, 7)),
        Route("b", Match("a.B/D"), (Target("v1", 0), Target("v2", 1)), mirror=Mirror("v2", 0.0)),
        subsets=subsets,
    )
    one, other = compiled.method("/a.B/C").fixed, compiled.method("/a.B/D").fixed
    assert one.split == Split("a", ((v1, 90), (v2, 10)), Fallback.ANY)
    assert one.mirror == MirrorTo(v2, 0.05, 7)
    assert other.split == Split("b", ((v2, 1),), Fallback.NONE)
    assert other.mirror is None
    assert compiled.subsets == {"v1": v1, "v2": v2}
    assert compiled.subset("v2") is compiled.subsets["v2"]


def test_a_subset_that_the_policy_lacks_has_nobody():
    """A service's subsets may replace those that the mesh's routes name: not all are meant then."""
    missing = table(Route("a", split=(Target("v9", 1),))).method("/a.B/C").fixed.split.targets[0][0]
    assert missing == table().subset("v9")
    assert missing.is_unknown
    assert missing.labels  # or every instance would have all of them
    assert not Subset.of("v9", {"version": "v9"}).is_unknown


def test_a_fault_belongs_to_its_route():
    """Nothing is injected into other calls."""
    fault = Fault(abort_percent=0.5, abort_code=grpc.StatusCode.INTERNAL, max_active=3)
    compiled = table(Route("a", Match("a.B/C"), fault=fault))
    assert compiled.method("/a.B/C").fixed.fault == fault
    assert compiled.method("/a.B/D").fixed.fault is None


def test_methods_without_stream_bounds_have_none():
    """What a call looks at is None, also where a route takes the document's bounds away."""
    assert table().method("/a.B/C").fixed.stream is None
    bare = Route("bare", stream=StreamBounds())
    assert table(bare, stream=StreamBounds(idle=1.0)).method("/a.B/C").fixed.stream is None


def test_a_routes_stream_bounds_stand_in_for_the_documents():
    """As one block: what the route does not say of it, nobody says."""
    routes = (
        Route("own", Match(method="a.B/C"), stream=StreamBounds(max=9.0)),
        Route("rest", timeout=1.0),
    )
    compiled = table(*routes, stream=StreamBounds(idle=1.0, max=2.0))
    assert compiled.method("/a.B/C").fixed.stream == StreamBounds(max=9.0)
    assert compiled.method("/a.B/D").fixed.stream == StreamBounds(idle=1.0, max=2.0)


def test_a_timeout_of_the_caller_takes_the_place_of_the_longest_life_alone():
    """A stream may still not be idle for longer than the policy says; nothing else changes."""
    policy = table(Route("all"), stream=StreamBounds(idle=1.0, max=2.0)).method("/a.B/C").fixed
    assert policy.timed == replace(policy, stream=StreamBounds(idle=1.0))
    unbounded = table().method("/a.B/C").fixed
    assert unbounded.timed == unbounded


def test_a_call_that_is_sent_once_keeps_its_route():
    """Only another attempt is ruled out."""
    v1 = {"v1": {"version": "v1"}}
    route = Route("a", split=(Target("v1", 1),), mirror=Mirror("v1", 1.0), fault=Fault(delay=1.0))
    policy = table(route, subsets=v1, timeout=1.0, hedge=Hedge()).method(CHARGE).fixed
    once = policy.once
    assert (once.retry.attempts, once.hedge) == (1, None)
    for kept in ("timeout", "idempotent", "route", "split", "mirror", "fault", "hash_key"):
        assert getattr(once, kept) == getattr(policy, kept)


def test_a_subset_reads_as_its_name_and_labels():
    """As errors show it."""
    assert str(Subset.of("v2", {"zone": "a", "version": "v2"})) == "'v2' (version=v2, zone=a)"
