"""What a run says of an arm: how many calls failed and how, how long they took, when it was over."""

import bisect
import math
from dataclasses import asdict, dataclass

from tests.faults.methods import GET, PUT
from tests.faults.victim import SLOWER, TAKES

WINDOW = 1.0
"""Seconds of calls whose success rate is looked at."""
BACK = 0.95
"""The success rate at which an arm is back."""
SPEED_WINDOW = 3.0
"""Seconds of calls whose p99 is looked at: of 600 calls, six may take longer."""
FAST = 2.0
"""Times the p99 of calls to healthy instances at which an arm is fast."""
SETTLED = 5.0
"""Seconds after which a fault's p99 is told by itself."""


@dataclass(frozen=True, slots=True)
class Account:
    """One arm in one run; times in seconds, None where nothing of the kind happened."""

    arm: str
    calls: int
    failed_idempotent: int
    failed_other: int
    failed_executed: int
    """Of those that failed: whose handler began all the same."""
    executed_twice: int
    """Calls that may not be repeated, and were."""
    p50: float
    p99: float
    worst: float
    overdue: float
    """How far beyond its deadline the call went on that went furthest."""
    arrivals: float
    """Handlers that began while the fault lasted, for each call of that time."""
    attempts: float | None
    """Attempts that began then, for each call; only the mesh tells."""
    failing_until: float | None
    """From the fault to the start of the last call that failed before it was healed."""
    back_after: float | None
    """From the healing, till 95 % of the calls of a second succeed, and go on to."""
    healthy_p99: float | None
    """While all instances were healthy, in runs with a time for that."""
    settled_p99: float | None
    """In those, of calls that began five seconds after the fault or later."""
    fast_after: float | None
    """In those, from the fault, till the p99 of three seconds is no more than twice that of the
    calls that no slow instance got."""

    def to_json(self):
        """Return it as -o json shows it."""
        return {
            key: None if value in (math.inf, -math.inf) else value
            for key, value in asdict(self).items()
        }


def account(run, arm):
    """Return the account of one arm of a run."""
    load = run.loads[arm]
    fault = run.marks["fault"]
    healed = run.marks.get("healed", math.inf)
    executions = run.executions(arm)
    failed = load.failed()
    latencies = sorted(call.latency for call in load.calls)
    has_healthy = "healthy" in run.marks
    faulty = load.meant(fault, healed)
    failing = [call.meant for call in faulty if not call.is_ok]
    return Account(
        arm=arm,
        calls=len(load.calls),
        failed_idempotent=len(load.failed(GET)),
        failed_other=len(load.failed(PUT)),
        failed_executed=sum(executions[call.number] > 0 for call in failed),
        executed_twice=sum(executions[c.number] > 1 for c in load.calls if c.method == PUT),
        p50=latencies[len(latencies) // 2],
        p99=p99(load.calls),
        worst=latencies[-1],
        overdue=run.overdue(arm),
        arrivals=sum(executions[call.number] for call in faulty) / len(faulty),
        attempts=attempts_a_call(run, fault, healed) if arm == "mesh" else None,
        failing_until=max(failing) - fault if failing else None,
        back_after=back_after(load.calls, healed) if healed < math.inf else None,
        healthy_p99=p99(load.meant(run.marks["healthy"], fault)) if has_healthy else None,
        settled_p99=p99(load.meant(fault + SETTLED, healed)) if has_healthy else None,
        fast_after=fast_after(run, arm) if has_healthy else None,
    )


def p99(calls):
    """Return what 99 % of these calls, one at least, took at most."""
    latencies = sorted(call.latency for call in calls)
    return latencies[math.ceil(len(latencies) * 0.99) - 1]


def unaffected_p99(run, begin, end):
    """Return the p99 of the bare calls of this time that no slow instance got.

    What else there was to slow calls in that time, this process and its machine, slowed these too.
    """
    return p99([call for call in run.bare.meant(begin, end) if call.latency < TAKES * SLOWER])


def fast_after(run, arm):
    """Return how long after the fault the p99 of three seconds of calls is at most twice that of
    unaffected ones; infinite: it never is, up to the last three seconds that are whole.
    """
    fault = at = run.marks["fault"]
    last = run.loads[arm].calls[-1].meant - SPEED_WINDOW
    while at <= last:
        end = at + SPEED_WINDOW
        if p99(run.loads[arm].meant(at, end)) <= FAST * unaffected_p99(run, at, end):
            return at - fault
        at += 0.05
    return math.inf


def is_fast(run):
    """Return whether the calls of the mesh's arm are fast again, though one instance is slow."""
    return fast_after(run, "mesh") < math.inf


def attempts_a_call(run, begin, end):
    """Return how many attempts the mesh's client made in this time, for each call of it."""
    attempts = sum(begin <= attempt.began < end for attempt in run.attempts)
    return attempts / len(run.mesh.meant(begin, end))


def is_back(run):
    """Return whether the calls of the mesh's arm have succeeded for a while since the healing."""
    back = back_after(run.mesh.calls, run.marks["healed"])
    return back is not None and back < math.inf


def back_after(calls, healed):
    """Return how long after `healed` calls succeed again and go on to; infinite: they never do.

    None if there were no calls for long enough to tell.

    That is the first time from which on at least 95 % of the calls of every second succeeded, down to
    the last second that is whole.
    """
    calls = sorted(calls, key=lambda call: call.meant)
    times = [call.meant for call in calls]
    if not times or times[-1] - WINDOW < healed:
        return None
    good = [0]
    for call in calls:
        good.append(good[-1] + call.is_ok)
    last = times[-1] - WINDOW
    back = None
    at = healed
    while at <= last:
        begin, end = bisect.bisect_left(times, at), bisect.bisect_left(times, at + WINDOW)
        if good[end] - good[begin] < BACK * (end - begin):
            back = None
        elif back is None:
            back = at
        at += 0.05
    return math.inf if back is None else back - healed


def share(run, arm, victim, begin, end):
    """Return which part of an arm's executions in this time were the victim's."""
    found = [e for e in run.fleet.executions(begin) if e.arm == arm and e.at < end]
    return sum(e.victim == victim.id for e in found) / len(found)


def went_to_a_broken(victim, run, within):
    """Return the attempts at an instance that began later than `within` of the fault, as it lasted."""
    late = run.attempts_at(victim, run.marks["fault"] + within)
    return [attempt for attempt in late if attempt.began < run.marks["healed"]]


def has_explained(call):
    """Return whether the error of a call says that it may have been executed."""
    return "may have executed the call" in call.details
