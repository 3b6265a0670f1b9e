"""The names of the policy language: services, methods, metadata, fields, labels, status codes."""

from __future__ import annotations

import grpc

from meshrpc.policy.model import HashKey, KeySource
from meshrpc.policy.schema import Place, text, word

_SERVICE = r"[\w.-]{1,128}"
service = text(_SERVICE, "a service name has letters, digits, '.', '_' and '-', 128 at most")
any_service = text(
    rf"{_SERVICE}|\*", 'expected a service name, or "*" for the defaults of the mesh'
)
name = text(
    r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", "a name has letters, digits, '.', '_' and '-', 64 at most"
)

_WORD = r"[A-Za-z_][A-Za-z0-9_]*"
_PROTO_SERVICE = rf"{_WORD}(?:\.{_WORD})*"
_METHOD = rf"{_PROTO_SERVICE}/{_WORD}"
exact_method = text(_METHOD, "expected an exact method, pkg.Service/Method, without wildcards")
any_method = text(rf"{_METHOD}|{_PROTO_SERVICE}/\*", "expected pkg.Service/Method or pkg.Service/*")

# Keys are lower case on the wire, and values of -bin keys are bytes.
_METADATA = r"(?!.*-bin$)[a-z0-9_.-]+"
metadata_key = text(_METADATA, "a metadata key is lower case, and not a binary one (-bin)")
metadata_value = text(r"[ -~]*", "a metadata value is printable ASCII")
bucket_key = text(
    rf"caller|method|metadata\.{_METADATA}",
    "expected caller, method or metadata.<key in lower case>",
)

_hash_key = text(
    rf"metadata\.{_METADATA}|field\.{_WORD}(?:\.{_WORD})*",
    "expected metadata.<key in lower case> or field.<path in the request>, such as field.user.id",
)


def hash_key(place: Place) -> HashKey:
    """Read where the key of a call stands: `metadata.x-user`, `field.user.id`."""
    source, _, name = _hash_key(place).partition(".")
    return HashKey(KeySource(source), name)


label = text(r"[^\s,=]{1,128}", "a label has no spaces, '=' or ',', 128 characters at most")
code = word({each.name: each for each in grpc.StatusCode if each is not grpc.StatusCode.OK})
