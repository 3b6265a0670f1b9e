"""What policy documents mean, and which are refused."""

import copy
import json
import re
from dataclasses import fields
from pathlib import Path
from textwrap import dedent

import grpc
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from meshrpc.errors import PolicyError
from meshrpc.policy import load_document, load_documents
from meshrpc.policy.loading import child_path
from meshrpc.policy.model import (
    Backoff,
    Balancer,
    BalancerKind,
    CircuitBreaker,
    Comparison,
    Concurrency,
    ConcurrencyMode,
    EffectivePolicy,
    Fallback,
    Fault,
    HashKey,
    Hedge,
    KeySource,
    LimitMode,
    Locality,
    Match,
    MetadataMatch,
    Mirror,
    Outlier,
    Policy,
    RateLimit,
    RateOverride,
    Retry,
    RetryBudget,
    Route,
    ShareMode,
    SlowStart,
    StreamBounds,
    Target,
    Throttle,
    effective,
)

REPOSITORY = Path(__file__).parents[2]

WHOLE_LANGUAGE = """\
schema: meshrpc.policy/v1
service: payment
timeout: 2s
balancer: {peak_ewma: {decay: 10s}}          # round_robin random weighted_round_robin least_request peak_ewma ring_hash maglev
retry: {attempts: 3, codes: [UNAVAILABLE], per_attempt_timeout: 600ms, backoff: {base: 25ms, max: 250ms}}
retry_budget: {ratio: 10%, min_per_second: 1}
stream: {idle: 5m, max: 12h}
hedge: {percentile: 95%, max_extra: 5%}
outlier: {consecutive_failures: 5, success_rate_below: 80%, base_ejection: 5s, max_ejection: 300s, max_ejected: 10%}
slow_start: {window: 30s}
throttle: {multiplier: 2, window: 3s, max_rejected: 80%}
circuit_breaker: {max_requests: 1024}
hash_key: metadata.x-user
subset_size: 100
locality: {zone: {min_instances: 6}}
subsets:
  v1: {version: v1}                          # labels an instance must have
  v2: {version: v2}
routes:                                      # first match wins
  - name: beta
    match: {method: payment.v1.PaymentService/*, caller: order, metadata: {x-group: {exact: beta}}}
    split: [{subset: v2, weight: 1}]
    fallback: none
    timeout: 500ms
    retry: {attempts: 2, codes: [UNAVAILABLE], per_attempt_timeout: 200ms, backoff: {base: 25ms, max: 50ms}}
    fault: {delay: {percent: 10%, duration: 50ms}, abort: {percent: 1%, code: UNAVAILABLE}}
  - name: searches
    match: {method: payment.v1.PaymentService/List, metadata: {x-b: {prefix: beta-}, x-a: {present: true}}}
    hedge: {percentile: 99%, max_extra: 1%}
    hash_key: field.query.text
    stream: {idle: 30s}
    fault: {abort: {percent: 2%, code: INTERNAL}, max_active: 7}
  - name: rest
    split: [{subset: v1, weight: 90}, {subset: v2, weight: 10}]
    mirror: {subset: v2, percent: 5%, max_active: 9}
rate_limits:
  - {name: per-caller, key: [caller], rate: 100/s, burst: 50, share: instance, mode: enforce}
  - name: whole
    key: [caller, method, metadata.x-tenant]
    rate: 1000/s
    burst: 100
    share: fleet
    overrides:
      - values: {caller: batch, method: payment.v1.PaymentService/List, metadata.x-tenant: acme}
        rate: 10/s
        burst: 5
concurrency: {adaptive: {max: 200}}
telemetry: {tracing: {sample: 1%}, access_log: {sample: 100%}}
"""

HEAD = "schema: meshrpc.policy/v1\nservice: payment\n"


def problems_of(text, **options):
    with pytest.raises(PolicyError) as caught:
        load_document(text, **options)
    return caught.value.problems


def test_the_whole_language_loads():
    """The document with every part of the language loads as it stands."""
    document = load_document(WHOLE_LANGUAGE)
    assert document.policy == Policy(
        service="payment",
        timeout=2.0,
        balancer=Balancer(BalancerKind.PEAK_EWMA, decay=10.0),
        retry=Retry(
            attempts=3,
            codes=frozenset({grpc.StatusCode.UNAVAILABLE}),
            per_attempt_timeout=0.6,
            backoff=Backoff(base=0.025, max=0.25),
        ),
        retry_budget=RetryBudget(ratio=0.1, min_per_second=1.0),
        stream=StreamBounds(idle=300.0, max=43_200.0),
        hedge=Hedge(percentile=0.95, max_extra=0.05),
        outlier=Outlier(
            consecutive_failures=5,
            success_rate_below=0.8,
            base_ejection=5.0,
            max_ejection=300.0,
            max_ejected=0.1,
        ),
        slow_start=SlowStart(window=30.0),
        throttle=Throttle(multiplier=2.0, window=3.0, max_rejected=0.8),
        circuit_breaker=CircuitBreaker(max_requests=1024),
        hash_key=HashKey(KeySource.METADATA, "x-user"),
        subset_size=100,
        locality=Locality(zone=True, min_instances=6),
        subsets={"v1": {"version": "v1"}, "v2": {"version": "v2"}},
        routes=(
            Route(
                "beta",
                match=Match(
                    method="payment.v1.PaymentService/*",
                    caller="order",
                    metadata=(MetadataMatch("x-group", Comparison.EXACT, "beta"),),
                ),
                split=(Target("v2", 1),),
                fallback=Fallback.NONE,
                fault=Fault(
                    delay_percent=0.1,
                    delay=0.05,
                    abort_percent=0.01,
                    abort_code=grpc.StatusCode.UNAVAILABLE,
                ),
                timeout=0.5,
                retry=Retry(
                    attempts=2,
                    codes=frozenset({grpc.StatusCode.UNAVAILABLE}),
                    per_attempt_timeout=0.2,
                    backoff=Backoff(base=0.025, max=0.05),
                ),
            ),
            Route(
                "searches",
                match=Match(
                    method="payment.v1.PaymentService/List",
                    metadata=(
                        MetadataMatch("x-a", Comparison.PRESENT, "true"),
                        MetadataMatch("x-b", Comparison.PREFIX, "beta-"),
                    ),
                ),
                fault=Fault(abort_percent=0.02, abort_code=grpc.StatusCode.INTERNAL, max_active=7),
                stream=StreamBounds(idle=30.0),
                hedge=Hedge(percentile=0.99, max_extra=0.01),
                hash_key=HashKey(KeySource.FIELD, "query.text"),
            ),
            Route(
                "rest",
                split=(Target("v1", 90), Target("v2", 10)),
                mirror=Mirror("v2", 0.05, max_active=9),
            ),
        ),
        rate_limits=(
            RateLimit(name="per-caller", key=("caller",), rate=100.0, burst=50),
            RateLimit(
                name="whole",
                key=("caller", "method", "metadata.x-tenant"),
                rate=1000.0,
                burst=100,
                share=ShareMode.FLEET,
                overrides=(
                    RateOverride(
                        values=(
                            ("caller", "batch"),
                            ("metadata.x-tenant", "acme"),
                            ("method", "payment.v1.PaymentService/List"),
                        ),
                        rate=10.0,
                        burst=5,
                    ),
                ),
            ),
        ),
        concurrency=Concurrency(ConcurrencyMode.ADAPTIVE, 200),
    )
    assert document.warnings == ("payment: telemetry: accepted, not carried out by this release",)
    assert document.ignored == ()


