"""What the fault tests measure with, on runs that are made up."""

import json
import math
import subprocess
import sys

import grpc
import pytest

from tests.faults.account import back_after, fast_after
from tests.faults.load import DEADLINE, Call, Lag, Load, Run
from tests.faults.methods import GET
from tests.faults.rig import ROOT
from tests.faults.victim import SLOWER, TAKES


def calls(fails, *, until=10.0, rate=100):
    """Return calls at even times, of which those fail for whose time `fails` holds."""
    times = [number / rate for number in range(int(until * rate))]
    codes = {True: grpc.StatusCode.UNAVAILABLE, False: grpc.StatusCode.OK}
    return [Call(str(at), GET, at, at, at + 0.02, codes[fails(at)]) for at in times]


@pytest.mark.parametrize(
    ("fails", "back"),
    [
        (lambda at: at < 3, 0.95),  # from then on a second holds 5 % of failures at most
        (lambda at: at < 3 or 6 <= at < 6.2, 4.15),
        (lambda at: False, 0.0),
        (lambda at: round(at * 100) % 10 == 0, math.inf),
        (lambda at: at >= 9.5, math.inf),
    ],
    ids=["once", "again", "never", "one-in-ten", "at-the-end"],
)
def test_an_arm_is_back_when_its_calls_go_on_to_succeed(fails, back):
    """95 % of every second, from then to the end; not a second in between."""
    assert back_after(calls(fails), healed=2.0) == pytest.approx(back, abs=0.051)


@pytest.mark.parametrize(
    ("slow", "after"),
    [
        (lambda number: False, 0.0),
        (lambda number: number < 600, 3.0),  # then three seconds hold three of them at most
        (lambda number: number % 50 == 0, math.inf),
        (lambda number: number % 101 == 0, 0.0),
        (lambda number: 300 <= number < 450 or 720 <= number < 1000, math.inf),
    ],
    ids=["healthy", "for-a-while", "one-in-fifty", "one-in-a-hundred", "again"],
)
@pytest.mark.parametrize("takes", [0.02, 0.1], ids=["quiet", "noisy"])
def test_an_arm_is_fast_when_few_of_its_calls_are_slow(slow, after, takes):
    """99 % of three seconds take at most twice as long as calls to healthy instances just then."""

    def arm(is_slow, slow_one):
        load = Load(None, 100.0, (GET,), 1, calls(lambda at: False))
        for number, call in enumerate(load.calls):
            call.ended = call.meant + (slow_one if is_slow(number) else takes)
        return load

    loads = {
        "mesh": arm(slow, 3 * takes),
        "bare": arm(lambda number: number % 4 == 0, TAKES * SLOWER + 0.005),
    }
    run = Run(None, 0.0, loads, Lag(), {}, {"healthy": 0.0, "fault": 3.0})
    assert fast_after(run, "mesh") == pytest.approx(after, abs=0.051)


def test_nothing_is_said_of_a_time_without_calls():
    """Less than a second of calls is too little to tell."""
    assert back_after(calls(lambda at: False, until=2.5), healed=2.0) is None
    assert back_after([], healed=2.0) is None


@pytest.mark.parametrize(
    ("late", "loop", "over"),
    [
        (0.2, [], 0.2),
        (0.2, [(10.9, 11.1)], 0.0),
        (0.2, [(5.0, 6.0)], 0.2),
        (0.005, [], 0.0),
        (-0.5, [], 0.0),
    ],
    ids=["late", "loop-late", "loop-late-before", "timer", "in-time"],
)
def test_a_call_is_overdue_by_what_the_loop_was_not_late_by(late, loop, over):
    """A call that ends after its deadline is late, except for as long as nobody could see it."""
    lag = Lag()
    lag._late = loop
    call = Call("1", GET, 10.0, 10.0, 10.0 + DEADLINE + late, grpc.StatusCode.DEADLINE_EXCEEDED)
    load = Load(None, 1.0, (GET,), 1, [call])
    run = Run(None, 0.0, {"mesh": load}, lag, {})
    assert run.overdue("mesh") == pytest.approx(over, abs=0.001)


@pytest.mark.process
@pytest.mark.soak
def test_the_benchmark_answers_in_json():
    """It ends by itself and prints what it measured of both arms."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", "--only", "refusing", "-o", "json"],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["scenarios"]
    assert set(found["arms"]) == {"mesh", "bare"}
    assert all(arm["calls"] > 100 for arm in found["arms"].values())
