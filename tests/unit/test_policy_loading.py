"""Policy text becomes a strict tree, or problems with a path; never a guess."""

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from meshrpc.policy import loading
from meshrpc.policy.loading import MAX_DEPTH, canonical_text, child_path, read_trees, shown


@pytest.fixture(params=["CBaseLoader", "BaseLoader"], autouse=True)
def _every_yaml_parser(request, monkeypatch):
    """PyYAML comes with libyaml or without it: every claim here holds for both."""
    loader = getattr(yaml, request.param, None)
    if loader is None:
        pytest.skip("this PyYAML was built without libyaml")
    monkeypatch.setattr(loading, "_YAML_LOADER", loader)


def tree_of(text):
    documents, problems = read_trees(text)
    assert problems == []
    ((path, tree),) = documents
    assert path == ""
    return tree


def problems_of(text):
    _, problems = read_trees(text)
    return [(problem.path, problem.value, problem.rule) for problem in problems]


@pytest.mark.parametrize("scalar", ["no", "1e3", "0x10", "true", "2024-01-01", "12:30:45", "007"])
def test_yaml_scalars_stay_as_written(scalar):
    """Nothing that other YAML readers would turn into a bool, number or date is turned."""
    assert tree_of(f"a: {scalar}") == {"a": scalar}


def test_json_scalars_stay_as_written():
    """JSON's numbers and booleans are the text that stands in the document."""
    text = '{"a": 1.50, "b": true, "c": [false, NaN], "d": 123456789012345678901234567890}'
    assert tree_of(text) == {
        "a": "1.50",
        "b": "true",
        "c": ["false", "NaN"],
        "d": "123456789012345678901234567890",
    }


def test_json_is_read_as_json():
    """Tabs, escaped surrogate pairs and a byte order mark are fine, as JSON has them."""
    assert tree_of('\ufeff{\n\t"a": "\\ud83d\\ude00\\/"}') == {"a": "😀/"}


def test_a_flow_mapping_is_yaml():
    """Text that opens like JSON but is YAML is read as YAML."""
    assert tree_of("{a: b, c: [d, e]}") == {"a": "b", "c": ["d", "e"]}


def test_quoted_nulls_are_text():
    """Only a plain null is a null."""
    assert tree_of("a: 'null'\nb: \"\"\nc: '~'") == {"a": "null", "b": "", "c": "~"}


def test_documents_of_a_stream_have_paths():
    """Several documents are told apart by their place in the stream; one needs no prefix."""
    documents, problems = read_trees("---\na: b\n---\nc: {d: ~}\n...\n")
    assert documents == [("documents[0]", {"a": "b"}), ("documents[1]", {"c": {"d": None}})]
    assert [problem.path for problem in problems] == ["documents[1].c.d"]


@pytest.mark.parametrize("null", ["", "~", "null", "Null", "NULL"])
def test_every_plain_null_is_refused(null):
    """A null is refused at its path, as it was written."""
    ((path, value, rule),) = problems_of(f"a:\n  - b: {null}\n")
    assert (path, value) == ("a[0].b", null)
    assert rule.startswith("a null")


@pytest.mark.parametrize(
    ("text", "path", "value", "rule"),
    [
        ('{"a": {"b": null}}', "a.b", "null", "a null"),
        ("a: 1\na: 2", "a", "2", "a duplicate key"),
        ("a: {b: 1, 'b': 2}", "a.b", "2", "a duplicate key"),
        ('{"a": [{"b": 1, "b": {"c": 2}}]}', "a[0].b", "{c: 2}", "a duplicate key"),
        ("a: &x b", "a", "&x", "an anchor"),
        ("a: &x [b]", "a", "&x", "an anchor"),
        ("a: &x {b: c}", "a", "&x", "an anchor"),
        ("a: *x", "a", "*x", "an alias"),
        ("a: !!int 3", "a", "!!int", "a tag"),
        ("a: ! b", "a", "!", "a tag"),
        ("a: !python/object:os.system {b: c}", "a", "!python/object:os.system", "a tag"),
        ("? [a]\n: b", "document", "", "a key is text"),
        ("a: {~: b}", "a", "~", "a key is text: a null"),
        ("", "document", "", "there is no document"),
        ("# only a comment\n", "document", "", "there is no document"),
        ("--- ~", "document", "~", "a null"),
        ('{"a b": null}', '["a b"]', "null", "a null"),
        ('{"a": "\\ud800"}', "a", '"\\ud800"', "this is not valid Unicode"),
        ('{"\\ud800": "a"}', '["\\ud800"]', "", "this key is not valid Unicode"),
    ],
)
def test_what_has_two_readings_is_refused(text, path, value, rule):
    """Each refusal names the path, the value as written and the rule, and is told once."""
    ((at, written, told),) = problems_of(text)
    assert (at, written) == (path, value)
    assert told.startswith(rule)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a: b: c", "line 1, column 5"),
        ("a: b\n  c: d", "line 2, column 4"),
        ('{"a": "\\', "line 1"),
        ("a\0b", "document"),
        ("a\ud800b", "document"),
        ('a: "\\UFFFFFFFF"', ""),
        ("%YAML 2.0\n--- a", "line 1, column 1"),
    ],
)
def test_unreadable_text_is_one_problem(text, where):
    """Text that is no YAML gives one problem with line and column where there are any."""
    ((path, _, rule),) = problems_of(text)
    assert path.startswith(where)
    assert rule.startswith("this is neither YAML nor JSON: ")
    assert "\n" not in rule


