"""How much an endpoint can carry, from what it reports of its own load.

Calls per second divided by the utilization they cause is what it would carry at full load. From
gRFC A58, client-side weighted round robin: failing calls count as utilization on top, since an
endpoint that fails at once would otherwise look like the strongest one; a report counts only once
reports have come for a while (`blackout`: the first ones of a new process say little), and not for
ever (`expiry`; the registry has what is newest). A report of no calls or no utilization says nothing, and changes nothing.
"""

from __future__ import annotations

from math import inf

from meshrpc.load_report import LoadReport
from meshrpc.policy import model


class Capacity:
    """What one endpoint has reported of itself, in its answers or through the registry."""

    __slots__ = ("_hint", "_report", "_reported_at", "_since")

    def __init__(self) -> None:
        self._report: LoadReport | None = None
        self._reported_at = -inf
        self._hint: LoadReport | None = None
        self._since: float | None = None
        """When the first report came; None: none yet, or all have expired since."""

    def report(self, report: LoadReport, now: float) -> None:
        """Take in what came with an answer."""
        if _says_something(report):
            self._report, self._reported_at = report, now
            if self._since is None:
                self._since = now

    def hint(self, report: LoadReport | None, now: float) -> None:
        """Take in what the registry has; it counts as long as it stands there and no answer's does.

        None, or a report that says nothing: the registry has none, so an earlier hint is void.
        """
        if report is None or not _says_something(report):
            self._hint = None
            return
        self._hint = report
        if self._since is None:
            self._since = now

    def weight(self, now: float, policy: model.Balancer) -> float | None:
        """Return the calls per second it can carry: finite, above 0.

        None without a report that counts: in the blackout, after the expiry, or there was none.
        """
        if self._report is not None and now - self._reported_at < policy.expiry:
            report = self._report
        elif self._hint is not None:
            report = self._hint
        else:
            self._since = None
            return None
        if self._since is None:  # believed again under a policy with a later expiry
            self._since = now
        if now - self._since < policy.blackout:
            return None
        failing = report.eps / report.rps * policy.error_penalty
        weight = report.rps / (report.utilization + failing)
        # Figures of any size may come in; what they are divided to may be beyond all numbers.
        return weight if 0.0 < weight < inf else None

    def forget(self) -> None:
        """Begin anew: it has been reconnected, and who answers there may be another process.

        The hint stays: it is the registry's word about the process that is there now.
        """
        self._report = None
        self._since = None


def _says_something(report: LoadReport) -> bool:
    return report.rps > 0.0 and report.utilization > 0.0
