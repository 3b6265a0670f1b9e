"""One name in DNS as a registry: `dns://payments.example.com:443`, for servers outside the mesh.

Each address the name has (A and AAAA, by the system's resolver) is an instance, with the address
as its id. The name is resolved again every `RESOLVE_EVERY` seconds, and sooner after an error; what
was known stays known while it cannot be resolved. It knows nobody's health and registers
nobody. Ports from SRV records and the lifetimes that DNS gives its answers are not looked at.
"""

from __future__ import annotations

import asyncio
import contextvars
import ipaddress
import logging
import random
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self

from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.errors import RegistryError, SettingsError
from meshrpc.registry.backoff import backoff
from meshrpc.registry.instance import Instance
from meshrpc.registry.read_only import ReadOnly
from meshrpc.registry.registry import Snapshot, Watch
from meshrpc.settings import parse_address

SCHEME = "dns:"
EXAMPLE = "dns://payments.example.com:443"

RESOLVE_EVERY = 30.0
"""Seconds between two resolutions: as often as gRPC asks at most, and resolvers keep answers."""
WARN_EVERY = 60.0
"""Seconds between two warnings of one outage."""

# `dns://host:port`, or as gRPC writes it, `dns:host:port` and `dns:///host:port`.
_URL = re.compile(r"dns:(?:///?)?(?P<address>[^/?#]+)")

log = logging.getLogger(__name__)

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Return the IP addresses of a host (and port); raise an OSError that says why there are none."""


def parse(url: str) -> tuple[str, int]:
    """Return the host and the port that a `dns:` URL names.

    Raises:
        SettingsError: it names none.
    """
    match = _URL.fullmatch(url.strip())
    if match is None:
        raise SettingsError(f"{url!r}: expected a host and a port as in {EXAMPLE}")
    try:
        host, port = parse_address(match["address"])
    except ValueError as error:
        raise SettingsError(f"{url!r}: {error}; expected one as in {EXAMPLE}") from error
    if port == 0:
        raise SettingsError(f"{url!r}: the port is 1 to 65535")
    return host, port


async def resolve(host: str, port: int) -> Sequence[str]:
    """Ask the system's resolver, in a thread."""
    loop = asyncio.get_running_loop()
    answers = await loop.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in answers]


class DnsRegistry(ReadOnly):
    """The addresses that one host has, as instances of one service.

    Args:
        url: `dns://HOST:PORT`; it is also the name of the only service there is.
        namespace: what the instances say they belong to.
        clock: the time between resolutions.
        rng: the jitter after errors.
        resolve: what is asked for the host's addresses.

    Raises:
        SettingsError: `url` names no host and port.
    """

    because = "a dns: registry only looks names up and registers nobody"

    def __init__(
        self,
        url: str,
        namespace: str = "default",
        *,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
        resolve: Resolve = resolve,
    ) -> None:
        self.namespace = namespace
        self._service = url
        self._host, self._port = parse(url)
        self.authority = f"{self._host}:{self._port}"
        self._clock = clock
        self._rng = rng or random.Random()
        self._resolve = resolve
        self._last: Snapshot | None = None
        self._failure: str | None = None
        self._watches: list[_DnsWatch] = []
        self._follower: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        known = "nothing yet" if self._last is None else f"instances={len(self._last.instances)}"
        return f"<DnsRegistry {self.authority} watches={len(self._watches)} {known}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End every watch, and wait for what they did in the background."""
        for watch in tuple(self._watches):
            watch.close()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def services(self) -> tuple[str, ...]:
        """Return the URL: there is no other service."""
        return (self._service,)

    async def instances(self, service: str) -> tuple[Instance, ...]:
        """Return what the name resolves to now; nothing for another service.

        Raises:
            RegistryError: it does not resolve.
        """
        return (await self._look_up()).instances if service == self._service else ()

    def watch(self, service: str, on_snapshot: Callable[[Snapshot], None]) -> Watch:
        """Call `on_snapshot` with what the name resolves to, and with each change of it.

        This needs a running loop, but not that the registry was entered. Leaving it waits for
        the end of the task that resolves for all watches.
        """
        watch = _DnsWatch(self, on_snapshot)
        if service != self._service:
            watch.deliver(Snapshot(service, ()))
            return watch
        self._watches.append(watch)
        if self._follower is None:
            self._follower = asyncio.create_task(self._follow(), context=contextvars.Context())
            self._tasks.add(self._follower)
            self._follower.add_done_callback(self._tasks.discard)
        if self._last is not None:
            watch.deliver(self._last)
        return watch

    def unwatch(self, watch: _DnsWatch) -> None:
        """Forget a watch; after the last one the name is resolved no more."""
        if watch in self._watches:
            self._watches.remove(watch)
            if not self._watches and self._follower is not None:
                self._follower.cancel()
                self._follower = None

    def failure(self) -> str | None:
        """Return why the last resolution failed; None when it did not."""
        return self._failure

    async def _follow(self) -> None:
        failures = 0
        warned_at: float | None = None
        while True:
            try:
                snapshot = await self._look_up()
            except RegistryError as error:
                failures += 1
                self._failure = str(error)
                now = self._clock.now()
                if warned_at is None or now - warned_at >= WARN_EVERY:
                    warned_at = now
                    log.warning("%s: %s; trying again", self._service, error)
                await self._clock.sleep(backoff(failures, self._rng))
                continue
            if failures:
                log.info("%s: %s can be resolved again", self._service, self._host)
            failures, warned_at, self._failure = 0, None, None
            if snapshot != self._last:
                self._last = snapshot
                for watch in tuple(self._watches):
                    watch.deliver(snapshot)
            await self._clock.sleep(RESOLVE_EVERY)

    async def _look_up(self) -> Snapshot:
        try:
            found = await self._resolve(self._host, self._port)
            addresses = sorted({_address(text, self._port) for text in found})
        except Exception as error:  # whatever a resolver raises: the next time may be better
            raise RegistryError(f"{self._host!r} cannot be resolved: {error}") from error
        if not addresses:
            raise RegistryError(f"{self._host!r} cannot be resolved: it has no address")
        return Snapshot(
            self._service,
            tuple(
                Instance(
                    id=address, service=self._service, address=address, namespace=self.namespace
                )
                for address in addresses
            ),
        )


def _address(text: str, port: int) -> str:
    literal = ipaddress.ip_address(text)
    return f"[{literal}]:{port}" if literal.version == 6 else f"{literal}:{port}"


class _DnsWatch:
    def __init__(self, registry: DnsRegistry, on_snapshot: Callable[[Snapshot], None]) -> None:
        self._registry = registry
        self._on_snapshot: Callable[[Snapshot], None] | None = on_snapshot

    def __repr__(self) -> str:
        return f"<DnsWatch of {self._registry!r}>"

    def close(self) -> None:
        self._on_snapshot = None
        self._registry.unwatch(self)

    def why_silent(self) -> str | None:
        """Return why there has been no snapshot yet, as far as is known."""
        return self._registry.failure()

    def deliver(self, snapshot: Snapshot) -> None:
        if self._on_snapshot is None:
            return
        try:
            self._on_snapshot(snapshot)
        except Exception:
            log.exception("a watch of %s failed; it will be called again", snapshot.service)
