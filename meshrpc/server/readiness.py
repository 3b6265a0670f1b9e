"""Whether a process that serves wants calls just now: by the word of functions of the user's.

They are asked once a second. While one of them says no, raises, or does not answer, the process
is not ready: it says so to health checks and in its record, and callers go elsewhere for as long
as there is an elsewhere. It goes on serving whoever calls all the same.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from meshrpc.clock import Clock
from meshrpc.server.callback import name_of, outcome

Check = Callable[[], Awaitable[bool] | bool]

ASK_EVERY: Final = 1.0
"""Seconds between two rounds of questions."""
ANSWER_WITHIN: Final = 5.0
"""Seconds after which no answer means no."""

_LOG = logging.getLogger("meshrpc.server")


class Readiness:
    """Asks the checks from `start` to `stop`, and tells `say` of each change."""

    def __init__(
        self, checks: Sequence[Check], *, say: Callable[[bool], Awaitable[None]], clock: Clock
    ) -> None:
        self.is_ready = True
        self.has_been_ready = asyncio.Event()
        """Set once and for good when it first is."""
        self._checks = tuple(checks)
        self._say = say
        self._clock = clock
        self._asked: dict[int, asyncio.Task[bool]] = {}
        self._asking: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Readiness {'ready' if self.is_ready else 'not ready'} checks={len(self._checks)}>"

    async def start(self) -> None:
        """Ask for the first time, and from then on in the background."""
        await self._ask_all()
        if self._checks:
            self._asking = asyncio.create_task(self._go_on(), context=contextvars.Context())

    async def stop(self) -> None:
        """Ask no more. Again: does nothing."""
        tasks = [*self._asked.values(), *([self._asking] if self._asking else [])]
        self._asked, self._asking = {}, None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=ANSWER_WITHIN)

    async def _go_on(self) -> None:
        while True:
            await self._clock.sleep(ASK_EVERY)
            await self._ask_all()

    async def _ask_all(self) -> None:
        found = await asyncio.gather(*map(self._ask, range(len(self._checks))))
        reasons = [reason for reason in found if reason is not None]
        is_ready = not reasons
        if is_ready is not self.is_ready:
            self.is_ready = is_ready
            if is_ready:
                _LOG.info("ready again: every check says so")
            else:
                _LOG.warning("not ready: %s", "; ".join(reasons))
            await self._say(is_ready)
        if is_ready:
            self.has_been_ready.set()

    async def _ask(self, index: int) -> str | None:
        """Return why the check is against it; None: it is not."""
        name = name_of(self._checks[index])
        # One that has not answered yet is not asked again: threads would pile up.
        task = self._asked.pop(index, None) or asyncio.ensure_future(self._answer(index))
        self._asked[index] = task
        try:
            async with self._clock.timeout(ANSWER_WITHIN):
                says = await asyncio.shield(task)
        except TimeoutError:
            if not task.done():
                return f"{name} has not answered for {ANSWER_WITHIN:g} s"
            del self._asked[index]
            return f"{name} raised TimeoutError"
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no yes
            del self._asked[index]
            return f"{name} raised {type(error).__name__}: {error}"
        del self._asked[index]
        return None if says else f"{name} says no"

    async def _answer(self, index: int) -> bool:
        return bool(await outcome(self._checks[index]))
