"""What meshrpc itself raises.

    MeshError
    ├── SettingsError        your configuration cannot be used
    ├── StartupError         a startup hook of the service failed
    ├── PolicyError          a policy document cannot be used; carries every problem found
    ├── ControlError         the control service cannot be reached, or said no
    └── RegistryError        the registry cannot be reached, or said no
        ├── ReadOnlyRegistry       it lists instances but registers none
        └── StaleIncarnation       a newer incarnation of this instance is registered

A failed call is none of these: it raises `grpc.aio.AioRpcError`, as grpcio does. `RpcError` is the
other way round: a handler raises it, to say how its call fails. Registry and
control errors stay in the background of a running service (logged, retried); they are raised
only where somebody asked the registry or control something directly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import grpc
from google.protobuf.message import Message

from meshrpc.metadata import checked
from meshrpc.wire import Metadata


class MeshError(Exception):
    """Base of everything meshrpc raises."""


class SettingsError(MeshError):
    """A setting cannot be used: your configuration should be fixed."""


class StartupError(MeshError):
    """A startup hook of a service failed, so the service does not start."""


class ControlError(MeshError):
    """The control service cannot be reached, or refused what was asked."""


class RegistryError(MeshError):
    """The registry cannot be reached, or refused what was asked."""


class ReadOnlyRegistry(RegistryError):
    """This kind of registry lists instances but registers none."""


class StaleIncarnation(RegistryError):
    """A newer incarnation of this instance is registered; this one must not come back."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a policy document: where, what stands there, and the rule it breaks."""

    path: str
    value: str
    rule: str

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.value}: {self.rule}" if self.value else f"{self.path}: {self.rule}"
        )


class PolicyError(MeshError):
    """A policy document cannot be used: its author should fix the problems listed."""

    def __init__(self, problems: tuple[Problem, ...], *, source: str = "policy") -> None:
        self.problems = problems
        self.source = source
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems))


class RpcError(Exception):
    """How a call fails, in its handler's words: raise it there, at any depth, in any kind of handler.

    Args:
        code: any `grpc.StatusCode` but OK.
        message: the text beside it. The caller gets it as it is.
        details: protobuf messages for programs to read, such as those of `google.rpc.error_details_pb2`.
        metadata: further trailers, as pairs.

    Raises:
        TypeError, ValueError: one of these cannot be sent.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str = "",
        *,
        details: Iterable[Message] = (),
        metadata: Iterable[tuple[str, str | bytes]] = (),
    ) -> None:
        if not isinstance(code, grpc.StatusCode):
            raise TypeError(f"a status code is a grpc.StatusCode, not {code!r}")
        if code is grpc.StatusCode.OK:
            raise ValueError("an RpcError is a failure: OK is none")
        self.code = code
        self.message = str(message)
        self.details = tuple(details)
        for each in self.details:
            if not isinstance(each, Message):
                raise TypeError(f"details are protobuf messages, not {each!r}")
        self.metadata: Metadata = checked(metadata)
        super().__init__(f"{code.name}: {self.message}")
