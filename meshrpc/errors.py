"""What meshrpc itself raises.

    MeshError
    ├── SettingsError        your configuration cannot be used
    ├── PolicyError          a policy document cannot be used; carries every problem found
    ├── ControlError         the control service cannot be reached, or said no
    └── RegistryError        the registry cannot be reached, or said no
        ├── ReadOnlyRegistry       it lists instances but registers none
        └── StaleIncarnation       a newer incarnation of this instance is registered

A failed call is none of these: it raises `grpc.aio.AioRpcError`, as grpcio does. Registry and
control errors stay in the background of a running service (logged, retried); they are raised
only where somebody asked the registry or control something directly.
"""

from __future__ import annotations

from dataclasses import dataclass


class MeshError(Exception):
    """Base of everything meshrpc raises."""


class SettingsError(MeshError):
    """A setting cannot be used: your configuration should be fixed."""


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