def leaves(tree, path=()):
    """Yield the path of every scalar of a tree."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, child in children:
        if isinstance(child, str):
            yield (*path, key)
        else:
            yield from leaves(child, (*path, key))


TREE = json.loads(load_document(WHOLE_LANGUAGE).canonical)
FREE_TEXT = {("subsets", "v1", "version"), ("subsets", "v2", "version")}


@pytest.mark.parametrize("leaf", sorted(set(leaves(TREE)) - FREE_TEXT, key=str), ids=str)
def test_every_field_of_the_language_is_typed(leaf):
    """No field anywhere takes a list or a text of the wrong kind, and the error is at the field."""
    for wrong in (["x"], "é !"):
        tree = copy.deepcopy(TREE)
        at = tree
        for key in leaf[:-1]:
            at = at[key]
        at[leaf[-1]] = wrong
        path = ""
        for key in leaf:
            path = child_path(path, key)
        assert path in [problem.path for problem in problems_of(json.dumps(tree))]


@pytest.mark.parametrize(
    ("body", "policy"),
    [
        ("", Policy("payment")),
        ("timeout: 1.5m", Policy("payment", timeout=90.0)),
        ("timeout: 1h", Policy("payment", timeout=3600.0)),
        ("stream: {}", Policy("payment", stream=StreamBounds())),
        ("stream: {idle: 1m, max: 24h}", Policy("payment", stream=StreamBounds(60.0, 86_400.0))),
        (
            "routes: [{name: a, match: {caller: b}}, {name: c, stream: {max: 1h}, timeout: 1s}]",
            Policy(
                "payment",
                routes=(
                    Route("a", Match(caller="b")),
                    Route("c", timeout=1.0, stream=StreamBounds(max=3600.0)),
                ),
            ),
        ),
        ("balancer: random", Policy("payment", balancer=Balancer(BalancerKind.RANDOM))),
        ("balancer: peak_ewma", Policy("payment", balancer=Balancer())),
        (
            "balancer: {peak_ewma: {decay: 2s}}",
            Policy("payment", balancer=Balancer(BalancerKind.PEAK_EWMA, decay=2.0)),
        ),
        (
            "balancer: {round_robin: {}}",
            Policy("payment", balancer=Balancer(BalancerKind.ROUND_ROBIN)),
        ),
        (
            """
            balancer:
              weighted_round_robin: {blackout: 1s, expiry: 1m, update: 500ms, error_penalty: 0}
            """,
            Policy(
                "payment",
                balancer=Balancer(
                    BalancerKind.WEIGHTED_ROUND_ROBIN,
                    blackout=1.0,
                    expiry=60.0,
                    update=0.5,
                    error_penalty=0.0,
                ),
            ),
        ),
        (
            "balancer: {least_request: {choices: 10}}",
            Policy("payment", balancer=Balancer(BalancerKind.LEAST_REQUEST, choices=10)),
        ),
        (
            "balancer: {ring_hash: {max_load: 1.05}}",
            Policy("payment", balancer=Balancer(BalancerKind.RING_HASH, max_load=1.05)),
        ),
        (
            "balancer: {maglev: {max_load: 100}}",
            Policy("payment", balancer=Balancer(BalancerKind.MAGLEV, max_load=100.0)),
        ),
        *(
            (f"balancer: {kind}", Policy("payment", balancer=Balancer(kind)))
            for kind in BalancerKind
        ),
        (
            "hash_key: field.user_id",
            Policy("payment", hash_key=HashKey(KeySource.FIELD, "user_id")),
        ),
        (
            "hash_key: metadata.x.y-z",
            Policy("payment", hash_key=HashKey(KeySource.METADATA, "x.y-z")),
        ),
        ("subset_size: 1", Policy("payment", subset_size=1)),
        ("subset_size: 100000", Policy("payment", subset_size=100_000)),
        ("locality: none", Policy("payment", locality=Locality())),
        ("locality: zone", Policy("payment", locality=Locality(zone=True))),
        (
            "locality: {zone: {min_instances: 1}}",
            Policy("payment", locality=Locality(zone=True, min_instances=1)),
        ),
        ("routes: []", Policy("payment", routes=())),
        ("routes: [{name: all}]", Policy("payment", routes=(Route("all"),))),
        (
            """
            routes:
              - name: a
                match: {metadata: {k: {present: false}}}
                split: [{subset: v1, weight: 0}, {subset: v2, weight: 1000000}]
                fallback: any
                retry: {}
              - name: b
                mirror: {subset: v1, percent: 0%}
                fault: {delay: {percent: 100%, duration: 1s}}
            subsets: {v1: {version: v1}, v2: {version: v2}}
            """,
            Policy(
                "payment",
                subsets={"v1": {"version": "v1"}, "v2": {"version": "v2"}},
                routes=(
                    Route(
                        "a",
                        Match(metadata=(MetadataMatch("k", Comparison.PRESENT, "false"),)),
                        (Target("v1", 0), Target("v2", 1_000_000)),
                        Fallback.ANY,
                        retry=Retry(),
                    ),
                    Route("b", mirror=Mirror("v1", 0.0), fault=Fault(delay_percent=1.0, delay=1.0)),
                ),
            ),
        ),
        ("retry: {}", Policy("payment", retry=Retry())),
        ("retry: {attempts: 1, codes: []}", Policy("payment", retry=Retry(1, frozenset()))),
        (
            "retry: {non_idempotent: [a.B/C, D/E]}",
            Policy("payment", retry=Retry(non_idempotent=frozenset({"a.B/C", "D/E"}))),
        ),
        ("retry: {backoff: {max: 1s}}", Policy("payment", retry=Retry(backoff=Backoff(max=1.0)))),
        (
            "retry_budget: {ratio: 0%, min_per_second: 0.5}",
            Policy("payment", retry_budget=RetryBudget(0.0, 0.5)),
        ),
        ("hedge: {}", Policy("payment", hedge=Hedge())),
        (
            "hedge: {percentile: 99%, max_extra: 0%}",
            Policy("payment", hedge=Hedge(percentile=0.99, max_extra=0.0)),
        ),
        (
            "hedge: {percentile: 0.1%, max_extra: 100%}",
            Policy("payment", hedge=Hedge(percentile=0.001, max_extra=1.0)),
        ),
        ("outlier: {}", Policy("payment", outlier=Outlier())),
        (
            "outlier: {consecutive_failures: 1, success_rate_below: 0%, max_ejected: 0%}",
            Policy(
                "payment",
                outlier=Outlier(consecutive_failures=1, success_rate_below=0.0, max_ejected=0.0),
            ),
        ),
        (
            "outlier: {consecutive_failures: 1000, success_rate_below: 100%, max_ejected: 100%}",
            Policy(
                "payment",
                outlier=Outlier(consecutive_failures=1000, success_rate_below=1.0, max_ejected=1.0),
            ),
        ),
        (
            "outlier: {base_ejection: 1m, max_ejection: 1m}",
            Policy("payment", outlier=Outlier(base_ejection=60.0, max_ejection=60.0)),
        ),
        ("slow_start: {}", Policy("payment", slow_start=SlowStart())),
        ("slow_start: {window: 1ms}", Policy("payment", slow_start=SlowStart(0.001))),
        ("throttle: {}", Policy("payment", throttle=Throttle())),
        (
            "throttle: {multiplier: 1.1, window: 500ms, max_rejected: 0%}",
            Policy("payment", throttle=Throttle(1.1, 0.5, 0.0)),
        ),
        (
            "throttle: {multiplier: 1000, max_rejected: 95%}",
            Policy("payment", throttle=Throttle(multiplier=1000.0, max_rejected=0.95)),
        ),
        ("circuit_breaker: {}", Policy("payment", circuit_breaker=CircuitBreaker())),
        (
            "circuit_breaker: {max_requests: 1}",
            Policy("payment", circuit_breaker=CircuitBreaker(1)),
        ),
        (
            "circuit_breaker: {max_requests: 1000000000}",
            Policy("payment", circuit_breaker=CircuitBreaker(1_000_000_000)),
        ),
        ("rate_limits: []", Policy("payment", rate_limits=())),
        ("concurrency: adaptive", Policy("payment", concurrency=Concurrency())),
        (
            "concurrency: {fixed: {limit: 50}}",
            Policy("payment", concurrency=Concurrency(ConcurrencyMode.FIXED, 50)),
        ),
        ("concurrency: off", Policy("payment", concurrency=Concurrency(ConcurrencyMode.OFF))),
        (
            """
            rate_limits:
              - {name: a, rate: 1/s, burst: 1, share: fleet, key: [metadata.x-y], max_keys: 2,
                 overrides: [{values: {metadata.x-y: ""}, rate: 30/m, burst: 2},
                             {values: {metadata.x-y: unknown}, rate: 2/s, burst: 3}]}
            """,
            Policy(
                "payment",
                rate_limits=(
                    RateLimit(
                        "a",
                        1.0,
                        1,
                        ("metadata.x-y",),
                        share=ShareMode.FLEET,
                        max_keys=2,
                        overrides=(
                            RateOverride((("metadata.x-y", ""),), 0.5, 2),
                            RateOverride((("metadata.x-y", "unknown"),), 2.0, 3),
                        ),
                    ),
                ),
            ),
        ),
        (
            """
            rate_limits:
              - {name: a, rate: 30/m, burst: 1, key: [caller, method, metadata.x-y], mode: shadow,
                 max_keys: 7}
            """,
            Policy(
                "payment",
                rate_limits=(
                    RateLimit(
                        "a",
                        0.5,
                        1,
                        ("caller", "method", "metadata.x-y"),
                        mode=LimitMode.SHADOW,
                        max_keys=7,
                    ),
                ),
            ),
        ),
    ],
)
def test_fields_carried_out_reach_the_policy(body, policy):
    """Each field arrives with its type and unit; what is not said stays None or the default."""
    document = load_document(HEAD + dedent(body))
    assert document.policy == policy
    assert document.warnings == ()


def test_a_block_not_carried_out_is_warned_of():
    """A valid block that changes nothing in this release says so, and changes nothing."""
    document = load_document(HEAD + "telemetry: {}")
    assert document.warnings == ("payment: telemetry: accepted, not carried out by this release",)
    assert document.policy == Policy("payment")


BAD = [
    # the document itself
    ("service: payment", "schema", "", "this field is required"),
    ("schema: meshrpc.policy/v1", "service", "", "this field is required"),
    ("schema: meshrpc.policy/v2\nservice: a", "schema", "meshrpc.policy/v2", "expected meshrpc"),
    ("schema: meshrpcXpolicy/v1\nservice: a", "schema", "meshrpcXpolicy/v1", "expected meshrpc"),
    ("schema: meshrpc.policy/v1\nservice: a b", "service", "a b", "expected a service name"),
    ("schema: meshrpc.policy/v1\nservice: [a]", "service", "[a]", "expected a service name"),
    ("- a", "document", "[a]", "expected a mapping with schema"),
    ("hello", "document", "hello", "expected a mapping with schema"),
    ("+timout: 2s", "timout", "2s", "unknown field; did you mean timeout?"),
    ("+Timeout: 2s", "Timeout", "2s", "unknown field; did you mean timeout?"),
    ("+zzz: {a: b}", "zzz", "{a: b}", "unknown field; known here: schema, service, timeout"),
    ("+timeout: ~", "timeout", "~", "a null"),
    ("+timeout: 1s\ntimeout: 2s", "timeout", "2s", "a duplicate key"),
    # units
    ("+timeout: 2", "timeout", "2", "expected a duration"),
    ("+timeout: 2 s", "timeout", "2 s", "expected a duration"),
    ("+timeout: -2s", "timeout", "-2s", "expected a duration"),
    ("+timeout: 2d", "timeout", "2d", "expected a duration"),
    ("+timeout: 1e3s", "timeout", "1e3s", "expected a duration"),
    ("+timeout: infs", "timeout", "infs", "expected a duration"),
    ("+timeout: ٢s", "timeout", "٢s", "expected a duration"),
    ("+timeout: 0ms", "timeout", "0ms", "a duration is more than 0"),
    ("+timeout: 8761h", "timeout", "8761h", "a duration is more than 0"),
    ("+timeout: {s: 2}", "timeout", "{s: 2}", "expected a duration"),
    ("+retry_budget: {ratio: 0.1}", "retry_budget.ratio", "0.1", "expected a percentage"),
    ("+retry_budget: {ratio: 101%}", "retry_budget.ratio", "101%", "a percentage is from 0%"),
    (
        "+retry_budget: {min_per_second: 1/s}",
        "retry_budget.min_per_second",
        "1/s",
        "expected a number from 0",
    ),
    # balancer
    (
        "+balancer: roundrobin",
        "balancer",
        "roundrobin",
        "expected one of round_robin, random, weighted_round_robin, least_request, peak_ewma, ring_hash, maglev; did you mean round_robin?",
    ),
    ("+balancer: [random]", "balancer", "[random]", "expected one of round_robin"),
    (
        "+balancer: {random: {}, peak_ewma: {}}",
        "balancer",
        "{random: {}, peak_ewma: {}}",
        "expected one of round_robin",
    ),
    ("+balancer: {random: {decay: 1s}}", "balancer.random.decay", "1s", "unknown field"),
    ("+balancer: {peak_ewma: {decay: 10}}", "balancer.peak_ewma.decay", "10", "expected a dur"),
    ("+balancer: {maglev: {decay: 1s}}", "balancer.maglev.decay", "1s", "unknown field"),
    ("+balancer: {maglev: {max_load: 1}}", "balancer.maglev.max_load", "1", "expected a number"),
    (
        "+balancer: {ring_hash: {max_load: 125%}}",
        "balancer.ring_hash.max_load",
        "125%",
        "expected a number from 1.05 to 100, without a unit",
    ),
    (
        "+balancer: {least_request: {choices: 1}}",
        "balancer.least_request.choices",
        "1",
        "expected a whole number from 2 to 10",
    ),
    (
        "+balancer: {weighted_round_robin: {update: 0s}}",
        "balancer.weighted_round_robin.update",
        "0s",
        "a duration is more than 0",
    ),
    # keys, subset size, locality
    ("+hash_key: x-user", "hash_key", "x-user", "expected metadata.<key in lower case> or field."),
    ("+hash_key: metadata.X", "hash_key", "metadata.X", "expected metadata.<key in lower case>"),
    ("+hash_key: metadata.a-bin", "hash_key", "metadata.a-bin", "expected metadata.<key in lower"),
    ("+hash_key: field.", "hash_key", "field.", "expected metadata.<key in lower case> or field."),
    ("+hash_key: field.a..b", "hash_key", "field.a..b", "expected metadata.<key in lower case>"),
    ("+hash_key: field.items[0]", "hash_key", "field.items[0]", "expected metadata.<key in lower"),
    ("+hash_key: [field.a]", "hash_key", "[field.a]", "expected metadata.<key in lower case>"),
    ("+subset_size: 0", "subset_size", "0", "expected a whole number from 1 to 100000"),
    ("+subset_size: 100001", "subset_size", "100001", "expected a whole number from 1 to 100000"),
    ("+locality: region", "locality", "region", "expected one of none, zone"),
    ("+locality: {none: {min_instances: 1}}", "locality.none.min_instances", "1", "unknown field"),
    (
        "+locality: {zone: {min_instances: 0}}",
        "locality.zone.min_instances",
        "0",
        "expected a whole number from 1",
    ),
    # retry
    ("+retry: 3", "retry", "3", "expected a mapping with attempts"),
    ("+retry: {attempts: 0}", "retry.attempts", "0", "expected a whole number from 1 to 5"),
    ("+retry: {attempts: 6}", "retry.attempts", "6", "expected a whole number from 1 to 5"),
    ("+retry: {attempts: 2.0}", "retry.attempts", "2.0", "expected a whole number from 1 to 5"),
    ("+retry: {atempts: 2}", "retry.atempts", "2", "unknown field; did you mean attempts?"),
    ("+retry: {codes: UNAVAILABLE}", "retry.codes", "UNAVAILABLE", "expected a list"),
    ("+retry: {codes: [OK]}", "retry.codes[0]", "OK", "expected one of"),
    (
        "+retry: {codes: [ABORTED, unavailable]}",
        "retry.codes[1]",
        "unavailable",
        "expected one of",
    ),
    ("+retry: {codes: [ABORTED, ABORTED]}", "retry.codes[1]", "ABORTED", "this is listed twice"),
    (
        "+retry: {non_idempotent: [a.B/*]}",
        "retry.non_idempotent[0]",
        "a.B/*",
        "expected an exact method, pkg.Service/Method, without wildcards",
    ),
    (
        "+retry: {non_idempotent: [/a.B/C]}",
        "retry.non_idempotent[0]",
        "/a.B/C",
        "expected an exact method",
    ),
    (
        "+retry: {backoff: {base: 2s, max: 1s}}",
        "retry.backoff.base",
        "2s",
        "base (2s) is at most max (1s)",
    ),
    (
        "+retry: {backoff: {max: 1ms}}",
        "retry.backoff.max",
        "1ms",
        "base (0.025s) is at most max (0.001s)",
    ),
    # rate limits
    ("+rate_limits: {name: a}", "rate_limits", "{name: a}", "expected a list"),
    ("+rate_limits: [{rate: 1/s, burst: 1}]", "rate_limits[0].name", "", "this field is req"),
    ("+rate_limits: [{name: a, rate: 1/s}]", "rate_limits[0].burst", "", "this field is req"),
    (
        "+rate_limits: [{name: a, rate: 0/s, burst: 1}]",
        "rate_limits[0].rate",
        "0/s",
        "a rate is more than 0",
    ),
    (
        "+rate_limits: [{name: a, rate: 10, burst: 1}]",
        "rate_limits[0].rate",
        "10",
        "expected a rate",
    ),
    (
        "+rate_limits: [{name: a, rate: 1/s, burst: 0}]",
        "rate_limits[0].burst",
        "0",
        "expected a whole number from 1",
    ),
    (
        "+rate_limits: [{name: a, rate: 1/s, burst: 1}, {name: a, rate: 2/s, burst: 1}]",
        "rate_limits[1].name",
        "a",
        "this is listed twice",
    ),
    (
        "+rate_limits: [{name: a, rate: 1/s, burst: 1, key: [user]}]",
        "rate_limits[0].key[0]",
        "user",
        "expected caller, method or metadata.<key in lower case>",
    ),
    (
        "+rate_limits: [{name: a, rate: 1/s, burst: 1, key: [metadata.X]}]",
        "rate_limits[0].key[0]",
        "metadata.X",
        "expected caller, method or metadata.<key in lower case>",
    ),
    (
        "+rate_limits: [{name: a, rate: 1/s, burst: 1, key: [caller, caller]}]",
        "rate_limits[0].key[1]",
        "caller",
        "this is listed twice",
    ),
    (
        "+rate_limits: [{name: a, rate: 1/s, burst: 1, overrides: [{rate: 1/s, burst: 1}]}]",
        "rate_limits[0].overrides[0].values",
        "",
        "this field is required",
    ),
    (
        (
            "+rate_limits: [{name: a, rate: 1/s, burst: 1,"
            " overrides: [{values: {caller: x}, rate: 1/s, burst: 1}]}]"
        ),
        "rate_limits[0].overrides[0].values",
        "{caller: x}",
        "a limit without key has only one bucket",
    ),
    (
        (
            "+rate_limits: [{name: a, rate: 1/s, burst: 1, key: [caller, method],"
            " overrides: [{values: {caller: x}, rate: 1/s, burst: 1}]}]"
        ),
        "rate_limits[0].overrides[0].values",
        "{caller: x}",
        "expected a value for each key of the limit: caller, method",
    ),
    (
        (
            "+rate_limits: [{name: a, rate: 1/s, burst: 1, key: [method],"
            " overrides: [{values: {method: a.B/*}, rate: 1/s, burst: 1}]}]"
        ),
        "rate_limits[0].overrides[0].values.method",
        "a.B/*",
        "expected an exact method",
    ),
    (
        (
            "+rate_limits: [{name: a, rate: 1/s, burst: 1, key: [caller], overrides:"
            " [{values: {caller: x}, rate: 1/s, burst: 1}, {values: {caller: x}, rate: 2/s, burst: 1}]}]"
        ),
        "rate_limits[0].overrides[1].values",
        "{caller: x}",
        "this is listed twice",
    ),
    (
        (
            "+rate_limits: [{name: a, rate: 1/s, burst: 1, max_keys: 1, key: [caller], overrides:"
            " [{values: {caller: x}, rate: 1/s, burst: 1}, {values: {caller: y}, rate: 2/s, burst: 1}]}]"
        ),
        "rate_limits[0].max_keys",
        "1",
        "there are 2 overrides",
    ),
    (
        "+rate_limits: [{name: a, rate: 1/s, burst: 1, share: all}]",
        "rate_limits[0].share",
        "all",
        "expected one of instance, fleet",
    ),
    (
        "+rate_limits: [{name: a, rate: 1/s, burst: 1, mode: shadw}]",
        "rate_limits[0].mode",
        "shadw",
        "expected one of enforce, shadow; did you mean shadow?",
    ),
    # hedge
    ("+hedge: on", "hedge", "on", "expected a mapping with percentile, max_extra"),
    ("+hedge: {percentile: 0%}", "hedge.percentile", "0%", "a percentile is more than 0% and less"),
    (
        "+hedge: {percentile: 100%}",
        "hedge.percentile",
        "100%",
        "a percentile is more than 0% and less than 100%",
    ),
    ("+hedge: {percentile: 95}", "hedge.percentile", "95", "expected a percentage"),
    ("+hedge: {max_extra: 101%}", "hedge.max_extra", "101%", "a percentage is from 0% to 100%"),
    ("+hedge: {max_extra: 0.05}", "hedge.max_extra", "0.05", "expected a percentage"),
    ("+hedge: {delay: 10ms}", "hedge.delay", "10ms", "unknown field; known here: percentile, max"),
    # outlier
    ("+outlier: []", "outlier", "[]", "expected a mapping with consecutive_failures"),
    (
        "+outlier: {consecutive_failures: 0}",
        "outlier.consecutive_failures",
        "0",
        "expected a whole number from 1 to 1000",
    ),
    (
        "+outlier: {consecutive_failures: 1001}",
        "outlier.consecutive_failures",
        "1001",
        "expected a whole number from 1 to 1000",
    ),
    (
        "+outlier: {success_rate_below: 100.1%}",
        "outlier.success_rate_below",
        "100.1%",
        "a percentage is from 0% to 100%",
    ),
    ("+outlier: {success_rate_below: 0.8}", "outlier.success_rate_below", "0.8", "expected a perc"),
    ("+outlier: {base_ejection: 5}", "outlier.base_ejection", "5", "expected a duration"),
    ("+outlier: {base_ejection: 0s}", "outlier.base_ejection", "0s", "a duration is more than 0"),
    ("+outlier: {max_ejection: 0s}", "outlier.max_ejection", "0s", "a duration is more than 0"),
    (
        "+outlier: {base_ejection: 10s, max_ejection: 5s}",
        "outlier.base_ejection",
        "10s",
        "base_ejection (10s) is at most max_ejection (5s)",
    ),
    (
        "+outlier: {base_ejection: 301s}",
        "outlier.base_ejection",
        "301s",
        "base_ejection (301s) is at most max_ejection (300s)",
    ),
    (
        "+outlier: {max_ejection: 4s}",
        "outlier.max_ejection",
        "4s",
        "base_ejection (5s) is at most max_ejection (4s)",
    ),
    ("+outlier: {max_ejected: 10}", "outlier.max_ejected", "10", "expected a percentage"),
    ("+outlier: {max_ejected: 101%}", "outlier.max_ejected", "101%", "a percentage is from 0%"),
    ("+outlier: {max_eject: 1s}", "outlier.max_eject", "1s", "unknown field; did you mean max_ej"),
    # slow start
    ("+slow_start: 30s", "slow_start", "30s", "expected a mapping with window"),
    ("+slow_start: {window: 30}", "slow_start.window", "30", "expected a duration"),
    ("+slow_start: {window: 0s}", "slow_start.window", "0s", "a duration is more than 0"),
    ("+slow_start: {windw: 1s}", "slow_start.windw", "1s", "unknown field; did you mean window?"),
    # throttle
    ("+throttle: off", "throttle", "off", "expected a mapping with multiplier, window, max_reject"),
    (
        "+throttle: {multiplier: 1}",
        "throttle.multiplier",
        "1",
        "expected a number from 1.1 to 1000, without a unit",
    ),
    (
        "+throttle: {multiplier: 1001}",
        "throttle.multiplier",
        "1001",
        "expected a number from 1.1 to 1000, without a unit",
    ),
    ("+throttle: {window: 3}", "throttle.window", "3", "expected a duration"),
    ("+throttle: {window: 0ms}", "throttle.window", "0ms", "a duration is more than 0"),
    (
        "+throttle: {max_rejected: 95.1%}",
        "throttle.max_rejected",
        "95.1%",
        "at most 95%: some calls must find out when the service is back",
    ),
    ("+throttle: {max_rejected: 101%}", "throttle.max_rejected", "101%", "a percentage is from 0%"),
    ("+throttle: {max_rejected: 0.8}", "throttle.max_rejected", "0.8", "expected a percentage"),
    # circuit breaker
    ("+circuit_breaker: 1024", "circuit_breaker", "1024", "expected a mapping with max_requests"),
    (
        "+circuit_breaker: {max_requests: 0}",
        "circuit_breaker.max_requests",
        "0",
        "expected a whole number from 1 to 1000000000",
    ),
    (
        "+circuit_breaker: {max_requests: 1000000001}",
        "circuit_breaker.max_requests",
        "1000000001",
        "expected a whole number from 1 to 1000000000",
    ),
    ("+circuit_breaker: {max: 1}", "circuit_breaker.max", "1", "unknown field"),
    # what is accepted is checked no less
    ("+subsets: {v1: {}}", "subsets.v1", "{}", "expected a mapping with at least one"),
    ("+subsets: {v1: version}", "subsets.v1", "version", "expected a mapping with at least one"),
    ("+subsets: {a b: {version: v1}}", 'subsets["a b"]', "a b", "a name has letters"),
    ("+concurrency: 10", "concurrency", "10", "expected one of adaptive, fixed, off"),
    ("+concurrency: fixed", "concurrency.fixed.limit", "", "this field is required"),
    (
        "+concurrency: {fixed: {limit: 0}}",
        "concurrency.fixed.limit",
        "0",
        "expected a whole number from 1 to 1000000",
    ),
    (
        "+concurrency: {adaptive: {max: 1000001}}",
        "concurrency.adaptive.max",
        "1000001",
        "expected a whole number from 1 to 1000000",
    ),
    ("+concurrency: {adaptive: {limit: 1}}", "concurrency.adaptive.limit", "1", "unknown field"),
    ("+concurrency: {off: {max: 1}}", "concurrency.off.max", "1", "unknown field"),
    ("+telemetry: {tracing: {}}", "telemetry.tracing.sample", "", "this field is required"),
    ("+stream: {idle: 0s}", "stream.idle", "0s", "a duration is more than 0"),
    ("+routes: [{match: {caller: a}}]", "routes[0].name", "", "this field is required"),
    (
        "+routes: [{name: a}, {name: b, match: {caller: x}}]",
        "routes[0]",
        "{name: a}",
        "a route without match takes every call, so it must be the last",
    ),
    (
        "+routes: [{name: a, match: {caller: x}}, {name: a}]",
        "routes[1].name",
        "a",
        "this is listed twice",
    ),
    ("+routes: [{name: a, match: {}}]", "routes[0].match", "{}", "say method, caller or"),
    (
        "+routes: [{name: a, match: {method: '*'}}]",
        "routes[0].match.method",
        "*",
        "expected pkg.Service/Method or pkg.Service/*",
    ),
    (
        "+routes: [{name: a, match: {metadata: {k: {regex: a.*}}}}]",
        "routes[0].match.metadata.k",
        "regex",
        "expected one of exact, prefix, present",
    ),
    (
        "+routes: [{name: a, match: {metadata: {X-Group: {exact: a}}}}]",
        "routes[0].match.metadata.X-Group",
        "X-Group",
        "a metadata key is lower case",
    ),
    (
        "+routes: [{name: a, match: {metadata: {k: present}}}]",
        "routes[0].match.metadata.k.present",
        "{}",
        "expected one of true, false",
    ),
    (
        "+routes: [{name: a, fallback: any}]",
        "routes[0].fallback",
        "any",
        "without split there is nothing to fall back from: add split, or leave fallback out",
    ),
    ("+routes: [{name: a, fallbck: any}]", "routes[0].fallbck", "any", "unknown field; did you"),
    ("+routes: [{name: a, hash_key: x}]", "routes[0].hash_key", "x", "expected metadata.<key in"),
    ("+routes: [{name: a, hedge: on}]", "routes[0].hedge", "on", "expected a mapping with perc"),
    ("+routes: [{name: a, timeout: 1}]", "routes[0].timeout", "1", "expected a duration"),
    ("+routes: [{name: a, stream: {max: 1}}]", "routes[0].stream.max", "1", "expected a duration"),
    ("+routes: [{name: a, balancer: random}]", "routes[0].balancer", "random", "unknown field"),
    (
        "+routes: [{name: a, retry: {attempts: 9}}]",
        "routes[0].retry.attempts",
        "9",
        "expected a whole number from 1 to 5",
    ),
    (
        "+routes: [{name: a, split: [{subset: v3, weight: 1}]}]",
        "routes[0].split[0].subset",
        "v3",
        "no such subset: this document has none; add it to subsets",
    ),
    (
        "+subsets: {v1: {version: v1}}\nroutes: [{name: a, mirror: {subset: v2, percent: 1%}}]",
        "routes[0].mirror.subset",
        "v2",
        "no such subset: here are [v1]; add it to subsets",
    ),
    (
        "+subsets: {v1: {version: v1}}\nroutes: [{name: a, split: [{subset: v1, weight: 0}]}]",
        "routes[0].split",
        "[{subset: v1, weight: 0}]",
        "at least one weight is more than 0",
    ),
    (
        "+subsets: {v1: {a: b}}\nroutes: [{name: a, mirror: {subset: v1, percent: 1%, max_active: 0}}]",
        "routes[0].mirror.max_active",
        "0",
        "expected a whole number from 1",
    ),
    (
        "+subsets: {v1: {a: b}}\nroutes: [{name: a, mirror: {subset: v1}}]",
        "routes[0].mirror.percent",
        "",
        "this field is required",
    ),
    (
        "+subsets: {v1: {a: b}}\nroutes: [{name: a, split: [{subset: v1}]}]",
        "routes[0].split[0].weight",
        "",
        "this field is required",
    ),
    (
        "+subsets: {a: {b: c}}\nroutes: [{name: a, split: [{subset: a, weight: 1}, {subset: a, weight: 2}]}]",
        "routes[0].split[1].subset",
        "a",
        "this is listed twice",
    ),
    ("+routes: [{name: a, split: []}]", "routes[0].split", "[]", "at least one weight"),
    (
        "+routes: [{name: a, fault: {max_active: 1}}]",
        "routes[0].fault",
        "{max_active: 1}",
        "a fault has a delay, an abort or both",
    ),
    (
        "+routes: [{name: a, fault: {delay: {percent: 1%}}}]",
        "routes[0].fault.delay.duration",
        "",
        "this field is required",
    ),
    (
        "+routes: [{name: a, fault: {abort: {percent: 1%, code: OK}}}]",
        "routes[0].fault.abort.code",
        "OK",
        "expected one of",
    ),
]


@pytest.mark.parametrize(("text", "path", "value", "rule"), BAD, ids=[case[0] for case in BAD])
def test_a_bad_document_is_refused_with_path_value_and_rule(text, path, value, rule):
    """Exactly the one problem is reported, where it is, as it was written (+: below a head)."""
    text = HEAD + text[1:] if text.startswith("+") else text
    (problem,) = problems_of(text)
    assert (problem.path, problem.value) == (path, value)
    assert problem.rule.startswith(rule)


def test_every_problem_of_every_document_is_reported():
    """One loading tells all that is wrong, in the order of the text, with its source."""
    with pytest.raises(PolicyError) as caught:
        load_documents(
            "schema: meshrpc.policy/v1\nservice: a\ntimeout: 2\nretry: {attempts: 9, codes: [OK]}\n"
            "---\nschema: meshrpc.policy/v1\nservice: b\nrate_limits: [{name: x, rate: 1/s}]\n",
            source="two.yaml",
        )
    assert [problem.path for problem in caught.value.problems] == [
        "documents[0].timeout",
        "documents[0].retry.attempts",
        "documents[0].retry.codes[0]",
        "documents[1].rate_limits[0].burst",
    ]
    assert str(caught.value).splitlines()[0] == (
        "two.yaml: documents[0].timeout: 2: expected a duration, such as 250ms, 2s, 5m or 1h"
    )


def test_a_stream_holds_several_services():
    """Documents of one text come in its order."""
    text = f"{HEAD}timeout: 1s\n---\nschema: meshrpc.policy/v1\nservice: '*'\ntimeout: 2s\n"
    assert [(d.policy.service, d.policy.timeout) for d in load_documents(text)] == [
        ("payment", 1.0),
        ("*", 2.0),
    ]


def test_two_documents_for_one_service_are_refused():
    """Which of them would hold is nobody's guess."""
    with pytest.raises(PolicyError) as caught:
        load_documents(f"{HEAD}---\n{HEAD}")
    (problem,) = caught.value.problems
    assert str(problem) == "documents[1].service: payment: documents[0] is for this service already"


