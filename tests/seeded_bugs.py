"""Bugs that somebody could make tomorrow, each with the tests that must fail for it.

A bug is a text that stands once in a file, and what it becomes. `tests/e2e/test_seeded_bugs.py`
makes them one at a time in a copy of the project.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    name: str
    file: str
    right: str
    wrong: str
    tests: str


RETRY = "tests/unit/test_retry.py tests/unit/test_retry_machine.py"
OUTLIER = "tests/unit/test_outlier.py tests/unit/test_outlier_machine.py"
EJECTION = "tests/integration/test_ejection.py"
ADMISSION = "tests/integration/test_admission_control.py"
THROTTLE = "tests/unit/test_throttle.py tests/unit/test_throttle_machine.py"
CALLS = "tests/integration/test_calls.py tests/integration/test_client.py"

BUGS = (
    Bug(
        "the budget counts a retry late",
        "meshrpc/resilience/retry_budget.py",
        "        if self._tokens < 1.0:\n            return False\n",
        "        if self._tokens < 0.0:\n            return False\n",
        RETRY,
    ),
    Bug(
        "retries are made whatever the budget says",
        "meshrpc/client/logical_call.py",
        "        if not is_free and not destination.control.budget.withdraw(now):\n            return False\n",
        "        destination.control.budget.withdraw(now)\n",
        ADMISSION,
    ),
    Bug(
        "a call that is cancelled stays in flight",
        "meshrpc/client/logical_call.py",
        "        if not self._is_counted:\n            return\n",
        "        if not self._is_counted or self._cancel_asked:\n            return\n",
        ADMISSION,
    ),
    Bug(
        "a stream that is forgotten stays in flight",
        "meshrpc/client/call.py",
        "            if self._is_counted:\n",
        "            if self._is_counted and under_way is None:\n",
        ADMISSION,
    ),
    Bug(
        "the circuit breaker lets one too many through",
        "meshrpc/resilience/circuit_breaker.py",
        "        if self.in_flight >= self._limit:\n",
        "        if self.in_flight > self._limit:\n",
        "tests/unit/test_circuit_breaker.py",
    ),
    Bug(
        "the fifth failure in a row does not eject",
        "meshrpc/resilience/outlier.py",
        "        if health.consecutive >= self._policy.consecutive_failures:\n",
        "        if health.consecutive > self._policy.consecutive_failures:\n",
        OUTLIER,
    ),
    Bug(
        "a late answer from before an ejection counts",
        "meshrpc/resilience/outlier.py",
        "        if generation != health.generation:\n            return False\n",
        "",
        OUTLIER,
    ),
    Bug(
        "attempts do not remember when they began",
        "meshrpc/client/endpoint.py",
        "record(self.health, generation, outcome, now)",
        "record(self.health, self.health.generation, outcome, now)",
        EJECTION,
    ),
    Bug(
        "the last endpoint may be ejected",
        "meshrpc/resilience/outlier.py",
        "        return admitted > (health.admission is Admission.ADMITTED)\n",
        "        return True\n",
        OUTLIER,
    ),
    Bug(
        "a probe that was cancelled is the last one",
        "meshrpc/resilience/outlier.py",
        "Outcome.ABANDONED:\n            _offer_probe(health)\n",
        "Outcome.ABANDONED:\n            return False\n",
        f"{OUTLIER} {EJECTION}",
    ),
    Bug(
        "every call is a probe while one is due",
        "meshrpc/client/probes.py",
        "                del self._due[endpoint]\n",
        "",
        EJECTION,
    ),
    Bug(
        "what all do alike is an outlier",
        "meshrpc/resilience/outlier.py",
        "        if cause is None or not self._others_work(health, now) or not",
        "        if cause is None or not",
        OUTLIER,
    ),
    Bug(
        "the throttle may refuse everything",
        "meshrpc/resilience/throttle.py",
        "max(0.0, min(excess, self._policy.max_rejected))",
        "max(0.0, min(excess, 1.0))",
        THROTTLE,
    ),
    Bug(
        "calls refused here are not counted as wanted",
        "meshrpc/resilience/throttle.py",
        "            self._window.add(now, 1, 0)\n            return False\n",
        "            return False\n",
        THROTTLE,
    ),
    Bug(
        "a call that must not be repeated is repeated",
        "meshrpc/resilience/retry.py",
        "    if not (idempotent or failure.not_executed):\n        return False\n",
        "",
        RETRY,
    ),
    Bug(
        "a server that says not to come back is not heard",
        "meshrpc/resilience/retry.py",
        "    if failure.pushback is not None and failure.pushback < 0:\n        return False\n",
        "",
        RETRY,
    ),
    Bug(
        "an attempt is planned for when the deadline has passed",
        "meshrpc/resilience/retry.py",
        "remaining is None or wait < remaining",
        "remaining is None or wait <= remaining",
        RETRY,
    ),
    Bug(
        "the same endpoint is tried again",
        "meshrpc/client/destination.py",
        "self._choices.pick_untried(tried, now, aim) or self.pick(now, aim)",
        "self.pick(now, aim)",
        CALLS,
    ),
    Bug(
        "a failure further down is tried again by everybody above",
        "meshrpc/client/logical_call.py",
        "            self._serving.dependency_failed = True\n",
        "            pass\n",
        ADMISSION,
    ),
    Bug(
        "what came back has its full share at once",
        "meshrpc/resilience/slow_start.py",
        "min(1.0, max(LEAST, 1.0 - (warm_at - now) / window))",
        "1.0",
        EJECTION,
    ),
    Bug(
        "one stray failure costs an endpoint its calls for most of a minute",
        "meshrpc/balancer/load.py",
        "FAILURE_DECAY = 1.0\n",
        "FAILURE_DECAY = 10.0\n",
        "tests/unit/test_load.py",
    ),
    Bug(
        "certificates that are wrong are tried again and again",
        "meshrpc/client/logical_call.py",
        "        if failure.not_sent and destination.is_unreachable(self._aim):\n",
        "        if False:\n",
        "tests/integration/test_trust.py tests/integration/test_admission_control.py",
    ),
    Bug(
        "nobody says that a call may have been executed",
        "meshrpc/resilience/retry.py",
        "broken=unavailable and not not_executed and (cut or has_broken(code, details)),",
        "broken=False,",
        "tests/integration/test_not_executed.py",
    ),
    Bug(
        "the loser of a hedge runs on",
        "meshrpc/client/hedging.py",
        "        if other is not None:\n            other.cancel()\n",
        "",
        "tests/integration/test_hedging.py",
    ),
    Bug(
        "work is begun whose deadline has passed",
        "meshrpc/interceptors/sync_handler.py",
        "    if not seen.is_active() or (remaining is not None and remaining <= 0):\n",
        "    if not seen.is_active():\n",
        "tests/integration/test_late_work.py",
    ),
    Bug(
        "a key is drawn like a call without one",
        "meshrpc/policy/split.py",
        "        if key is None:\n            subsets",
        "        if True:\n            subsets",
        "tests/unit/test_split.py tests/integration/test_routing.py",
    ),
    Bug(
        "a subset is looked up anew for each attempt",
        "meshrpc/client/choices.py",
        "        return subset is None or endpoint.instance.has_labels(dict(subset.labels))\n",
        "        return subset is None\n",
        "tests/integration/test_routing.py",
    ),
    Bug(
        "a mirror has no budget",
        "meshrpc/client/mirroring.py",
        "        if destination.closed or remaining <= 0 or len(self) >= to.max_active:\n",
        "        if destination.closed or remaining <= 0:\n",
        "tests/integration/test_routing.py",
    ),
    Bug(
        "a fault that is over still counts",
        "meshrpc/client/logical_call.py",
        "            destination.faults.end()\n            self._fail(error)\n",
        "            self._fail(error)\n",
        "tests/integration/test_routing.py",
    ),
    Bug(
        "subsets of one round robin take turns together",
        "meshrpc/client/choices.py",
        "key = _Part(subset, zone, is_settled)",
        "key = _Part(None, None, False)",
        "tests/integration/test_routing.py",
    ),
    Bug(
        "everybody connects to everybody",
        "meshrpc/client/roster.py",
        "        chosen = first(members, size, prefers)\n",
        "        chosen = members\n",
        "tests/integration/test_routing.py",
    ),
    Bug(
        "calls under way are overtaken by no answer",
        "meshrpc/balancer/load.py",
        "            expected = max(expected, now - self._starts / self._timed)\n",
        "            pass\n",
        "tests/unit/test_load.py",
    ),
    Bug(
        "callers in a zone that has too little keep all their calls there",
        "meshrpc/balancer/zones.py",
        "        if spare[own] >= 0:\n",
        "        if True:\n",
        "tests/unit/test_zones.py",
    ),
    Bug(
        "an empty answer is believed",
        "meshrpc/registry/doubt.py",
        "        if len(together) > left:\n",
        "        if len(together) > left > 0:\n",
        "tests/unit/test_doubt.py",
    ),
    Bug(
        "leases that run out one by one are believed one by one",
        "meshrpc/registry/doubt.py",
        "        together = [one for one in self._missing.values() if now - one.since < WINDOW]\n",
        "        together = [one for one in self._missing.values() if one.since == now]\n",
        "tests/unit/test_doubt.py",
    ),
    Bug(
        "who was draining is doubted",
        "meshrpc/registry/doubt.py",
        "            if self._listed[id_].takes_calls:\n",
        "            if True:\n",
        "tests/unit/test_doubt.py",
    ),
    Bug(
        "holds run out while the registry is away",
        "meshrpc/client/discovery.py",
        "            if self.why_silent() is not None:\n",
        "            if False:\n",
        "tests/integration/test_discovery.py",
    ),
    Bug(
        "the mark of one that leaves is not waited for",
        "meshrpc/server/drain.py",
        "    if is_known is not False and not departure.acknowledges:\n",
        "    if False:\n",
        "tests/integration/test_drain.py",
    ),
    Bug(
        "a service leaves before its handlers have heard",
        "meshrpc/server/serving.py",
        "            await self._active.ended(drain.LAST_WORDS)\n",
        "",
        "tests/integration/test_leaving_service.py",
    ),
    Bug(
        "when nobody is ready nobody is called",
        "meshrpc/client/roster.py",
        " is not Health.NOT_SERVING] or active",
        " is not Health.NOT_SERVING]",
        "tests/integration/test_readiness.py",
    ),
    Bug(
        "an event that is sent again is listed twice",
        "meshrpc/control/events.py",
        "            if event.id in self._ids:\n                return False\n",
        "            if event.id in self._ids:\n                pass\n",
        "tests/unit/test_events.py",
    ),
    Bug(
        "any web page may report events",
        "meshrpc/control/http.py",
        '        if request.content_type != "application/json":\n',
        "        if False:\n",
        "tests/integration/test_events.py",
    ),
    Bug(
        "a reload never lets the old worker go",
        "meshrpc/workers/team.py",
        "            if place.current is not None:\n                self._drain(place.current, now)\n            place.current, place.replacement",
        "            place.current, place.replacement",
        "tests/unit/test_team.py",
    ),
    Bug(
        "two services can reserve one shared port",
        "meshrpc/workers/shared_port.py",
        "SO_REUSEADDR, 0)",
        "SO_REUSEADDR, 1)",
        "tests/unit/test_shared_port.py",
    ),
    Bug(
        "a share is free before its process says so",
        "meshrpc/control/quota_member.py",
        "return max(0 if claim is None else claim.share, self.pending.get(bucket) or 0)",
        "return 0 if claim is None else claim.share",
        "tests/unit/test_quota_machine.py",
    ),
    Bug(
        "control that has just started gives away what others hold",
        "meshrpc/control/quota.py",
        "whole = {key: limit.whole(key) if self._is_recovering else WHOLE for key in keys}",
        "whole = dict.fromkeys(keys, WHOLE)",
        "tests/unit/test_quota.py",
    ),
    Bug(
        "who asks for most is served first",
        "meshrpc/limits/admission_queue.py",
        "        line = min(self._callers.values(), key=_clock)\n",
        "        line = max(self._callers.values(), key=_clock)\n",
        "tests/unit/test_admission_queue.py",
    ),
    Bug(
        "a call of whoever has time to spare is shed like any other",
        "meshrpc/limits/admission_queue.py",
        "            if waited > each.patience:\n",
        "            if True:\n",
        "tests/unit/test_admission_queue.py",
    ),
    Bug(
        "a share that grows brings a burst",
        "meshrpc/limits/limit.py",
        "self._buckets[key] = self._untouched.copy()",
        "self._buckets[key] = self._full(None)",
        "tests/unit/test_rate_limiter_exact.py",
    ),
    Bug(
        "a worker that is stopped before it is ready has no time for it",
        "meshrpc/workers/team.py",
        "self._lives[key].stop_within = stop_within",
        "self._lives[key].stop_within = 0.0",
        "tests/unit/test_team.py",
    ),
    Bug(
        "a check whose own work is cancelled ends the asking",
        "meshrpc/server/callback.py",
        "if task is None or task.cancelling():",
        "if True:",
        "tests/integration/test_readiness.py",
    ),
    Bug(
        "one name that is no UTF-8 ends the server",
        "meshrpc/server/intake.py",
        "if self._is_readable(stop.value):",
        "if True:",
        "tests/hostile/test_attacks.py",
    ),
    Bug(
        "a caller hangs up on who drains",
        "meshrpc/client/endpoints.py",
        "grace = None if endpoint.is_leaving else CLOSE_GRACE",
        "grace = CLOSE_GRACE",
        "tests/integration/test_leaving_instance.py",
    ),
    Bug(
        "every stream that breaks is told that its server leaves",
        "meshrpc/client/attempt.py",
        "if self.endpoint.is_leaving and has_broken(code, details):",
        "if has_broken(code, details):",
        "tests/integration/test_leaving_instance.py",
    ),
)
