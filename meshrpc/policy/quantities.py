"""Readers of numbers and of the units of the language: durations, percentages, rates."""

from __future__ import annotations

import re

from meshrpc.policy.schema import Place, Reader, text

_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST = 8760 * 3600.0  # seconds; a year is longer than anything a policy waits for
_MOST_PER_SECOND = 1e9
# Twelve digits are exact in a float, and below the length at which int() itself refuses.
_DECIMAL = r"(?:[0-9]{1,12}(?:\.[0-9]{1,9})?)"


def integer(low: int, high: int) -> Reader[int]:
    """Read a whole number from `low` to `high`."""
    rule = f"expected a whole number from {low} to {high}"
    digits = text("0|[1-9][0-9]{0,11}", rule)

    def read(place: Place) -> int:
        number = int(digits(place))
        if not low <= number <= high:
            raise place.refuse(rule)
        return number

    return read


def number(low: float, high: float) -> Reader[float]:
    """Read a number without a unit from `low` to `high`."""
    rule = f"expected a number from {low:g} to {high:g}, without a unit"
    decimal = text(_DECIMAL, rule)

    def read(place: Place) -> float:
        value = float(decimal(place))
        if not low <= value <= high:
            raise place.refuse(rule)
        return value

    return read


def duration(place: Place) -> float:
    """Read a duration (`250ms`, `2s`, `5m`, `1h`) as seconds: more than 0, at most 8760h."""
    amount, unit = _quantity(
        place, f"({_DECIMAL})(ms|s|m|h)", "expected a duration, such as 250ms, 2s, 5m or 1h"
    )
    seconds = amount * _UNIT_SECONDS[unit]
    if not 0 < seconds <= _LONGEST:
        raise place.refuse("a duration is more than 0 and at most 8760h")
    return seconds


def percentage(place: Place) -> float:
    """Read a percentage (`2.5%`) as a fraction of 1."""
    amount, _ = _quantity(place, f"({_DECIMAL})(%)", "expected a percentage, such as 10%")
    if amount > 100:
        raise place.refuse("a percentage is from 0% to 100%")
    return amount / 100


def rate(place: Place) -> float:
    """Read a rate (`100/s`, `30/m`, `1000/h`) as a number per second: more than 0."""
    amount, unit = _quantity(
        place, f"({_DECIMAL})/(s|m|h)", "expected a rate, such as 100/s, 30/m or 1000/h"
    )
    per_second = amount / _UNIT_SECONDS[unit]
    if not 0 < per_second <= _MOST_PER_SECOND:
        raise place.refuse(f"a rate is more than 0 and at most {_MOST_PER_SECOND:.0f}/s")
    return per_second


def _quantity(place: Place, pattern: str, rule: str) -> tuple[float, str]:
    found = re.fullmatch(pattern, place.tree) if isinstance(place.tree, str) else None
    if found is None:
        raise place.refuse(rule)
    return float(found[1]), found[2]
