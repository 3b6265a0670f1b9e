"""What libraries log of hostile metadata does not fill a disk."""

import logging

import pytest

from meshrpc.server.foreign_logs import LOGGERS, limited


@pytest.mark.parametrize("name", LOGGERS)
def test_a_library_says_once_a_second_what_it_cannot_read(caplog, name):
    """The value is another each time, and long; what is written says how much was left out."""
    now = [100.0]
    log = logging.getLogger(name)
    with limited(lambda: now[0]):
        for number in range(1_000):
            log.warning("Invalid encoding on %s", f"{number}" + "x" * 16_000)
        now[0] += 1.0
        log.warning("Invalid encoding on %s", "y")
    first, second = [record.getMessage() for record in caplog.records]
    assert first.startswith("Invalid encoding on 0xxx")
    assert len(first) < 600
    assert second == "Invalid encoding on y (999 more left out)"


def test_another_cause_is_written_at_once(caplog):
    """One that floods hides no other."""
    log = logging.getLogger(LOGGERS[0])
    with limited(lambda: 100.0):
        for _ in range(10):
            log.error("Invalid encoding on %s", b"\xff")
        log.error("Unexpected [%s] raised by servicer method", "TypeError")
    assert [record.getMessage()[:10] for record in caplog.records] == ["Invalid en", "Unexpected"]


def test_nothing_is_limited_once_the_service_has_left(caplog):
    """Other programs of the process get their logs as they are."""
    log = logging.getLogger(LOGGERS[0])
    with limited():
        pass
    for _ in range(3):
        log.error("Invalid encoding on %s", b"\xff")
    assert len(caplog.records) == 3
