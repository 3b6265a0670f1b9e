"""A finding: something about a record that somebody should look at."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Problem(enum.StrEnum):
    """What may be wrong with a record, or with several."""

    STALE = "stale"
    """It stands there although nobody renews it any more."""
    LEASE_NEAR_EXPIRY = "lease_near_expiry"
    """Renewals did not come: it will run out soon."""
    NOT_SERVING = "not_serving"
    """It says, or the registry found, that it does not serve."""
    BAD_RECORD = "bad_record"
    """It cannot be used, and is left out."""
    DUPLICATE_ADDRESS = "duplicate_address"
    """Several instances say that they are reached at one address."""
    UNREACHABLE = "unreachable"
    """Nobody answers there."""
    VERSION_SKEW = "version_skew"
    """Processes of the mesh run different releases of this library."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong; `id` is the instance's, empty where none can be named."""

    problem: Problem
    service: str
    id: str
    detail: str
    """What was found, and what to do about it."""
