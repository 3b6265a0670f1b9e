"""What a team has decided and its supervisor has not carried out yet, in order."""

from __future__ import annotations

from meshrpc.workers.actions import Action, Tell
from meshrpc.workers.events import EventKind
from meshrpc.workers.places import Life


class Outbox:
    """Actions, until they are taken."""

    def __init__(self) -> None:
        self._actions: list[Action] = []

    def __repr__(self) -> str:
        return f"<Outbox actions={len(self._actions)}>"

    def append(self, action: Action) -> None:
        """Have it carried out after those before it."""
        self._actions.append(action)

    def tell(
        self,
        text: str,
        life: Life | None = None,
        *,
        kind: EventKind | None = None,
        reason: str = "",
        is_bad: bool = True,
    ) -> None:
        """Have `text` logged, and an event of `kind` reported; `life`: whom it is about."""
        self.append(
            Tell(
                text,
                kind=kind,
                reason=reason,
                number=life.number if life else None,
                pid=life.pid if life else None,
                instance=life.instance if life else None,
                is_bad=is_bad,
            )
        )

    def taken(self) -> list[Action]:
        """Return all, and forget them."""
        actions, self._actions = self._actions, []
        return actions


def workers(count: int) -> str:
    """Return `count` workers in words."""
    return "1 worker" if count == 1 else f"{count} workers"
