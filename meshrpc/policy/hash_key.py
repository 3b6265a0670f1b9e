"""Hash keys: what tells which calls belong together, read from each call.

Ring hash and maglev send calls of one key to one instance, and a split keeps them in one subset.
The policy says where the key stands, in the call's metadata or in a field of its request. A call
that has nothing there has no key. Keys are compared as text and never parsed back.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from meshrpc.policy.model import HashKey, KeySource
from meshrpc.wire import Metadata


def read_key(hash_key: HashKey, request: Any, metadata: Metadata) -> str | None:
    """Return the key of a call, or None when it has none; an empty one is none.

    Args:
        hash_key: where it stands.
        request: the request's message; anything without such a field, such as an iterator of
            requests, gives no key.
        metadata: the call's own; of several values the first counts.
    """
    if hash_key.source is KeySource.METADATA:
        return first_value(metadata, hash_key.name) or None
    value = request
    for name in hash_key.name.split("."):
        value = _field(value, name)
    return _text(value) or None


def first_value(metadata: Metadata, key: str) -> str | None:
    """Return the first value that a text key has in the metadata; None: it is not there."""
    for name, value in metadata:
        if name == key:
            return value if isinstance(value, str) else value.decode("latin-1")
    return None


def _field(message: Any, name: str) -> Any:
    """Return a field's value; None where there is none, or where nobody has set it."""
    if isinstance(message, Message):
        field = message.DESCRIPTOR.fields_by_name.get(name)
        if field is None or (field.has_presence and not message.HasField(name)):
            return None
    return getattr(message, name, None)


def _text(value: Any) -> str | None:
    """Return a scalar as text, an enum as its number; None for anything else."""
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case bytes():
            return value.hex()
        case _:
            return None
