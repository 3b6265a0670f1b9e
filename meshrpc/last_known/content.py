"""What is in the files: instances and policies, as they travel on the control stream.

Of instances that is whom calls may go to, as a registry would list them: what a caller made of
them (held, ejected) ends with it, and so does a load.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import fields, replace
from operator import attrgetter
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from meshrpc.last_known.seal import UnusableError
from meshrpc.registry.instance import Instance, State
from meshrpc.v1 import control_pb2, policy_pb2

ENCODE_AT_ONCE = 200
"""Instances, which take a millisecond or two."""
LET_OTHERS_RUN = 0.0005
"""Seconds between these: an event loop that waits for its turn waits no longer than for them."""

_all_but_load = attrgetter(*(each.name for each in fields(Instance) if each.name != "load"))

M = TypeVar("M", bound=Message)


def listed(instances: Sequence[Instance]) -> tuple[Instance, ...]:
    """Return those that are not leaving, as active ones, ordered by id."""
    staying = [
        each if each.state is State.ACTIVE else replace(each, state=State.ACTIVE)
        for each in instances
        if each.takes_calls
    ]
    return tuple(sorted(staying, key=attrgetter("id")))


def joined(before: Sequence[Instance], after: Sequence[Instance]) -> tuple[Instance, ...]:
    """Return all of `after`, and those of `before` that are not there under the same id."""
    news = {each.id for each in after}
    return (*after, *(each for each in before if each.id not in news))


def differ(before: Sequence[Instance], after: Sequence[Instance]) -> bool:
    """Return whether more than loads is different. Records that stayed are the same objects."""
    return len(before) != len(after) or any(
        one is not other and _all_but_load(one) != _all_but_load(other)
        for one, other in zip(before, after, strict=True)
    )


def encode_instances(service: str, instances: Sequence[Instance]) -> bytes:
    """Return them as one `InstanceSet`, the same bytes for the same instances. For a thread.

    In parts, which protobuf joins by appending: each holds the interpreter's lock until it is
    done, and with it the event loop.
    """
    parts = [control_pb2.InstanceSet(service=service).SerializeToString()]
    for start in range(0, len(instances), ENCODE_AT_ONCE):
        part = control_pb2.InstanceSet()
        for instance in instances[start : start + ENCODE_AT_ONCE]:
            wire = instance.to_wire()
            wire.ClearField("load")
            part.instances.append(wire)
        # Labels are a map, which otherwise has no order.
        parts.append(part.SerializeToString(deterministic=True))
        time.sleep(LET_OTHERS_RUN)
    return b"".join(parts)


def decode_instances(service: str, body: bytes) -> tuple[Instance, ...]:
    """Return what `encode_instances` was given.

    Raises:
        UnusableError: these are no instances of this service.
    """
    wire = _decode(control_pb2.InstanceSet(), body)
    _require_service(service, wire.service)
    return tuple(map(Instance.from_wire, wire.instances))


def encode_policy(service: str, document: str) -> bytes:
    """Return a document as one `PolicyDocument`."""
    return policy_pb2.PolicyDocument(service=service, document=document).SerializeToString()


def decode_policy(service: str, body: bytes) -> str:
    """Return the document that `encode_policy` was given.

    Raises:
        UnusableError: this is no policy of this service.
    """
    wire = _decode(policy_pb2.PolicyDocument(), body)
    _require_service(service, wire.service)
    return wire.document


def _decode(wire: M, body: bytes) -> M:
    try:
        wire.ParseFromString(body)
    except DecodeError as error:
        raise UnusableError("it cannot be decoded") from error
    return wire


def _require_service(wanted: str, found: str) -> None:
    if found != wanted:
        raise UnusableError("it is another service's")