def test_one_document_is_one_document():
    """`load_document` refuses a text with several."""
    text = f"{HEAD}---\nschema: meshrpc.policy/v1\nservice: order\n"
    (problem,) = problems_of(text)
    assert str(problem) == "document: expected one document, here are 2"


def test_lenient_loading_skips_and_lists_fields_of_a_newer_release():
    """An older release takes what it knows of a newer one's document, and says what it left."""
    text = HEAD + (
        "timeout: 2s\naffinity: {prefer: zone}\nretry: {attempts: 2, jitter: full}\n"
        "routes: [{name: a, fault: {corrupt: 1%}}]\n"
    )
    document = load_document(text, lenient=True)
    assert document.ignored == ("affinity", "retry.jitter", "routes[0].fault.corrupt")
    assert document.policy == Policy(
        "payment", timeout=2.0, retry=Retry(attempts=2), routes=(Route("a", fault=Fault()),)
    )
    assert [problem.path for problem in problems_of(text)] == list(document.ignored)


def test_a_route_is_skipped_whole_when_not_all_of_its_match_is_known():
    """What a newer release does to a few calls an older one must not do to more of them."""
    text = HEAD + (
        "routes:\n"
        "- {name: a, match: {caller: x, percent: 1%}, fault: {abort: {percent: 100%, code: ABORTED}}}\n"
        "- {name: b, match: {caller: x, at night: true}}\n"
        "- {name: c, match: {caller: x}, matches: {}}\n"
        "- {name: d}\n"
    )
    document = load_document(text, lenient=True)
    skipped = ("routes[0].match.percent", 'routes[1].match["at night"]')
    assert document.ignored == (*skipped, "routes[2].matches")
    assert document.policy.routes == (Route("c", Match(caller="x")), Route("d"))


