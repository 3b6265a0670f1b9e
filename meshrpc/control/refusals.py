"""Saying no over gRPC: the rule for names, and texts short enough to travel.

A status' details are metadata: percent-encoded, and dropped with the whole answer when they are
long (8 KiB is where gRPC begins to). So what somebody sent is never repeated without a limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

MAX_NAME: Final = 256
"""Characters of an id, a service, a namespace and the like."""
MAX_ENCODED: Final = 6000
"""Bytes of details as they travel."""
MAX_PROBLEMS: Final = 20
"""Problems listed; the others are counted."""


def name_problem(what: str, name: str, *, is_optional: bool = False) -> str:
    """Say what is wrong with a name somebody sent; empty when nothing is."""
    if (not name and is_optional) or (0 < len(name) <= MAX_NAME and name.isprintable()):
        return ""
    return f"{what} {name[:MAX_NAME]!r}: 1 to {MAX_NAME} printable characters"


def details(text: str) -> str:
    """Return the text, cut where it becomes too long for details."""
    size = 0
    for at, character in enumerate(text):
        size += _encoded(character)
        if size > MAX_ENCODED:
            return f"{text[:at]}…"
    return text


def listed(problems: Sequence[str]) -> str:
    """Return the first problems, one a line, and how many more there are."""
    shown = [details(problems[0])]
    left = MAX_ENCODED - sum(map(_encoded, shown[0]))
    for problem in problems[1:MAX_PROBLEMS]:
        left -= _encoded("\n") + sum(map(_encoded, problem))
        if left < 0:
            break
        shown.append(problem)
    more = len(problems) - len(shown)
    if more:
        shown.append(f"and {more} more problem{'s' if more > 1 else ''}")
    return "\n".join(shown)


def _encoded(character: str) -> int:
    """Return how many bytes the character takes."""
    if " " <= character <= "~" and character != "%":
        return 1
    return 3 * len(character.encode("utf-8", "surrogatepass"))
