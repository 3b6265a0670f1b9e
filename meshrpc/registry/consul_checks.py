"""What the checks of an instance in Consul mean for those who call it.

Consul's own filter, `passing`, drops an instance when any check of it or of its node is critical.
Here the lease alone decides whether one of ours is there: the agent's health check, and whatever
others check, make it NOT_SERVING, to be called only when nobody else serves. Maintenance mode is
what draining is here. Of what others registered, Consul's word is taken: a critical one is out.

Pure, and strict: checks that are not what Consul sends are a `ValueError`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from meshrpc.excerpt import excerpt
from meshrpc.registry.finding import Problem
from meshrpc.registry.instance import Health

SERF = "serfHealth"
NODE_MAINTENANCE = "_node_maintenance"
SERVICE_MAINTENANCE = "_service_maintenance:"
_NO_WORD_ON_HEALTH = re.compile(
    r"code = (Unimplemented|NotFound|Unauthenticated|PermissionDenied|ResourceExhausted)\b"
)
"""In a gRPC check's output: a server answered that has no health service, or does not tell us."""
SHOWN = 120
"""Characters of a check's output that are shown."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the checks of one instance come to."""

    health: Health = Health.SERVING
    is_listed: bool = True
    """Whether callers see it at all."""
    in_maintenance: bool = False
    is_warning: bool = False
    problem: Problem | None = None
    detail: str = ""
    """Which check found the problem, and what it said."""


def judge(checks: Any, *, lease: str | None, health: str | None, is_ours: bool) -> Standing:
    """Weigh the checks of one entry; `lease` and `health` are the ids of those we registered.

    Our health check is a warning until it was made, which no other result of it is; then the
    health is unknown.

    Raises:
        ValueError: this is not a list of checks.
    """
    critical: dict[str, str] = {}
    in_maintenance = is_warning = is_unchecked = False
    for check in _listed(checks):
        id_, status, output = _read(check)
        if status == "passing":
            continue
        if status == "warning":
            is_unchecked = is_unchecked or id_ == health
            is_warning = is_warning or id_ != health
        elif id_ == NODE_MAINTENANCE or id_.startswith(SERVICE_MAINTENANCE):
            in_maintenance = True
        elif status == "critical" and not (id_ == health and _NO_WORD_ON_HEALTH.search(output)):
            critical[id_] = output
    if SERF in critical:
        detail = f"the Consul agent of its node is not alive: {_short(critical[SERF])}"
        return Standing(Health.UNKNOWN, False, in_maintenance, is_warning, Problem.STALE, detail)
    if lease in critical:
        detail = "its lease ran out and nobody renews it; Consul removes it in a minute or two"
        return Standing(Health.UNKNOWN, False, in_maintenance, is_warning, Problem.STALE, detail)
    if critical:
        id_, output = next(iter(sorted(critical.items())))
        detail = f"check {id_!r} fails: {_short(output)}"
        return Standing(
            Health.NOT_SERVING, is_ours, in_maintenance, is_warning, Problem.NOT_SERVING, detail
        )
    return Standing(
        Health.UNKNOWN if is_unchecked else Health.SERVING,
        in_maintenance=in_maintenance,
        is_warning=is_warning,
    )


def _listed(checks: Any) -> list[Any]:
    if checks is None:
        return []
    if not isinstance(checks, list):
        raise ValueError(f"its checks are no list, but {type(checks).__name__}")  # noqa: TRY004 - bad input
    return checks


def _read(check: Any) -> tuple[str, str, str]:
    try:
        id_, status, output = check["CheckID"], check["Status"], check.get("Output") or ""
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"a check has no id and status: {type(error).__name__}") from error
    if not (isinstance(id_, str) and isinstance(status, str) and isinstance(output, str)):
        raise ValueError("a check's id and status are no text")  # noqa: TRY004 - bad input
    return id_, status, output


def _short(output: str) -> str:
    return excerpt(output, SHOWN) or "no reason given"
