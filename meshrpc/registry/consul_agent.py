"""One Consul agent's HTTP interface, through py-consul: what this library asks, and its errors.

Every request has an end, and every failure, from a refused connection to a page of HTML, is a
`RegistryError` of one line. py-consul's health queries know neither stale reads nor how old an
answer is, so they go through its HTTP client directly.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import warnings
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import consul
import consul.aio
from consul.callback import CB

from meshrpc.errors import RegistryError, SettingsError
from meshrpc.excerpt import excerpt
from meshrpc.registry.consul_url import ConsulUrl

ASK_WITHIN = 5.0
"""Seconds for one request that does not wait for a change."""
WAIT = 30
"""Seconds a blocking query waits for a change: below common idle timeouts of proxies, and the
longest that a process without a lease, which would tell, may miss that Consul started anew."""
WAIT_WITHIN = WAIT * 17 / 16 + ASK_WITHIN
"""Seconds until such a query is given up: Consul adds up to a sixteenth to what it is asked."""
OLD = 10.0
"""Seconds since its server heard from a leader after which a stale answer is called old."""
CONNECTIONS = 4096
"""One for each watch and a few: too few would let watches starve the renewals."""
SHOWN = 200
"""Characters that are shown of what Consul, or something else, answered."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a health query returned."""

    index: int
    entries: list[Any]
    old: str | None = None
    """Why it may not be what there is just now, if so."""


