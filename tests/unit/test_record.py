"""An instance as a mapping."""

import json
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrpc.registry.instance import Health, Instance, State
from meshrpc.registry.record import (
    HEAVIEST,
    RecordError,
    instance_from_mapping,
    instance_to_mapping,
)

SPACELESS = "a label has no spaces, '=' or ',', 128 characters at most"


def refusal(mapping, path="services.payment[0]"):
    """Return the problems of a mapping that is no instance, as lines."""
    with pytest.raises(RecordError) as raised:
        instance_from_mapping(mapping, service="payment", path=path)
    assert str(raised.value) == "; ".join(map(str, raised.value.problems))
    return [str(problem) for problem in raised.value.problems]


def test_an_address_alone_is_an_instance_whose_id_it_is():
    """As text, or as the only field of a mapping."""
    expected = Instance(
        id="10.0.0.5:50051", service="payment", address="10.0.0.5:50051", namespace="blue"
    )
    for given_ in ("10.0.0.5:50051", {"address": " 10.0.0.5:50051"}):
        assert instance_from_mapping(given_, service="payment", namespace="blue") == expected


def test_numbers_are_read_from_text_and_as_they_are():
    """A strict loader leaves them text, JSON does not."""
    for weight in (7, "7"):
        read = instance_from_mapping({"address": "[::1]:1", "weight": weight}, service="payment")
        assert (read.weight, read.address) == (7, "[::1]:1")


def test_everything_that_is_wrong_is_said_at_once_with_its_path():
    """The near miss of a field's name, values out of range, and what is missing."""
    assert refusal({"adress": "h:1", "weight": 0, "labels": {"zone": "a", "a b": "c"}}) == [
        "services.payment[0].adress: h:1: unknown field; did you mean address?",
        "services.payment[0].weight: 0: expected a whole number from 1 to 65535",
        "services.payment[0].labels.zone: a: zone is a field of its own, not a label",
        f'services.payment[0].labels["a b"]: a b: {SPACELESS}',
        "services.payment[0].address: this field is required",
    ]


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ("10.0.0.5", "10.0.0.5: an address is host:port"),
        ("10.0.0.5:0", "the port is 1 to 65535"),
        ({"address": "::1:80"}, "an IPv6 host stands in brackets"),
        ({"address": ["h:1"]}, "expected an address"),
        ({"address": "h:1", "id": ""}, "an id is a line"),
        ({"address": "h:1", "version": "v 1"}, "no spaces"),
        ({"address": "h:1", "weight": True}, "expected a whole number"),
        ({"address": "h:1", "weight": HEAVIEST + 1}, "expected a whole number"),
        ({"address": "h:1", "labels": "gold"}, "expected a mapping of labels"),
        ({"address": "h:1", "labels": {"tier": "a\nb"}}, "a label's value is a line"),
        ({"address": "h:1", "labels": {"tier": None}}, r"labels.tier: NoneType: expected text"),
        ({"address": "h:1", "weight": 1.5}, r"weight: float: expected text"),
        ({"address": "h:1", "health": "srving"}, "did you mean serving"),
        ({"address": "h:1", "state": "held"}, "expected one of active, draining"),
        (["h:1"], "expected a mapping with address, id"),
        (None, "NoneType"),
        ({1: "x"}, "unknown field"),
    ],
)
def test_what_is_no_instance_is_refused_in_words(mapping, words):
    """And nothing else is said."""
    (line,) = [line for line in refusal(mapping) if "this field is required" not in line]
    assert line.startswith("services.payment[0]")
    assert words in line


LINES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=9)
WORDS = LINES.filter(lambda text: not set(text) & set(",= "))


@given(
    st.builds(
        Instance,
        id=LINES,
        service=st.just("payment"),
        address=st.sampled_from(["10.0.0.5:50051", "[::1]:1", "a.b:65535"]),
        namespace=st.just("blue"),
        version=st.none() | WORDS,
        zone=st.none() | WORDS,
        weight=st.integers(1, HEAVIEST),
        labels=st.dictionaries(WORDS.filter(lambda t: t not in ("version", "zone")), LINES).map(
            MappingProxyType
        ),
        pid=st.none() | st.integers(1, 1 << 22),
        incarnation=st.integers(0, 1000),
        health=st.sampled_from(Health),
        state=st.sampled_from([State.ACTIVE, State.DRAINING]),
        permanent=st.booleans(),
    )
)
def test_what_was_written_is_read_again(instance):
    """Every field but the load survives the way through JSON."""
    mapping = json.loads(json.dumps(instance_to_mapping(instance)))
    assert instance_from_mapping(mapping, service="payment", namespace="blue") == instance