@pytest.mark.parametrize("body", ["timeout: 2", "balancer: eldest", "retry: ~", "zzz: 1\nzzz: 2"])
def test_lenient_loading_is_strict_about_all_else(body):
    """Only unknown fields are skipped; a value that cannot be used still refuses the document."""
    problems_of(HEAD + body, lenient=True)


def test_the_shipped_policies_load_without_warnings():
    """The demo's policies are all carried out."""
    documents = [
        load_document(file.read_text(), source=file.name)
        for file in sorted((REPOSITORY / "policies").glob("*.yaml"))
    ]
    assert [document.policy.service for document in documents] == ["*", "order", "payment"]
    assert all(document.warnings == () for document in documents)


FAILURE_BLOCKS = {
    "retry": Retry,
    "retry_budget": RetryBudget,
    "hedge": Hedge,
    "outlier": Outlier,
    "slow_start": SlowStart,
    "throttle": Throttle,
    "circuit_breaker": CircuitBreaker,
}


@pytest.mark.parametrize("block", FAILURE_BLOCKS)
def test_a_services_block_takes_the_place_of_the_meshs_whole(block):
    """Its fields that are not said are at their defaults, whatever the mesh's block says."""
    of_mesh = {
        "retry": Retry(attempts=5),
        "retry_budget": RetryBudget(ratio=0.5),
        "hedge": Hedge(percentile=0.5),
        "outlier": Outlier(consecutive_failures=9),
        "slow_start": SlowStart(window=1.0),
        "throttle": Throttle(multiplier=3.0),
        "circuit_breaker": CircuitBreaker(max_requests=7),
    }[block]
    documents = {"*": Policy("*", **{block: of_mesh})}
    assert getattr(effective("payment", documents), block) == of_mesh
    documents["payment"] = load_document(f"{HEAD}{block}: {{}}").policy
    assert getattr(effective("payment", documents), block) == FAILURE_BLOCKS[block]()


