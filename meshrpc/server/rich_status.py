"""Details beside a status: google.rpc.Status in the trailer that every gRPC library reads."""

from __future__ import annotations

import logging
from typing import Final

from meshrpc.errors import RpcError
from meshrpc.wire import STATUS_DETAILS, Metadata

_LOG = logging.getLogger("meshrpc.server")

MOST_BYTES: Final = 6 * 1024
"""Of an encoded status and the text beside it. Trailers travel as text at worst, a third longer, and gRPC's clients take
8 KiB of them in all, unless they are told otherwise."""

MOST_TEXT: Final = 4 * 1024
"""Of a status text, in bytes as it travels: an exception's own text may be of any length."""


def shortened(text: str) -> str:
    """Return the text, cut where a caller would lose the status with it."""
    size = 0
    for index, character in enumerate(text):
        size += _travels_as(character)
        if size > MOST_TEXT:
            return f"{text[:index]}..."
    return text


def _travels_as(character: str) -> int:
    # gRPC percent-encodes each byte that is not printable ASCII.
    is_plain = " " <= character <= "~" and character != "%"
    return 1 if is_plain else 3 * len(character.encode())


def trailers_of(error: RpcError, details: str) -> Metadata:
    """Return the trailers for an error whose status text is `details`.

    What does not fit is left out, and the log says so: a caller that gets too much would lose the
    status as well.
    """
    if not error.details:
        return error.metadata
    # Here, because few services need it and it takes a while.
    from google.rpc import status_pb2  # type: ignore[import-untyped]  # noqa: PLC0415

    # Readers refuse details whose code and text are not those of the status.
    status = status_pb2.Status(code=error.code.value[0], message=details)
    for message in error.details:
        status.details.add().Pack(message)
    encoded = status.SerializeToString()
    size = len(encoded) + sum(map(_travels_as, details))
    if size > MOST_BYTES:
        _LOG.warning(
            "details of %s left out: %d bytes, and callers take %d",
            error.code.name,
            size,
            MOST_BYTES,
        )
        return error.metadata
    return (*error.metadata, (STATUS_DETAILS, encoded))
