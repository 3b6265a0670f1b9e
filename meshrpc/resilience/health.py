"""Health: what is known of one endpoint, and whether it gets calls.

A record: `outlier` decides what stands in it.
"""

from __future__ import annotations

import enum

from meshrpc.resilience.window import Window

WINDOW = 10.0
"""Seconds that success rates reach back, and that must be clean to take one step back."""


class Admission(enum.Enum):
    """Whether an endpoint gets calls."""

    ADMITTED = "admitted"
    EJECTED = "ejected"
    PROBATION = "probation"
    """Its time is served: it waits for a call to be its probe."""
    PROBING = "probing"
    """That call is under way."""


class Health:
    """What is known of one endpoint. Read by anybody, written by its `OutlierDetector` alone."""

    __slots__ = (
        "admission",
        "cause",
        "clean_since",
        "consecutive",
        "ejected_until",
        "generation",
        "holds_slot",
        "multiplier",
        "probe_until",
        "window",
    )

    def __init__(self) -> None:
        self.admission = Admission.ADMITTED
        self.generation = 0
        """Changes at each ejection, start of a probe and readmission, and when it leaves."""
        self.ejected_until: float | None = None
        self.cause = ""
        """For people: why it is not admitted."""
        self.consecutive = 0
        """Failures in a row."""
        self.window = Window(WINDOW)
        self.multiplier = 0
        """How many times the base its last ejection lasted, less the steps taken back since."""
        self.clean_since = 0.0
        """Of the interval without a failure that will take the next step back."""
        self.holds_slot = False
        """It is away by an ejection, not by a reconnection: it counts against the cap."""
        self.probe_until: float | None = None

    def __repr__(self) -> str:
        cause = f": {self.cause}" if self.cause else ""
        return f"<Health {self.admission.value}, generation {self.generation}{cause}>"