def test_nothing_is_hedged_unless_asked_for():
    """Hedging costs the callee calls, so no default turns it on; all else is on."""
    policy = effective("payment", {})
    off = [block for block in FAILURE_BLOCKS if getattr(policy, block) is None]
    assert off == ["hedge"]


# docs/policy.md

GUIDE = (REPOSITORY / "docs" / "policy.md").read_text()
ROWS = re.findall(r"^\| `([a-z_\[\].]+)` \| [^|]+ \| ([^|]+?) \|", GUIDE, re.MULTILINE)


BALANCERS = {
    "weighted_round_robin": ("blackout", "expiry", "update", "error_penalty"),
    "least_request": ("choices",),
    "peak_ewma": ("decay",),
    "ring_hash": ("max_load",),
    "maglev": ("max_load",),
}


def test_the_guide_has_every_field_carried_out():
    """Every field of the model is in the table, and nothing else."""
    blocks = {
        **FAILURE_BLOCKS,
        "stream": StreamBounds,
        "rate_limits[]": RateLimit,
        "rate_limits[].overrides[]": RateOverride,
        "routes[]": Route,
        "routes[].match": Match,
        "routes[].split[]": Target,
        "routes[].mirror": Mirror,
    }
    expected = {"timeout", "balancer", "hash_key", "subset_size", "locality"}
    expected |= {"concurrency", "concurrency.adaptive.max", "concurrency.fixed.limit"}
    expected |= {f"balancer.{kind}.{field}" for kind in BALANCERS for field in BALANCERS[kind]}
    assert {field.name for field in fields(Balancer)} == {
        "kind",
        *(field for kind in BALANCERS for field in BALANCERS[kind]),
    }
    expected |= {f"locality.zone.{field.name}" for field in fields(Locality)}
    for block, model in blocks.items():
        expected |= {f"{block}.{field.name}" for field in fields(model)}
    expected |= {f"retry.backoff.{field.name}" for field in fields(Backoff)}
    for fault in ("delay.percent", "delay.duration", "abort.percent", "abort.code", "max_active"):
        expected.add(f"routes[].fault.{fault}")
    expected -= {"retry.backoff", "locality.zone.zone", "routes[].match.metadata"}
    expected -= {f"routes[].{block}" for block in ("match", "split", "mirror", "fault")}
    assert {path for path, _ in ROWS} == expected
    of_policy = {path.partition(".")[0].removesuffix("[]") for path in expected} | {"subsets"}
    assert of_policy == {field.name for field in fields(EffectivePolicy)} - {"service"}
    assert "| `routes[].match.metadata.<key>` |" in GUIDE
    assert "| `subsets.<name>` |" in GUIDE


