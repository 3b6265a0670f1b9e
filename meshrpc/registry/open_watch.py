"""A watch as its owner holds it: told until it is closed, also when it fails."""

from __future__ import annotations

import logging
from collections.abc import Callable

from meshrpc.registry.registry import Snapshot

log = logging.getLogger(__name__)


class OpenWatch:
    """One callback for the snapshots of one service.

    Args:
        service: its name.
        on_snapshot: is told.
        on_close: called once, when somebody closes it.
        why_silent: what a watch answers to that.
    """

    def __init__(
        self,
        service: str,
        on_snapshot: Callable[[Snapshot], None],
        *,
        on_close: Callable[[OpenWatch], None],
        why_silent: Callable[[], str | None],
    ) -> None:
        self.service = service
        self._on_snapshot = on_snapshot
        self._on_close = on_close
        self._why_silent = why_silent
        self._is_open = True

    def __repr__(self) -> str:
        return f"<OpenWatch {self.service}{'' if self._is_open else ' closed'}>"

    def close(self) -> None:
        """Stop: the callback is not called again."""
        if self._is_open:
            self._is_open = False
            self._on_close(self)

    def why_silent(self) -> str | None:
        """Return why the registry does not answer just now; None while it does."""
        return self._why_silent()

    def deliver(self, snapshot: Snapshot) -> None:
        """Tell it, unless it was closed."""
        if not self._is_open:
            return
        try:
            self._on_snapshot(snapshot)
        except Exception:
            log.exception("a watch of %r failed; it will be called again", self.service)
