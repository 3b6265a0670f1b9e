"""An instance as a mapping."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrpc.registry.file_document import SCHEMA, read_services
from meshrpc.registry.instance import HEAVIEST, Health, Instance, State

SPACELESS = "a label has no spaces, '=' or ',', 128 characters at most"


def read(instance):
    """Return what a file with this one instance says, and its problems as lines."""
    document = {"schema": SCHEMA, "services": {"payment": [instance]}}
    services, problems = read_services(json.dumps(document), "blue")
    return services, [str(problem) for problem in problems]


def refusal(instance):
    """Return the problems of what is no instance."""
    services, problems = read(instance)
    assert services == {}
    return problems


def test_an_address_alone_is_an_instance_whose_id_it_is():
    """As text, or as the only field of a mapping."""
    expected = Instance(
        id="10.0.0.5:50051", service="payment", address="10.0.0.5:50051", namespace="blue"
    )
    for given_ in ("10.0.0.5:50051", {"address": " 10.0.0.5:50051"}):
        assert read(given_) == ({"payment": (expected,)}, [])


def test_numbers_are_read_as_they_are_and_from_text():
    """Of JSON, whose strings are quoted."""
    for weight in (7, "7"):
        services, _ = read({"address": "[::1]:1", "weight": weight})
        (instance,) = services["payment"]
        assert (instance.weight, instance.address) == (7, "[::1]:1")


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
        ({"address": "h:1", "labels": {"tier": None}}, "labels.tier: null: a null"),
        ({"address": "h:1", "weight": 1.5}, "weight: 1.5: expected a whole number"),
        ({"address": "h:1", "health": "srving"}, "did you mean serving"),
        ({"address": "h:1", "state": "held"}, "expected one of active, draining"),
        (["h:1"], "expected a mapping with address, id"),
        (None, "a null"),
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
FIELDS = {
    "id": LINES,
    "version": WORDS,
    "zone": WORDS,
    "weight": st.integers(1, HEAVIEST),
    "labels": st.dictionaries(WORDS.filter(lambda t: t not in ("version", "zone")), LINES),
    "pid": st.integers(1, 1 << 22),
    "incarnation": st.integers(0, 1000),
    "health": st.sampled_from(Health),
    "state": st.sampled_from([State.ACTIVE, State.DRAINING]),
    "permanent": st.booleans(),
}


@given(
    st.sampled_from(["10.0.0.5:50051", "[::1]:1", "a.b:65535"]),
    st.fixed_dictionaries({}, optional=FIELDS),
)
def test_every_field_but_the_load_can_be_written_down(address, fields):
    """And means itself; one that is left out is what it is by default."""
    expected = Instance(
        **{"id": address, **fields}, address=address, service="payment", namespace="blue"
    )
    assert read({"address": address, **fields}) == ({"payment": (expected,)}, [])
