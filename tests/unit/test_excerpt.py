"""Others' text fits into a line."""

import pytest

from meshrpc.excerpt import excerpt


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("short", "short"),
        (" a page\n\nof   HTML\t", "a page of…"),
        ("exactly 10", "exactly 10"),
        ("one more 11", "one more …"),
    ],
)
def test_a_text_becomes_one_line_that_is_not_too_long(text, line):
    """What is cut off shows."""
    assert excerpt(text, 10) == line
