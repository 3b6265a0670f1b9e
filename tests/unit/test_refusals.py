"""What control says when it says no: never too long to travel."""

from __future__ import annotations

import urllib.parse

import pytest

from meshrpc.control.refusals import (
    MAX_ENCODED,
    MAX_NAME,
    MAX_PROBLEMS,
    details,
    listed,
    name_problem,
)


def encoded(text: str) -> int:
    """Bytes of the text as gRPC sends it: all but printable ASCII is three for each byte."""
    return len(urllib.parse.quote(text, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}"))


def test_what_fits_is_left_as_it_is():
    """Also when it is full of what takes three bytes for one."""
    for text in ("", "no policy for 'payment'", "あ" * (MAX_ENCODED // 9), "%" * 2000):
        assert details(text) == text


@pytest.mark.parametrize("character", ["x", "%", "\n", "é", "あ", "\U0001f600", "\x7f"])
def test_what_does_not_fit_is_cut_by_its_size_as_it_travels(character):
    """A long text of any alphabet ends with an ellipsis at about the same size."""
    cut = details(character * 100_000)
    assert cut.endswith(f"{character}…")
    assert MAX_ENCODED - 12 <= encoded(cut.removesuffix("…")) <= MAX_ENCODED


def test_problems_are_listed_up_to_twenty_and_counted():
    """Whole lines, then how many more there are; none are counted when all are there."""
    assert listed(["one"]) == "one"
    problems = [f"policy: field{n}: 1: unknown field" for n in range(100)]
    assert listed(problems[:MAX_PROBLEMS]).splitlines() == problems[:MAX_PROBLEMS]
    lines = listed(problems).splitlines()
    assert lines == [*problems[:MAX_PROBLEMS], "and 80 more problems"]
    assert listed(problems[: MAX_PROBLEMS + 1]).endswith("\nand 1 more problem")


def test_long_problems_are_fewer():
    """The first is cut when it is too long alone; others stand there whole or not at all."""
    problems = [f"policy: f{n}: 1: {'é' * 300}" for n in range(30)]
    *shown, last = listed(problems).splitlines()
    assert 1 < len(shown) < MAX_PROBLEMS
    assert shown == problems[: len(shown)]
    assert last == f"and {30 - len(shown)} more problems"
    first, last = listed(["é" * 100_000, "short"]).splitlines()
    assert first.endswith("é…")
    assert last == "and 1 more problem"


@pytest.mark.parametrize("name", ["", "pay\nment", "\x1b[31m", "x" * (MAX_NAME + 1), "\ud800"])
def test_names_that_cannot_be_shown_are_refused(name):
    """Empty, unprintable or endless ones."""
    assert name_problem("service", name).startswith("service '")


def test_names_that_can_be_shown_are_taken():
    """Of any alphabet; where one may be missing, the empty one too."""
    for name in ("payment", "é" * MAX_NAME, "*"):
        assert name_problem("service", name) == ""
    assert name_problem("zone", "", is_optional=True) == ""
