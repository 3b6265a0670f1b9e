"""Metadata, checked before grpcio sees it.

Grpcio looks at metadata only when a call is under way, and what it refuses there ends neither the
call nor any wait for it, on either side. So it is refused here, with the key that is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from meshrpc.wire import Metadata

_KEY = re.compile(r"[0-9a-z_.\-]+")
_TEXT = re.compile(r"[ -~]*")


def checked(metadata: Iterable[tuple[str, str | bytes]]) -> Metadata:
    """Return the metadata as a tuple of pairs.

    Raises:
        TypeError: it is no sequence of pairs, or a key or a value has the wrong type.
        ValueError: a key or a value has characters that gRPC does not carry.
    """
    if isinstance(metadata, Mapping):
        raise TypeError("metadata is a sequence of (key, value) pairs, not a mapping")
    pairs: tuple[Any, ...] = tuple(metadata)
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"metadata is a sequence of (key, value) pairs, not of {pair!r}")
        key, value = pair
        if isinstance(key, bytes):  # as grpcio takes it too
            return checked(map(_with_text_key, pairs))
        if not isinstance(key, str):
            raise TypeError(f"metadata key {key!r}: text, not {type(key).__name__}")
        if not _KEY.fullmatch(key):
            raise ValueError(f"metadata key {key!r}: lower-case letters, digits, '_', '-' and '.'")
        if key.endswith("-bin"):
            if not isinstance(value, bytes):
                raise TypeError(f"metadata {key}: a -bin key has bytes, not {type(value).__name__}")
            continue
        if not isinstance(value, str | bytes):
            raise TypeError(f"metadata {key}: text, not {type(value).__name__}")
        text = value if isinstance(value, str) else value.decode("latin-1")
        if not _TEXT.fullmatch(text):
            raise ValueError(f"metadata {key}: printable ASCII; anything else needs a -bin key")
    return pairs


def _with_text_key(pair: Any) -> Any:
    if isinstance(pair, tuple | list) and pair and isinstance(pair[0], bytes):
        return (pair[0].decode("latin-1"), *pair[1:])
    return pair
