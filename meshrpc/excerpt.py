"""As much of others' text as people read in one line of a log or an error."""

from __future__ import annotations


def excerpt(text: str, most: int) -> str:
    """Return the text on one line, cut to `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
