"""An outage is warned of once a minute, and its end is told once."""

from meshrpc.outage import WARN_EVERY, Outage


def test_the_first_failure_is_warned_of_and_after_it_one_a_minute():
    """However often it is tried meanwhile."""
    outage = Outage()
    warned = [now for now in range(200) if outage.goes_on(float(now))]
    assert warned == [0, WARN_EVERY, 2 * WARN_EVERY, 3 * WARN_EVERY]
    assert outage.failures == 200
    assert repr(outage) == "<Outage failures=200>"


def test_its_end_is_told_once():
    """And nothing is told of what never failed."""
    outage = Outage()
    assert not outage.end()
    outage.goes_on(0.0)
    assert outage.end()
    assert outage.failures == 0
    assert not outage.end()


def test_what_comes_and_goes_is_warned_of_no_more_often():
    """Each of its ends is told; its beginnings are not a warning each."""
    outage = Outage()
    warned = []
    for now in range(200):
        if outage.goes_on(float(now)):
            warned.append(now)
        assert outage.end()
    assert warned == [0, WARN_EVERY, 2 * WARN_EVERY, 3 * WARN_EVERY]
