"""Who left a registry by its own word: ids whose absence is certain.

A watcher that misses an instance cannot tell whether it left or was forgotten; of those named here
it can. Bounded, oldest out first: whoever was away while more of them left finds out by itself
that the others are gone. Pure.
"""

from __future__ import annotations

REMEMBERED = 10_000
"""Departures that are remembered in all: a whole fleet's."""
OF_ONE_SERVICE = 1_000
"""Of one service so many at most: each watcher is told all of them."""

_Service = tuple[str, str]
_Key = tuple[str, str, str]


class Departures:
    """Ids by (namespace, service), newest last."""

    def __init__(self) -> None:
        self._all: dict[_Key, None] = {}
        self._services: dict[_Service, dict[str, None]] = {}

    def __repr__(self) -> str:
        return f"<Departures services={len(self._services)} ids={len(self._all)}>"

    def add(self, key: _Key) -> bool:
        """Remember a departure; False when it is known."""
        if key in self._all:
            return False
        namespace, service, id_ = key
        ids = self._services.setdefault((namespace, service), {})
        self._all[key] = ids[id_] = None
        if len(ids) > OF_ONE_SERVICE:
            self.discard((namespace, service, next(iter(ids))))
        if len(self._all) > REMEMBERED:
            self.discard(next(iter(self._all)))
        return True

    def discard(self, key: _Key) -> None:
        """Forget a departure: it came back."""
        if key not in self._all:
            return
        namespace, service, id_ = key
        del self._all[key]
        ids = self._services[namespace, service]
        del ids[id_]
        if not ids:
            del self._services[namespace, service]

    def of(self, namespace: str, service: str) -> frozenset[str]:
        """Return the ids that left the service."""
        return frozenset(self._services.get((namespace, service), ()))
