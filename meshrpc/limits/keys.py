"""What tells the buckets of a limit apart: values of a call, bounded in length.

As bytes they travel to other processes: `=`, then the values with a NUL between them, which no value
can contain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeAlias

from meshrpc.policy.model import RateOverride
from meshrpc.wire import Metadata

UNKNOWN_KEY = "unknown"
"""The key of calls that lack the value a limit asks for."""

# Keys come from callers and may be as long as metadata may: longer ones are stored as digests,
# so that max_keys bounds memory too.
_LONGEST_KEY = 64

Key: TypeAlias = str | tuple[str, ...]
KeyOf: TypeAlias = Callable[[str, str, Metadata], Key]


def key_function(names: tuple[str, ...]) -> KeyOf:
    """Return what makes the key of a call from its caller, method and metadata.

    Raises:
        ValueError: a name that means nothing.
    """
    if not names:
        return lambda _caller, _method, _metadata: ""
    parts = tuple(_part(name) for name in names)
    if len(parts) == 1:
        return parts[0]
    return lambda caller, method, metadata: tuple(
        [part(caller, method, metadata) for part in parts]
    )


def key_of_override(names: tuple[str, ...], override: RateOverride) -> Key:
    """Return the key of the bucket that an override is for.

    Raises:
        ValueError: it does not name exactly the keys of its limit.
    """
    values = dict(override.values)
    if values.keys() != set(names) or not names:
        raise ValueError(f"override {values}: a value for each of {', '.join(names) or 'no key'}")
    if "method" in values:
        values["method"] = f"/{values['method'].removeprefix('/')}"
    key = tuple(_bounded(values[name]) for name in names)
    return key if len(key) > 1 else key[0]


def to_wire(key: Key) -> bytes:
    """Return the key as it travels."""
    values = (key,) if isinstance(key, str) else key
    return b"=" + b"\0".join(value.encode(errors="surrogatepass") for value in values)


def from_wire(wire: bytes, names: tuple[str, ...]) -> Key | None:
    """Return the key of a limit that has these names; None: it is no key of it."""
    try:
        values = wire.removeprefix(b"=").decode(errors="surrogatepass").split("\0")
    except UnicodeDecodeError:
        return None
    if not wire.startswith(b"=") or len(values) != len(names):
        return None
    return values[0] if len(values) == 1 else tuple(values)


def describe(names: tuple[str, ...], key: Key) -> str:
    """Write a key for people, as `caller=order, method=/shop.Shop/Buy`."""
    values = (key,) if isinstance(key, str) else key
    return ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=False))


def _part(name: str) -> Callable[[str, str, Metadata], str]:
    if name == "caller":
        return lambda caller, _method, _metadata: _bounded(caller)
    if name == "method":
        return lambda _caller, method, _metadata: _bounded(method)
    kind, _, wanted = name.partition(".")
    if kind != "metadata" or not wanted:
        raise ValueError(f"key {name!r}: caller, method or metadata.<name>")
    wanted = wanted.lower()

    def from_metadata(_caller: str, _method: str, metadata: Metadata) -> str:
        for key, value in metadata:
            if key == wanted and value:
                return _bounded(value if isinstance(value, str) else value.hex())
        return UNKNOWN_KEY

    return from_metadata


def _bounded(value: str) -> str:
    if len(value) <= _LONGEST_KEY:
        return value
    return hashlib.blake2b(value.encode(errors="surrogatepass"), digest_size=16).hexdigest()
