"""Subsets: some of a service's instances, told apart from the others by their labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_NOBODY = (("", ""),)
"""Labels that no instance has."""


@dataclass(frozen=True, slots=True)
class Subset:
    """The instances that have all these labels; `version` and `zone` are labels too."""

    name: str
    labels: tuple[tuple[str, str], ...]
    """Sorted by key."""

    def __str__(self) -> str:
        return f"{self.name!r} ({', '.join(f'{key}={value}' for key, value in self.labels)})"

    @classmethod
    def of(cls, name: str, labels: Mapping[str, str]) -> Subset:
        """Return the subset of this name, of instances with these labels."""
        return cls(name, tuple(sorted(labels.items())))

    @classmethod
    def unknown(cls, name: str) -> Subset:
        """Return what stands for a subset that the policy lacks: nobody is in it."""
        return cls(name, _NOBODY)

    @property
    def is_unknown(self) -> bool:
        """Whether the policy lacks it."""
        return self.labels == _NOBODY
