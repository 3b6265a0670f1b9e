"""A file as a registry: `file:///etc/meshrpc/services.yaml`, read again when it changes.

It is looked at once a second (no notification works on every file system), and read when a change
has stood still from one look to the next: so also what is not renamed into its place but written
there is never read by halves. A file that is bad, or gone, changes nothing: what the last good one
said stays, and watches, findings and one warning say what is wrong. It registers nobody and knows
nobody's health beyond what it says.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.errors import Problem as Wrong
from meshrpc.errors import RegistryError, SettingsError
from meshrpc.registry.departures import Departures
from meshrpc.registry.file_document import Services, concerns
from meshrpc.registry.file_look import Signature, look_at
from meshrpc.registry.finding import Finding, Problem
from meshrpc.registry.instance import Health, Instance
from meshrpc.registry.open_watch import OpenWatch
from meshrpc.registry.read_only import ReadOnly
from meshrpc.registry.registry import Snapshot, Watch

SCHEME = "file:"
EXAMPLE = "file:///etc/meshrpc/services.yaml or file:services.yaml"

LOOK_EVERY = 1.0
"""Seconds between two looks at the file."""
log = logging.getLogger(__name__)


class FileRegistry(ReadOnly):
    """The services that a file lists.

    Args:
        url: `file:///PATH`, or `file:PATH` from the current folder.
        namespace: whose services are read, and what their instances say they belong to.
        clock: the time between looks.

    Raises:
        SettingsError: the URL names no file.
    """

    because = "a file: registry is a list that somebody else writes, and registers nobody"

    def __init__(
        self, url: str, namespace: str = "default", *, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self.namespace = namespace
        self.path = _path(url)
        self._clock = clock
        self._services: Services | None = None
        self._departures = Departures()
        self._wrong: tuple[Wrong, ...] = ()
        self._warned: object = None
        self._seen: Signature | None = None
        self._read: Signature | None = None
        self._looking = asyncio.Lock()
        self._watches: list[OpenWatch] = []
        self._follower: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        known = "nothing yet" if self._services is None else f"services={len(self._services)}"
        return f"<FileRegistry {self.path} {self.namespace} {known}>"

    async def __aenter__(self) -> Self:
        self._looking = asyncio.Lock()  # the last one may belong to another loop
        self._follower = asyncio.create_task(self._follow(), context=contextvars.Context())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._watches.clear()
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.cancel()
            await asyncio.wait([follower])

    async def services(self) -> tuple[str, ...]:
        """Return the names of all services with instances, sorted.

        Raises:
            RegistryError: there has never been a file that can be used.
        """
        services = await self._known()
        return tuple(sorted(name for name, instances in services.items() if instances))

    async def instances(self, service: str) -> tuple[Instance, ...]:
        """Return the service's instances, ordered by id; raises as `services` does."""
        return (await self._known()).get(service, ())

    async def findings(self, service: str) -> tuple[Finding, ...]:
        """Return why the file cannot be used, and who does not serve by its word."""
        await self.look()
        wrong = [each for each in self._wrong if concerns(each, service)]
        found = [Finding(Problem.BAD_RECORD, service, "", self._say(each)) for each in wrong]
        if self._wrong and not wrong:
            found = [Finding(Problem.BAD_RECORD, service, "", self.why_silent() or "")]
        for each in (self._services or {}).get(service, ()):
            if each.health is Health.NOT_SERVING:
                found.append(Finding(Problem.NOT_SERVING, service, each.id, f"{self.path} says so"))
        return tuple(found)

    def watch(self, service: str, on_snapshot: Callable[[Snapshot], None]) -> Watch:
        """Call `on_snapshot` when the file has been read, and with each change; at once if it was.

        Changes are told while the registry is entered.
        """
        watch = OpenWatch(service, on_snapshot, on_close=self._unwatch, why_silent=self.why_silent)
        self._watches.append(watch)
        if self._services is not None:
            watch.deliver(self._snapshot(service))
        return watch

    def _unwatch(self, watch: OpenWatch) -> None:
        if watch in self._watches:  # else the registry was left first
            self._watches.remove(watch)

    def why_silent(self) -> str | None:
        """Return why the file cannot be used just now; None when it can, or is not yet read."""
        if not self._wrong:
            return None
        more = f" (and {len(self._wrong) - 1} more)" if len(self._wrong) > 1 else ""
        return f"the registry file cannot be used: {self._say(self._wrong[0])}{more}"

    async def look(self) -> None:
        """Read the file if it has changed; if it is good, tell the watches what that means."""
        async with self._looking:
            hurries = self._services is None  # there is nothing to lose yet
            looked = await asyncio.to_thread(
                look_at, self.path, self.namespace, self._seen, self._read, hurries=hurries
            )
            self._seen = looked.signature
            if not looked.is_same:
                self._read = looked.signature
                was_wrong, self._wrong = bool(self._wrong), looked.problems
                if looked.services is not None:
                    if was_wrong:
                        log.info("%s can be used", self.path)
                    self._take(looked.services)
            self._warn()

    async def _follow(self) -> None:
        while True:
            await self.look()
            await self._clock.sleep(LOOK_EVERY)

    async def _known(self) -> Services:
        if self._services is None or self._follower is None:
            await self.look()
        if self._services is None:
            raise RegistryError(self.why_silent() or f"{self.path} cannot be read")
        return self._services

    def _take(self, services: Services) -> None:
        before, self._services = self._services, services
        changed = {watch.service for watch in self._watches} if before is None else set()
        for service in (before or {}).keys() | services.keys():
            was, now = (before or {}).get(service, ()), services.get(service, ())
            if was == now:
                continue
            changed.add(service)
            listed = {each.id for each in now}
            for id_ in listed:
                self._departures.discard((self.namespace, service, id_))
            for each in was:
                if each.id not in listed:  # whoever took it out of the file meant it
                    self._departures.add((self.namespace, service, each.id))
        for watch in tuple(self._watches):
            if watch.service in changed:
                watch.deliver(self._snapshot(watch.service))

    def _snapshot(self, service: str) -> Snapshot:
        return Snapshot(
            service,
            (self._services or {}).get(service, ()),
            departed=self._departures.of(self.namespace, service),
        )

    def _warn(self) -> None:
        """Log what is wrong, once for each bad version, if anybody lives with it."""
        version = (self._read, self._wrong)
        if version == self._warned or not (self._watches or self._services):
            return
        self._warned = version
        kept = "" if self._services is None else "; what it said before is kept"
        for wrong in self._wrong:
            log.warning("%s%s", self._say(wrong), kept)

    def _say(self, wrong: Wrong) -> str:
        return f"{self.path}: {wrong}" if wrong.path else f"{self.path}: {wrong.rule}"


def _path(url: str) -> Path:
    rest = url.strip().removeprefix(SCHEME)
    if rest.startswith("//"):
        owner, slash, path = rest[2:].partition("/")
        if owner not in ("", "localhost"):
            raise SettingsError(
                f"registry {url!r}: after file:// the path begins with a third slash; "
                f"expected one as in {EXAMPLE}"
            )
        rest = slash + path
    rest = urllib.parse.unquote(rest)
    if not rest or rest.endswith("/") or "\0" in rest:
        raise SettingsError(f"registry {url!r}: expected a file as in {EXAMPLE}")
    return Path(rest).absolute()
