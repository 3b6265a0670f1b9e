"""What others bring about fills no log."""

from meshrpc.log_rate import LogRate


def test_the_first_line_of_a_cause_is_written():
    """Whatever else was written just before."""
    rate = LogRate()
    assert rate.allows("a", 0.0) == 0
    assert rate.allows("b", 0.0) == 0


def test_a_cause_has_one_line_a_second_which_says_how_many_were_left_out():
    """A thousand a second for ten seconds, then one more after a pause."""
    rate = LogRate()
    said = [rate.allows("a", number / 1000) for number in range(10_000)]
    written = [count for count in said if count is not None]
    assert written == [0, *[999] * 9]
    assert rate.allows("a", 60.0) == 999


def test_another_interval_may_be_asked_for():
    """One line in ten seconds."""
    rate = LogRate(10.0)
    written = [now for now in range(31) if rate.allows("a", float(now)) is not None]
    assert written == [0, 10, 20, 30]


def test_causes_without_end_take_neither_memory_nor_the_log():
    """Their names come from outside: past a few hundred they share one line a second."""
    rate = LogRate()
    written = [rate.allows(f"cause {number}", 0.0) for number in range(100_000)]
    assert len([each for each in written if each is not None]) < 300
    assert len(rate._causes) < 300
    assert rate.allows("cause 1", 1.0) == 0, "those that were known keep their own"
