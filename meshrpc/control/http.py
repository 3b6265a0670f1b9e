"""The HTTP face of the control service: health for supervisors, and what the commands show.

As JSON, in the shapes of `-o json`; `?namespace=` chooses the namespace. Errors are JSON too:
`{"error": "..."}`. The one thing that is written here is an event, which a supervisor of workers
posts: it holds no gRPC object.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web

from meshrpc.clock import Clock
from meshrpc.control.control_service import DEFAULT_NAMESPACE
from meshrpc.control.events import CAPACITY, EventLog, parse_events
from meshrpc.control.pushes import ProcessState, Pushes
from meshrpc.control.quota import Holding, Quota
from meshrpc.control.store import PolicyStore, StoredPolicy
from meshrpc.registry.leases import LeaseTable

_log = logging.getLogger(__name__)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_SHOWN: Final = 200
"""Characters of a name that an error repeats."""
MAX_DIGITS: Final = 18
"""Digits of a number in a query."""
MAX_BODY: Final = 1 << 20
"""Bytes of a request."""
BODY_WITHIN: Final = 10.0
"""Seconds that they may take."""
TAKEN_WITHIN: Final = 60.0
"""Seconds that a client may take for an answer; connections are bounded, and it would keep its one."""


class HttpFace:
    """The routes over the parts they show.

    Args:
        store: policies.
        leases: services and instances.
        pushes: connected processes.
        quota: who has which shares of rate limits.
        events: what supervisors reported.
        clock: monotonic time, for ages.
    """

    def __init__(
        self,
        store: PolicyStore,
        leases: LeaseTable,
        pushes: Pushes,
        quota: Quota,
        events: EventLog,
        *,
        clock: Clock,
    ) -> None:
        self._store = store
        self._leases = leases
        self._pushes = pushes
        self._quota = quota
        self._events = events
        self._clock = clock
        self.is_ready = False
        """What `/readyz` says."""

    def application(self) -> web.Application:
        """Return the aiohttp application."""
        application = web.Application(
            middlewares=[_taken_in_time, _json_errors], client_max_size=MAX_BODY
        )
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/readyz", self._readyz)
        application.router.add_get("/api/v1/services", self._services)
        application.router.add_get("/api/v1/services/{service}/instances", self._instances)
        application.router.add_get("/api/v1/policies", self._policies)
        application.router.add_get("/api/v1/policies/{service}", self._policy)
        application.router.add_get("/api/v1/status", self._status)
        application.router.add_get("/api/v1/limits", self._limits)
        application.router.add_get("/api/v1/events", self._list_events)
        application.router.add_post("/api/v1/events", self._take_events)
        return application

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _readyz(self, _request: web.Request) -> web.Response:
        if self.is_ready:
            return web.json_response({"status": "ready"})
        return web.json_response({"status": "not ready"}, status=503)

    async def _services(self, request: web.Request) -> web.Response:
        return web.json_response(self._leases.services(_namespace(request)))

    async def _instances(self, request: web.Request) -> web.Response:
        snapshot = self._leases.snapshot(_namespace(request), request.match_info["service"])
        return web.json_response([instance.to_json() for instance in snapshot.instances])

    async def _policies(self, request: web.Request) -> web.Response:
        return web.json_response([_policy(one) for one in self._store.list(_namespace(request))])

    async def _policy(self, request: web.Request) -> web.Response:
        namespace, service = _namespace(request), request.match_info["service"]
        stored = self._store.get(namespace, service)
        if stored is None:
            raise web.HTTPNotFound(
                reason=f"no policy for {service[:MAX_SHOWN]!r} "
                f"in namespace {namespace[:MAX_SHOWN]!r}"
            )
        return web.json_response(_policy(stored))

    async def _status(self, request: web.Request) -> web.Response:
        states = self._pushes.status(_namespace(request), self._store.revision, self._clock.now())
        return web.json_response([_row(state) for state in states])

    async def _limits(self, request: web.Request) -> web.Response:
        service = request.query.get("service")
        if not service:
            raise web.HTTPBadRequest(reason="service=NAME: of which service?")
        return web.json_response(
            [_holding(one) for one in self._quota.rows(_namespace(request), service)]
        )

    async def _list_events(self, request: web.Request) -> web.Response:
        chosen = self._events.select(
            namespace=_namespace(request),
            service=request.query.get("service") or None,
            since=_number(request, "since", 0),
            limit=_number(request, "limit", CAPACITY),
        )
        return web.json_response([event.to_json() for event in chosen])

    async def _take_events(self, request: web.Request) -> web.Response:
        """Take all of the events posted, or none."""
        # A page of any web site may post to this machine, but not with this content type: before
        # that a browser asks, and is not answered.
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(reason="events are posted as application/json")
        try:
            async with asyncio.timeout(BODY_WITHIN):
                body = await request.read()
        except TimeoutError:
            raise web.HTTPRequestTimeout(
                reason=f"a request takes {BODY_WITHIN:g} s at most"
            ) from None
        try:
            events = parse_events(json.loads(body))
        except RecursionError:
            raise web.HTTPBadRequest(reason="this is no list of events: nested too deep") from None
        except UnicodeDecodeError:
            raise web.HTTPBadRequest(reason="JSON is written in UTF-8") from None
        except json.JSONDecodeError as error:
            raise web.HTTPBadRequest(reason=f"this is no JSON: {error}") from error
        except ValueError as error:
            raise web.HTTPBadRequest(reason=str(error)) from error
        now = time.time()
        added = sum(self._events.add(event, now) for event in events)
        return web.json_response({"added": added})


def _namespace(request: web.Request) -> str:
    return request.query.get("namespace") or DEFAULT_NAMESPACE


def _number(request: web.Request, name: str, default: int) -> int:
    given = request.query.get(name) or str(default)
    if not (given.isascii() and given.isdecimal() and len(given) <= MAX_DIGITS):
        raise web.HTTPBadRequest(reason=f"{name}={given[:MAX_SHOWN]!r}: this is a whole number")
    return int(given)


def _policy(stored: StoredPolicy) -> dict[str, Any]:
    return {
        "service": stored.service,
        "namespace": stored.namespace,
        "revision": stored.revision,
        "policy": json.loads(stored.document),
    }


def _row(state: ProcessState) -> dict[str, Any]:
    return {
        "service": state.process.service,
        "instance": state.process.instance,
        "version": state.process.version,
        "revision": state.revision,
        "state": state.state.value,
        "reason": state.reason,
        "age": round(state.age, 3),
    }


def _holding(row: Holding) -> dict[str, Any]:
    return {
        "limit": row.limit,
        "key": row.key,
        "instance": row.instance,
        "share": row.share,
        "demand": row.demand,
        "away": row.is_away,
    }


@web.middleware
async def _taken_in_time(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Write the answer, and end the connection of a client that does not read it."""
    response = await handler(request)
    try:
        async with asyncio.timeout(TAKEN_WITHIN):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the client does not read") from None
    return response


@web.middleware
async def _json_errors(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status == web.HTTPNotFound.status_code and request.match_info.http_exception:
            reason = f"there is nothing at {request.path[:MAX_SHOWN]}"
        elif error.status == web.HTTPMethodNotAllowed.status_code:
            reason = f"{request.method} is not allowed here, only {error.headers['Allow']}"
        elif error.status == web.HTTPRequestEntityTooLarge.status_code:
            reason = f"a request has {MAX_BODY} bytes at most"
        else:
            reason = error.reason
        allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        return web.json_response({"error": reason}, status=error.status, headers=allow)
    except ConnectionError:
        raise  # the client has gone, in the middle of a request: there is nobody to answer
    except Exception:  # noqa: BLE001 - of one request, and it is logged
        _log.exception("cannot answer %s %s", request.method, request.path[:MAX_SHOWN])
        return web.json_response({"error": "this is a bug; the log has it"}, status=500)
