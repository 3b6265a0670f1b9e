"""What a file of last known good looks like: one line that vouches for the bytes after it.

    meshrpc-last-known FORMAT KIND SAVED_AT SHA256

The checksum covers the line before it and the body, so that no damage goes unnoticed. It does not
keep anybody from writing such a file: whose file it is decides that (`private_file`).
"""

from __future__ import annotations

import hashlib
import re

FORMAT = 1
_HEADER = re.compile(
    rb"(meshrpc-last-known (\d{1,9}) ([a-z]{1,32}) (\d{1,12}\.\d{3})) ([0-9a-f]{64})"
)


class UnusableError(Exception):
    """A file, or its folder, that is not to be trusted; says why."""


def seal(kind: str, body: bytes, saved_at: float) -> bytes:
    """Return the whole file; `saved_at` is in wall seconds."""
    start = f"meshrpc-last-known {FORMAT} {kind} {max(0.0, saved_at):.3f}".encode()
    return b"%b %b\n%b" % (start, _checksum(start, body), body)


def unseal(kind: str, data: bytes) -> tuple[bytes, float]:
    """Return the body of a whole file and when it was saved.

    Raises:
        UnusableError: it is not exactly what was sealed as this kind.
    """
    header, _, body = data.partition(b"\n")
    found = _HEADER.fullmatch(header)
    if found is None:
        raise UnusableError("it is damaged")
    if int(found[2]) != FORMAT:
        raise UnusableError(f"its format is {int(found[2])}, and this release reads {FORMAT}")
    if found[5] != _checksum(found[1], body):
        raise UnusableError("it is damaged: its checksum is another")
    if found[3] != kind.encode():
        raise UnusableError(f"it holds something else than {kind}")
    return body, float(found[4])


def _checksum(start: bytes, body: bytes) -> bytes:
    checksum = hashlib.sha256(start + b"\n")
    checksum.update(body)
    return checksum.hexdigest().encode()
