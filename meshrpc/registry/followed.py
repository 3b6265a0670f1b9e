"""A service that is followed: what was last heard of it, and everyone who is told.

How it is followed, by which questions and how often, is each registry's own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from meshrpc.registry.registry import Snapshot, Watch

log = logging.getLogger(__name__)


class Followed:
    """One service, for all who watch it. `on_idle` is called after the last watch."""

    def __init__(self, service: str, on_idle: Callable[[], None]) -> None:
        self.service = service
        self.last: Snapshot | None = None
        self.silent: str | None = None
        """Why the registry does not answer just now, or not with what there is just now."""
        self._on_idle = on_idle
        self._watches: list[_Watch] = []

    def __repr__(self) -> str:
        known = "nothing yet" if self.last is None else f"instances={len(self.last.instances)}"
        return f"<{type(self).__name__} {self.service} watches={len(self._watches)} {known}>"

    def watch(self, on_snapshot: Callable[[Snapshot], None]) -> Watch:
        """Add a watch; it is told at once what is known."""
        watch = _Watch(self, on_snapshot)
        self._watches.append(watch)
        self._deliver(watch)
        return watch

    def unwatch(self, watch: _Watch) -> None:
        """Remove a watch; `on_idle` is called after the last one."""
        if watch in self._watches:
            self._watches.remove(watch)
            if not self._watches:
                self._on_idle()

    def _publish(self, snapshot: Snapshot) -> None:
        # Whom it skipped is news too, though snapshots that differ in nothing else are equal.
        if self.last is None or (snapshot, snapshot.skipped) != (self.last, self.last.skipped):
            self.last = snapshot
            for watch in tuple(self._watches):
                self._deliver(watch)

    def _deliver(self, watch: _Watch) -> None:
        if self.last is None or watch not in self._watches:
            return
        try:
            watch.on_snapshot(self.last)
        except Exception:
            log.exception("a watch of %r failed; it will be called again", self.service)


class _Watch:
    def __init__(self, followed: Followed, on_snapshot: Callable[[Snapshot], None]) -> None:
        self._followed = followed
        self.on_snapshot = on_snapshot

    def __repr__(self) -> str:
        return f"<Watch of {self._followed!r}>"

    def close(self) -> None:
        self._followed.unwatch(self)

    def why_silent(self) -> str | None:
        """Return why the registry does not answer just now; None while it does."""
        return self._followed.silent