PLAIN = {
    "schema": "meshrpc.policy/v1",
    "service": "payment",
    "balancer": {"peak_ewma": {}},
    "locality": {"none": {}},
    "concurrency": {"adaptive": {}},
    "stream": {},
    **{block: {} for block in FAILURE_BLOCKS},
    "subsets": {"v1": {"version": "v1"}},
    "routes": [
        {
            "name": "all",
            "match": {"metadata": {"x-user": {"present": "true"}}},
            "split": [{"subset": "v1", "weight": "1"}],
            "mirror": {"subset": "v1", "percent": "5%"},
            "fault": {
                "delay": {"percent": "1%", "duration": "1s"},
                "abort": {"percent": "1%", "code": "ABORTED"},
            },
        }
    ],
    "rate_limits": [{"name": "all", "rate": "10/s", "burst": "5"}],
}
OVERRIDE = {"values": {"caller": "batch"}, "rate": "1/s", "burst": "1"}


def test_an_empty_block_is_the_default_block():
    """A block without fields says what holds where no document says anything."""
    policy, default = load_document(json.dumps(PLAIN)).policy, effective("payment", {})
    for block in (
        "balancer",
        "locality",
        "concurrency",
        "timeout",
        "hash_key",
        "stream",
        *FAILURE_BLOCKS,
    ):
        if block != "hedge":  # off without its block
            assert getattr(policy, block) == getattr(default, block)
    assert effective("payment", {"payment": policy}).subset_size == default.subset_size