class ConsulAgent:
    """Asks the agent at a URL, between `open` and `close`. All methods raise `RegistryError`."""

    def __init__(self, url: ConsulUrl) -> None:
        self.url = url
        self._client: consul.aio.Consul | None = None

    def __repr__(self) -> str:
        return f"<ConsulAgent {self.url.address} {'closed' if self._client is None else 'open'}>"

    def open(self) -> None:
        """Begin. Not sooner than in the loop that asks: the HTTP session belongs to it.

        Raises:
            SettingsError: its certificates cannot be loaded.
        """
        url = self.url
        try:
            with warnings.catch_warnings():
                # py-consul passes aiohttp arguments by their deprecated names.
                warnings.simplefilter("ignore", DeprecationWarning)
                self._client = consul.aio.Consul(
                    url.host,
                    url.port,
                    scheme="https" if url.tls else "http",
                    consistency="stale" if url.stale else "default",
                    # Loading the machine's certificates takes longer than all the rest.
                    verify=url.tls and url.verify and (url.ca or True),
                    cert=url.certificate,
                    connections_limit=CONNECTIONS,
                )
        except OSError as error:  # ssl.SSLError is one
            files = ", ".join(
                f"{name}={file}" for name in ("ca", "cert", "key") if (file := getattr(url, name))
            )
            raise SettingsError(f"registry at {url.address}: {files}: {_cause(error)}") from error
        if url.token is not None:
            self._client.token = url.token  # py-consul lets CONSUL_HTTP_TOKEN win

    async def close(self) -> None:
        """End; again: does nothing."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    @property
    def client(self) -> consul.aio.Consul:
        """py-consul's client."""
        if self._client is None:
            raise RegistryError(f"{self!r} is used outside its 'async with' block")
        return self._client

    async def health(
        self, service: str, *, dc: str | None, tag: Iterable[str] = (), index: int | None = None
    ) -> Answer:
        """Return a service's entries, whatever their checks say; with an index, once it is over."""
        params: list[tuple[str, Any]] = [("tag", each) for each in tag]
        if index is not None:
            params += [("index", index), ("wait", f"{WAIT}s")]
        if dc is not None:
            params.append(("dc", dc))
        if self.url.stale:
            params.append(("stale", "1"))
        return await self.ask(
            self.client.http.get(
                _health_answer,
                f"/v1/health/service/{service}",
                params=params,
                headers=self.client.prepare_headers(),
            ),
            ASK_WITHIN if index is None else WAIT_WITHIN,
        )

    async def service_names(self) -> list[str]:
        """Return the names of all services of the datacenter that is looked into."""
        answer = await self.ask(self.client.catalog.services(dc=self.url.dc))
        return list(self._object(answer[1]))

    async def services(self, *ids: str) -> list[dict[str, Any]]:
        """Return those of the agent's own services that have these ids."""
        expression = " or ".join(f"ID == {json.dumps(id_)}" for id_ in ids)
        found = self._object(await self.ask(self.client.agent.services(filter_expr=expression)))
        return [self._object(found[id_]) for id_ in ids if id_ in found]

    async def checks(self, service_id: str) -> dict[str, dict[str, Any]]:
        """Return the checks of one of the agent's own services, by id."""
        expression = f"ServiceID == {json.dumps(service_id)}"
        found = self._object(await self.ask(self.client.agent.checks(filter_expr=expression)))
        return {id_: self._object(check) for id_, check in found.items()}

    async def register(self, wanted: dict[str, Any]) -> None:
        """Register a service with the agent."""
        await self.ask(self.client.agent.service.register(**wanted))

    async def pass_check(self, check: str) -> bool:
        """Extend a lease; False when the agent has none of that id."""
        try:
            return bool(await self.ask(self.client.agent.check.ttl_pass(check)))
        except RegistryError as error:
            # Up to Consul 1.11; later ones answer 404.
            if "does not have associated TTL" in str(error.__cause__):
                return False
            raise

    async def node(self) -> str | None:
        """Return the agent's node's name; None where the token does not allow to ask."""
        try:
            answer = await self.ask(self.client.agent.self())
        except RegistryError as error:
            if isinstance(error.__cause__, consul.ACLPermissionDenied):
                return None
            raise
        return str(self._object(self._object(answer).get("Config")).get("NodeName"))

    def _object(self, answer: Any) -> dict[str, Any]:
        if not isinstance(answer, dict):
            raise RegistryError(
                f"no usable answer from Consul at {self.url.address}: "
                f"no object, but {type(answer).__name__}"
            )
        return answer

    async def ask(self, request: Awaitable[T], within: float = ASK_WITHIN) -> T:
        """Wait for a request of py-consul's."""
        address = self.url.address
        try:
            async with asyncio.timeout(within):
                return await request
        except consul.ConsulException as error:
            said = excerpt(str(error), SHOWN)
            if said.startswith(("Failed to decode", "Missing index")):
                raise RegistryError(f"no usable answer from Consul at {address}: {said}") from error
            raise RegistryError(f"Consul at {address} refused: {said}") from error
        except TimeoutError as error:
            raise RegistryError(
                f"cannot reach Consul at {address}: no answer in {within:g} s"
            ) from error
        except (aiohttp.ClientSSLError, ssl.SSLError) as error:
            raise RegistryError(
                f"cannot reach Consul at {address}: {excerpt(_cause(error), SHOWN)}; "
                "check tls=, ca=, cert= and key="
            ) from error
        except aiohttp.ClientResponseError as error:  # what came is no HTTP
            raise RegistryError(
                f"no usable answer from Consul at {address}: {excerpt(error.message, SHOWN)}"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise RegistryError(
                f"cannot reach Consul at {address}: {excerpt(_cause(error), SHOWN)}; is it running?"
            ) from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            said = excerpt(f"{type(error).__name__} {error}", SHOWN)
            raise RegistryError(f"no usable answer from Consul at {address}: {said}") from error


def _health_answer(response: Any) -> Answer:
    index, entries = CB.json(index=True)(response)
    if not isinstance(entries, list):
        raise TypeError(f"no list, but {type(entries).__name__}")
    old = None
    headers = response.headers
    contact = headers.get("X-Consul-LastContact", "0")  # milliseconds
    seconds = int(contact) / 1000 if contact.isdecimal() else 0.0
    if headers.get("X-Consul-KnownLeader") == "false":
        old = f"Consul has no leader, and its answer is {seconds:.0f} s old"
    elif seconds > OLD:
        old = f"Consul's answer is {seconds:.0f} s old"
    return Answer(int(index), entries, old)


def _cause(error: BaseException) -> str:
    """Say in few words why a connection failed."""
    system = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
    if isinstance(system, ssl.SSLError):
        said = getattr(system, "verify_message", "") or system.reason or system
        return str(said).replace("_", " ").lower()
    if isinstance(system, OSError) and system.errno is not None and system.errno > 0:
        return os.strerror(system.errno).lower()
    return str(error) or type(error).__name__
