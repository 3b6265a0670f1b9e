"""What grpcio and OpenTelemetry log of metadata that they cannot read, as often as `LogRate` allows.

Both write for each such value, grpcio a traceback, OpenTelemetry the value itself, however long:
one client could fill a disk with them. Here each cause, told by how the text begins, has a line
a second, and no more of it than people read.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Final

from meshrpc.clock import SYSTEM_CLOCK
from meshrpc.log_rate import LogRate

LOGGERS: Final = (
    "grpc._cython.cygrpc",
    "opentelemetry.baggage.propagation",
    "opentelemetry.trace.propagation.tracecontext",
)
_BEGINNING: Final = 16
_LONGEST: Final = 500


@contextlib.contextmanager
def limited(now: Callable[[], float] = SYSTEM_CLOCK.now) -> Iterator[None]:
    """Limit what these libraries log of others' input, for as long as this is entered."""
    limit = _Limit(now)
    for name in LOGGERS:
        logging.getLogger(name).addFilter(limit)
    try:
        yield
    finally:
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(limit)


class _Limit(logging.Filter):
    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__()
        self._now = now
        self._rate = LogRate()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        left_out = self._rate.allows(f"{record.name} {str(record.msg)[:_BEGINNING]}", self._now())
        if left_out is None:
            return False
        text = record.getMessage()
        if len(text) > _LONGEST:
            text = f"{text[:_LONGEST]}... ({len(text)} characters)"
        record.msg, record.args = (f"{text} ({left_out} more left out)" if left_out else text), None
        return True