def place_of(tree, path):
    """Return where a field stands: the mapping around it, which is made where it is not there."""
    *blocks, field = path.replace("[]", "").split(".")
    if blocks[0:1] in (["balancer"], ["locality"], ["concurrency"]):
        tree[blocks[0]] = {blocks[1]: {}}  # one choice takes the place of another
    if "overrides" in blocks:
        tree["rate_limits"][0] |= {"key": ["caller"], "overrides": [dict(OVERRIDE)]}
    for block in blocks:
        tree = tree.setdefault(block, {})
        tree = tree[0] if isinstance(tree, list) else tree
    return tree, field


@pytest.mark.parametrize(("path", "default"), ROWS)
def test_the_defaults_in_the_guide_are_those_of_the_code(path, default):
    """Writing a default out changes nothing, a field without one is None, a required one is."""
    tree = copy.deepcopy(PLAIN)
    at, field = place_of(tree, path)
    if default == "required":
        at.pop(field, None)
        (problem,) = problems_of(json.dumps(tree))
        assert (problem.path, problem.rule) == (
            path.replace("[]", "[0]"),
            "this field is required",
        )
        return
    silent = load_document(json.dumps(tree)).policy
    if default in ("none", "the document's"):
        value = silent
        for name in path.replace("[]", "").split("."):
            if name not in BALANCERS:
                value = getattr(value, name)
                value = value[0] if isinstance(value, tuple) else value
        assert value is None
        return
    written = default.strip("`")
    at[field] = written[1:-1].split() if written.startswith("[") else written
    spoken = effective("payment", {"payment": load_document(json.dumps(tree)).policy})
    assert spoken == effective("payment", {"payment": silent})


@pytest.mark.parametrize("example", re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL))
def test_the_examples_in_the_guide_load(example):
    """Each example is a whole document that is carried out in full."""
    assert load_document(example).warnings == ()


@pytest.mark.parametrize("line", re.findall(r"^payment\.yaml: (.*)$", GUIDE, re.MULTILINE))
def test_the_errors_in_the_guide_are_those_of_the_loader(line):
    """What the guide shows as refused is refused with these words."""
    path, value, _ = line.split(": ", 2)
    tree = value
    for key in reversed(path.split(".")):
        tree = {key: tree}
    (problem,) = problems_of(json.dumps(PLAIN | tree))
    assert str(problem) == line


# Properties


def _amount(units):
    return st.builds("{}{}".format, st.integers(1, 999), st.sampled_from(units))