def test_an_unquoted_star_is_explained():
    """`service: *` is the likeliest slip of all, and gets the remedy instead of grammar."""
    ((_, _, rule),) = problems_of("service: *\n")
    assert 'needs quotes, such as "*"' in rule


def test_every_problem_is_reported():
    """Reading goes on behind a refused value."""
    assert [path for path, _, _ in problems_of("a: ~\nb: [~, c, *d]\ne: 1\ne: 2\n")] == [
        "a",
        "b[0]",
        "b[2]",
        "e",
    ]


@pytest.mark.parametrize(
    ("opening", "closing", "deepest"),
    [
        ("[", "]", "document" + "[0]" * MAX_DEPTH),
        ('{"a":', "}", ".".join("a" * MAX_DEPTH)),
    ],
)
def test_the_deepest_nesting_allowed_is_read(opening, closing, deepest):
    """64 levels are read, in JSON and in YAML; the 65th is refused at its path."""
    for scalar in ('"x"', "x"):  # JSON, and the same as YAML
        fine = opening * MAX_DEPTH + scalar + closing * MAX_DEPTH
        assert read_trees(fine)[1] == []
        deep = opening * (MAX_DEPTH + 1) + scalar + closing * (MAX_DEPTH + 1)
        ((path, _, rule),) = problems_of(deep)
        assert (path, rule) == (deepest, "nested deeper than 64 levels")


@pytest.mark.parametrize("opening", ["[", "{", '{"a":', "- ", "? ", "a: [", "[{a: "])
def test_bottomless_nesting_is_refused(opening):
    """A hundred thousand levels cost neither the stack nor the time."""
    ((_, _, rule),) = problems_of(opening * 100_000)
    assert "deeper" in rule or "neither" in rule


def test_closed_bottomless_json_is_refused():
    """Valid JSON that is too deep for the parser itself is refused the same way."""
    ((_, _, rule),) = problems_of("[" * 100_000 + "]" * 100_000)
    assert rule == "nested deeper than 64 levels"


def test_canonical_text_does_not_depend_on_order():
    """Key order and notation do not show in the canonical text; the order of lists does."""
    one = canonical_text(tree_of("b: [2, 1]\na: {d: é, c: x}"))
    assert one == canonical_text(tree_of('{"a": {"c": "x", "d": "\\u00e9"}, "b": [2, 1]}'))
    assert one == '{"a":{"c":"x","d":"é"},"b":["2","1"]}'


def test_paths_read_like_code():
    """Names are joined by dots, indices stand in brackets, odd keys are quoted."""
    assert child_path(child_path(child_path("", "routes"), 0), "retry") == "routes[0].retry"
    assert child_path("metadata", "x-group") == "metadata.x-group"
    assert child_path("metadata", "a.b c") == 'metadata["a.b c"]'
    assert child_path("", 2) == "document[2]"


def test_shown_values_are_one_short_line():
    """A value in an error is what its author wrote, on one line of at most 60 characters."""
    assert shown("2 sec") == "2 sec"
    assert shown("") == '""'
    assert shown("a\nb") == '"a\\nb"'
    assert shown({"a": ["b", {}], "c": "d"}) == "{a: [b, {}], c: d}"
    assert len(shown(["x" * 20] * 20)) == 60


@settings(deadline=None, max_examples=300)
@given(
    st.recursive(
        st.text(alphabet=st.characters(exclude_categories=["Cs"])),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.text(alphabet=st.characters(exclude_categories=["Cs"])), inner, max_size=4
            )
        ),
        max_leaves=20,
    )
)
def test_any_tree_survives_its_canonical_text(tree):
    """Reading a tree's canonical text gives the tree."""
    wrapped = {"root": tree}
    assert tree_of(canonical_text(wrapped)) == wrapped
    assert tree_of(json.dumps(wrapped)) == wrapped
