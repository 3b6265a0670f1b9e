"""Waiting, before a service starts, for the services that it cannot do without.

For the order of a cold start alone, and not for ever: two services that require each other would
wait for good, and one that is down would keep down all that stand on it. So after a while the
service starts all the same, and says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from meshrpc.clock import Clock
from meshrpc.log_rate import LogRate

WAIT_AT_MOST: Final = 30.0
"""Seconds until a service starts without those that it requires."""
SAY_EVERY: Final = 10.0
"""Seconds between two words on what is waited for."""
LOOK_EVERY: Final = 0.05
"""Seconds, of real time: whoever is looked for connects in real time."""

_LOG = logging.getLogger("meshrpc.server")


async def wait_for(required: Mapping[str, Callable[[], bool]], clock: Clock) -> None:
    """Return once all the services can be called, or after `WAIT_AT_MOST` seconds.

    Args:
        required: by name, whether a service has an instance that can be called just now.
        clock: what the seconds are counted on.
    """
    started = clock.now()
    words = LogRate(SAY_EVERY)
    while missing := ", ".join(
        name for name, can_be_called in required.items() if not can_be_called()
    ):
        now = clock.now()
        if now - started >= WAIT_AT_MOST:
            _LOG.warning(
                "starts without %s, which it requires: no instance after %g s. If they wait for "
                "this service in turn, one of the two should not require the other.",
                missing,
                WAIT_AT_MOST,
            )
            return
        if words.allows("missing", now) is not None:
            _LOG.info("waits for %s before it starts", missing)
        await asyncio.sleep(LOOK_EVERY)
