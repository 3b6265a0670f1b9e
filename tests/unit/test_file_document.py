"""The text of a registry file."""

import json
from pathlib import Path

import pytest

from meshrpc.registry.file_document import concerns, read_services
from meshrpc.registry.instance import Instance, State

HEAD = "schema: meshrpc.registry/v1\n"


def problems(text):
    services, found = read_services(text, "default")
    assert services == {}
    return [str(problem) for problem in found]


def test_a_service_is_a_list_of_addresses_and_mappings():
    """Ordered by id; an address alone is its own id."""
    text = HEAD + (
        "services:\n"
        "  payment:\n"
        "  - {address: '10.0.0.2:1', id: b, version: v2, zone: a, weight: 3, labels: {tier: gold}}\n"
        "  - 10.0.0.1:1\n"
        "  - {address: '10.0.0.3:1', id: a, state: draining}\n"
        "  order: []\n"
    )
    services, found = read_services(text, "blue")
    assert found == ()
    first, second, third = services["payment"]
    assert first == Instance(
        id="10.0.0.1:1", service="payment", address="10.0.0.1:1", namespace="blue"
    )
    assert (second.id, second.state) == ("a", State.DRAINING)
    assert (third.version, third.zone, third.weight) == ("v2", "a", 3)
    assert third.labels == {"tier": "gold"}
    assert services["order"] == ()


def test_json_is_read_as_well():
    """What a program writes."""
    document = {"schema": "meshrpc.registry/v1", "services": {"payment": [{"address": "h:1"}]}}
    services, _ = read_services(json.dumps(document), "default")
    assert [each.address for each in services["payment"]] == ["h:1"]


def test_each_document_may_be_for_one_namespace():
    """One without is for all."""
    text = (
        f"{HEAD}services: {{common: [h:1]}}\n---\n"
        f"{HEAD}namespace: blue\nservices: {{payment: [h:2]}}\n---\n"
        f"{HEAD}namespace: green\nservices: {{payment: [h:3]}}\n"
    )
    for namespace, address in (("blue", "h:2"), ("green", "h:3")):
        services, found = read_services(text, namespace)
        assert found == ()
        assert services["common"][0].address == "h:1"
        assert services["payment"][0].address == address
    services, _ = read_services(text, "red")
    assert list(services) == ["common"]


@pytest.mark.parametrize("namespace", ["", "namespace: blue\n"])
def test_a_service_stands_in_one_document_of_a_namespace(namespace):
    """Which of two lists is meant, nobody could tell."""
    text = f"{HEAD}services: {{a: [h:1]}}\n---\n{HEAD}{namespace}services: {{a: [h:2]}}\n"
    assert problems(text) == [
        "documents[1].services.a: this service stands in documents[0] already"
    ]


def test_all_that_is_wrong_is_told_at_once_with_its_path():
    """And nothing of the file is used."""
    text = (
        "schema: meshrpc.registry/v2\n"
        "namspace: blue\n"
        "services:\n"
        "  payment: [h:1, {adress: h:2}, {address: h:3, weight: 0}]\n"
        "  order: h:1\n"
        "  'a b': []\n"
        "  twice: [{address: h:1, id: x}, {address: h:2, id: x}]\n"
    )
    assert problems(text) == [
        "schema: meshrpc.registry/v2: expected meshrpc.registry/v1",
        "namspace: blue: unknown field; did you mean namespace?",
        "services.payment[1].adress: h:2: unknown field; did you mean address?",
        "services.payment[1].address: this field is required",
        "services.payment[2].weight: 0: expected a whole number from 1 to 65535",
        "services.order: h:1: expected a list, such as [a, b]",
        (
            'services["a b"]: a b: a service name has letters, digits, '
            "'.', '_' and '-', 128 at most"
        ),
        "services.twice[1]: an instance with the id x stands above",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "there is no document"),
        ("# nothing\n", "there is no document"),
        (HEAD, "services: this field is required"),
        (HEAD + "services:\n", "a null"),
        (HEAD + "services: [a]\n", "expected a mapping of services"),
        (HEAD + "services: {a: [h:1], a: [h:2]}\n", "a duplicate key"),
        (HEAD + "services: {a: [h:1, h:1]}\n", "listed twice"),
        (HEAD + "services: {a: [h:1, {address: h:1}]}\n", "stands above"),
        (HEAD + "services: {a: [h:1", "neither YAML nor JSON"),
        ("services: {}\n", "schema: this field is required"),
        ("- h:1\n", "expected a mapping with schema"),
    ],
)
def test_what_is_no_registry_file_is_refused(text, words):
    """An empty one too: it is more likely cut off than meant."""
    assert any(words in line for line in problems(text))


def test_a_problem_concerns_the_service_it_stands_under():
    """And not one with a longer name."""
    text = HEAD + "services: {pay: [h:1], payment: [h], pay.ment: [h], pay-x: []}\n"
    _, found = read_services(text, "default")
    for service in ("payment", "pay.ment"):
        assert [concerns(each, service) for each in found].count(True) == 1
    assert not any(concerns(each, service) for each in found for service in ("pay", "x"))


def test_the_documented_file_can_be_used():
    """The example of docs/registry.md, as it stands there."""
    page = (Path(__file__).parents[2] / "docs" / "registry.md").read_text("utf-8")
    example = page.partition("## Files")[2].partition("```yaml\n")[2].partition("```")[0]
    services, found = read_services(example, "staging")
    assert found == ()
    assert [each.id for each in services["payment"]] == ["10.0.0.5:50051", "payment-canary"]
    assert services["payment"][1].state is State.DRAINING
    assert services["order"] == ()
    assert read_services(example, "default") == ({}, ())
