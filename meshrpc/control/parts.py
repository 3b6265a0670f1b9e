"""Messages joined from parts that are serialised already.

A message is its fields one after another, in any order, and a field that is a message is its key, its
length and its bytes (protobuf's encoding, "Message Structure"). So what many are sent, the
instances of a large service, is serialised once, and joined with what each is sent besides.
"""

from __future__ import annotations

_LENGTH_DELIMITED = 2
_BITS = 7
"""Of a number that each byte carries; its highest bit says that another byte follows."""


def key(number: int, size: int) -> bytes:
    """Return what stands before the `size` bytes of the message that is field `number`."""
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(size)


def _varint(value: int) -> bytes:
    made = bytearray()
    while value >= 1 << _BITS:
        made.append(value & 0x7F | 0x80)
        value >>= _BITS
    made.append(value)
    return bytes(made)
