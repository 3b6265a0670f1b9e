"""Policies that a test lays down itself, where otherwise control would push them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from meshrpc.policy.documents import load_documents
from meshrpc.policy.model import Policy

_OnPolicy = Callable[[Policy | None], None]


class LocalPolicies:
    """A `PolicySource` whose documents are applied in this process."""

    def __init__(self) -> None:
        self._documents: dict[str, Policy] = {}
        self._watches: list[_PolicyWatch] = []

    def __repr__(self) -> str:
        return f"<LocalPolicies {', '.join(sorted(self._documents)) or 'none'}>"

    def apply(self, document: str | Mapping[str, Any]) -> tuple[str, ...]:
        """Replace what its service had by a document, for everybody and at once.

        Args:
            document: YAML or JSON text, of one document or of several; or one as a mapping.

        Returns:
            What is accepted and not carried out.

        Raises:
            PolicyError: the document cannot be used; everything stays as it was.
        """
        text = document if isinstance(document, str) else json.dumps(document)
        loaded = load_documents(text, source="mesh.policy")
        before = dict(self._documents)
        try:
            for each in loaded:
                self._replace(each.policy.service, each.policy)
        except BaseException:
            for each in loaded:
                service = each.policy.service
                self._replace(service, before.get(service))
            raise
        return tuple(warning for each in loaded for warning in each.warnings)

    def watch_policy(self, service: str, on_policy: _OnPolicy) -> _PolicyWatch:
        """Call `on_policy` with the service's document, now and with each later one."""
        watch = _PolicyWatch(self._watches, service, on_policy)
        on_policy(self._documents.get(service))
        return watch

    def _replace(self, service: str, policy: Policy | None) -> None:
        if policy is None:
            self._documents.pop(service, None)
        else:
            self._documents[service] = policy
        for watch in tuple(self._watches):
            if watch.service == service and watch in self._watches:
                watch.on_policy(policy)


class _PolicyWatch:
    def __init__(self, watches: list[_PolicyWatch], service: str, on_policy: _OnPolicy) -> None:
        self.service = service
        self.on_policy = on_policy
        self._watches = watches
        watches.append(self)

    def close(self) -> None:
        """Stop: the callback is not called again."""
        if self in self._watches:
            self._watches.remove(self)