DURATION = _amount(["ms", "s", "m", "h"])
RATE = _amount(["/s", "/m", "/h"])
PERCENTAGE = st.builds("{}%".format, st.integers(0, 100))
NAME = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
METHOD = st.from_regex(r"[a-z]{1,3}\.[A-Z][a-z]{0,3}/[A-Z][a-z]{0,3}", fullmatch=True)
CODE = st.sampled_from([code.name for code in grpc.StatusCode if code.name != "OK"])
RETRY = st.fixed_dictionaries(
    {},
    optional={
        "attempts": st.integers(1, 5).map(str),
        "codes": st.lists(CODE, unique=True, max_size=3),
        "per_attempt_timeout": DURATION,
        "backoff": st.sampled_from([{}, {"base": "1ms"}, {"base": "1s", "max": "2s"}]),
        "non_idempotent": st.lists(METHOD, unique=True, max_size=2),
    },
)
EJECTION = st.sampled_from(
    [{}, {"base_ejection": "1s"}, {"base_ejection": "2s", "max_ejection": "2s"}]
)
OUTLIER = st.builds(
    dict.__or__,
    EJECTION,
    st.fixed_dictionaries(
        {},
        optional={
            "consecutive_failures": st.integers(1, 1000).map(str),
            "success_rate_below": PERCENTAGE,
            "max_ejected": PERCENTAGE,
        },
    ),
)
HEDGE = st.fixed_dictionaries(
    {},
    optional={
        "percentile": st.integers(1, 99).map("{}%".format),
        "max_extra": PERCENTAGE,
    },
)
THROTTLE = st.fixed_dictionaries(
    {},
    optional={
        "multiplier": st.integers(2, 1000).map(str),
        "window": DURATION,
        "max_rejected": st.integers(0, 95).map("{}%".format),
    },
)
KEY = st.one_of(st.sampled_from(["caller", "method"]), NAME.map("metadata.{}".format))
BURST = st.integers(1, 10_000).map(str)
OVERRIDES = st.lists(
    st.fixed_dictionaries(
        {
            "values": st.fixed_dictionaries({"caller": NAME, "metadata.x": NAME}),
            "rate": RATE,
            "burst": BURST,
        }
    ),
    max_size=3,
    unique_by=lambda override: tuple(override["values"].items()),
)
KEYED = st.fixed_dictionaries(
    {}, optional={"key": st.lists(KEY, unique=True, max_size=3)}
) | st.fixed_dictionaries({"key": st.just(["metadata.x", "caller"]), "overrides": OVERRIDES})
COUNTED = st.fixed_dictionaries(
    {"name": NAME, "rate": RATE, "burst": BURST},
    optional={
        "share": st.sampled_from(["instance", "fleet"]),
        "mode": st.sampled_from(["enforce", "shadow"]),
        "max_keys": st.integers(3, 10_000).map(str),
    },
)
RATE_LIMIT = st.builds(dict.__or__, KEYED, COUNTED)
HASH_KEY = NAME.map("metadata.{}".format) | NAME.map(lambda name: "field." + name.replace("-", "_"))
COMPARISON = st.one_of(
    st.fixed_dictionaries({"exact": NAME}),
    st.fixed_dictionaries({"prefix": NAME}),
    st.sampled_from([{"present": "true"}, {"present": "false"}]),
)
SPLIT = st.fixed_dictionaries(
    {"split": st.just([{"subset": "v1", "weight": "1"}, {"subset": "v2", "weight": "0"}])},
    optional={"fallback": st.sampled_from(["none", "any"])},
)
FAULT = st.builds(
    dict.__or__,
    st.fixed_dictionaries(
        {"delay": st.fixed_dictionaries({"percent": PERCENTAGE, "duration": DURATION})}
    )
    | st.fixed_dictionaries(
        {"abort": st.fixed_dictionaries({"percent": PERCENTAGE, "code": CODE})}
    ),
    st.fixed_dictionaries({}, optional={"max_active": st.integers(1, 1000).map(str)}),
)
ROUTE = st.builds(
    dict.__or__,
    SPLIT | st.just({}),
    st.fixed_dictionaries(
        {
            "name": NAME,
            "match": st.fixed_dictionaries(
                {"caller": NAME, "method": METHOD},
                optional={"metadata": st.dictionaries(NAME, COMPARISON, min_size=1, max_size=3)},
            ),
        },
        optional={
            "timeout": DURATION,
            "retry": RETRY,
            "hedge": HEDGE,
            "hash_key": HASH_KEY,
            "stream": st.fixed_dictionaries({}, optional={"idle": DURATION, "max": DURATION}),
            "mirror": st.fixed_dictionaries({"subset": st.just("v2"), "percent": PERCENTAGE}),
            "fault": FAULT,
        },
    ),
)


def _named(items):
    return st.lists(items, max_size=3, unique_by=lambda item: item["name"])


DOCUMENT = st.fixed_dictionaries(
    {
        "schema": st.just("meshrpc.policy/v1"),
        "service": NAME | st.just("*"),
        "subsets": st.just({"v1": {"version": "v1"}, "v2": {"version": "v2"}}),
    },
    optional={
        "timeout": DURATION,
        "stream": st.fixed_dictionaries({}, optional={"idle": DURATION, "max": DURATION}),
        "balancer": st.sampled_from([kind.value for kind in BalancerKind])
        | st.fixed_dictionaries(
            {"peak_ewma": st.fixed_dictionaries({}, optional={"decay": DURATION})}
        ),
        "retry": RETRY,
        "hash_key": HASH_KEY,
        "subset_size": st.integers(1, 100_000).map(str),
        "locality": st.sampled_from(["none", "zone", {"zone": {"min_instances": "3"}}]),
        "retry_budget": st.fixed_dictionaries({}, optional={"ratio": PERCENTAGE}),
        "rate_limits": _named(RATE_LIMIT),
        "concurrency": st.sampled_from(
            ["adaptive", "off", {"adaptive": {"max": "7"}}, {"fixed": {"limit": "3"}}]
        ),
        "routes": _named(ROUTE),
        "hedge": HEDGE,
        "outlier": OUTLIER,
        "slow_start": st.fixed_dictionaries({}, optional={"window": DURATION}),
        "throttle": THROTTLE,
        "circuit_breaker": st.fixed_dictionaries(
            {}, optional={"max_requests": st.integers(1, 1_000_000_000).map(str)}
        ),
    },
)


@settings(deadline=None)
@given(DOCUMENT)
def test_a_document_survives_its_canonical_text(tree):
    """Loading what was loaded gives the same, and YAML and JSON say the same."""
    document = load_document(json.dumps(tree))
    assert load_document(document.canonical) == document
    unshared = json.loads(json.dumps(tree))  # or YAML's writer makes anchors
    assert load_document(yaml.safe_dump(unshared)) == document
    assert json.loads(document.canonical) == tree


def never_anything_but_a_policy_error(text):
    """Load the text; where it is refused, hold the problems to their form."""
    try:
        load_documents(text)
    except PolicyError as error:
        refused = error
    else:
        return
    assert refused.problems
    assert all(problem.path and problem.rule for problem in refused.problems)
    assert len(str(refused).splitlines()) == len(refused.problems)


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet=st.characters()) | st.text(alphabet="{}[]:,-?&*!|>'\"%@`#~ \n\tab0\\u"))
def test_garbage_text_is_a_policy_error(text):
    """No text at all raises anything else, and every problem is one line with path and rule."""
    never_anything_but_a_policy_error(text)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damaged_documents_are_policy_errors(data):
    """A piece cut out, doubled or replaced gives a document or a PolicyError, nothing else."""
    start = data.draw(st.integers(0, len(WHOLE_LANGUAGE)))
    end = data.draw(st.integers(start, min(len(WHOLE_LANGUAGE), start + 40)))
    piece = WHOLE_LANGUAGE[start:end]
    new = data.draw(st.sampled_from(["", piece * 2, "~", "[", "{}", ": ", "\x85", "\ud800", "0"]))
    never_anything_but_a_policy_error(WHOLE_LANGUAGE[:start] + new + WHOLE_LANGUAGE[end:])


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_value_anywhere_is_a_document_or_a_policy_error(data):
    """Every field stands any JSON value: it is used, or refused with a reason."""
    leaf = data.draw(st.sampled_from(sorted(leaves(TREE), key=str)))
    depth = data.draw(st.integers(1, len(leaf)))
    tree = copy.deepcopy(TREE)
    at = tree
    for key in leaf[: depth - 1]:
        at = at[key]
    at[leaf[depth - 1]] = data.draw(ANYTHING)
    never_anything_but_a_policy_error(json.dumps(tree))
