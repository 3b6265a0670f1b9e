"""Scripted services: real instances whose answers a test writes, and which remember every call.

Each instance is a `meshrpc.Service` of its own, so deadlines, rate limits, the check of
`mesh-target` and draining are the real ones. What an instance is told to answer wins over what
its service is.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from meshrpc.interceptors.server_call import current_call
from meshrpc.server.service import Service
from meshrpc.settings import Settings
from meshrpc.testing.local_instance import LocalInstance, Surroundings
from meshrpc.testing.received import CallLog, ReceivedCall
from meshrpc.testing.script_book import Answer, Failure, Method, ScriptBook, methods_of, shown
from meshrpc.wire import Metadata

_MAKERS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class _Scripted:
    """What a scripted service and each of its instances have in common."""

    def __init__(self, book: ScriptBook, log: CallLog, only: str | None) -> None:
        self.book = book
        self._log = log
        self._only = only

    def answer(self, method: str, *answers: Answer) -> None:
        """Say what calls of `method` get: these answers in turn, and the last one for ever.

        An answer is a message (a list of them, where the method answers a stream), a `Failure`,
        or a function of the request (of the list of requests, where they are a stream) that
        returns such an answer, or is async. An async generator function answers a stream as it
        goes; where requests are a stream, it gets them as they come.

        Raises:
            ValueError: the service has no such method.
            TypeError: the method cannot answer so.
        """
        self.book.write(method, answers)

    def fail(
        self,
        method: str,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: Metadata = (),
    ) -> None:
        """Say that calls of `method` fail with this status; short for `answer` with a `Failure`."""
        self.answer(method, Failure(code, details, trailing_metadata))

    def calls(self, method: str | None = None) -> list[ReceivedCall]:
        """Return the calls that arrived so far, in order, of `method` or of all."""
        return self._log.calls(self._known(method), self._only)

    async def received(self, count: int, method: str | None = None) -> list[ReceivedCall]:
        """Return the calls so far, once there are at least `count`.

        Raises:
            TimeoutError: there are not after 5 real seconds.
        """
        return await self._log.received(count, self._known(method), self._only)

    def _known(self, method: str | None) -> str | None:
        return None if method is None else self.book.method(method).name


class ScriptedInstance(_Scripted, LocalInstance):
    """One instance of a scripted service: `payment[1]`."""

    def __init__(
        self,
        surroundings: Surroundings,
        service: Service,
        id_: str,
        *,
        full_name: str,
        methods: Sequence[Method],
        book: ScriptBook,
        fallback: ScriptBook,
        log: CallLog,
    ) -> None:
        """Used by `ScriptedService`; `fallback` answers what this instance has no answer for."""
        _Scripted.__init__(self, book, log, id_)
        LocalInstance.__init__(self, surroundings, service, id_)
        self._fallback = fallback
        handlers = {method.name: self._handler(method) for method in methods}
        service.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(full_name, handlers),)
        )

    def _handler(self, method: Method) -> Any:
        async def single(requests: Any, context: Any) -> Any:
            answer = await self._answer(method, requests, context)
            return await self._message(method, answer, context)

        async def stream(requests: Any, context: Any) -> AsyncIterator[Any]:
            answer = await self._answer(method, requests, context)
            if isinstance(answer, AsyncGenerator):
                async with contextlib.aclosing(answer) as messages:
                    async for message in messages:
                        yield await self._message(method, message, context)
                return
            for message in answer if isinstance(answer, Iterable) else (answer,):
                yield await self._message(method, message, context)

        return _MAKERS[method.takes_stream, method.answers_stream](
            stream if method.answers_stream else single,
            request_deserializer=method.request.FromString,
            response_serializer=method.response.SerializeToString,
        )

    async def _answer(self, method: Method, requests: Any, context: Any) -> Any:
        """Record the call, and return what its script says."""
        received = self._record(method)
        answer: Any = self.book.next(method.name)
        if answer is None:
            answer = self._fallback.next(method.name)
        given: Any = requests
        if not method.takes_stream:
            received.requests.append(requests)
        else:
            given = _recorded(requests, received)
            if not inspect.isasyncgenfunction(answer):
                given = [request async for request in given]
        if answer is None:
            name = method.response.DESCRIPTOR.name
            await context.abort(
                grpc.StatusCode.UNIMPLEMENTED,
                f"{method.name} of {self.id} has no script: give it one with "
                f'.answer("{method.name}", {name}(...)) or .fail("{method.name}", code)',
            )
        if callable(answer):
            answer = answer(given)
            if inspect.isawaitable(answer):
                answer = await answer
        return answer

    async def _message(self, method: Method, answer: Any, context: Any) -> Any:
        """Return a message to send; abort where the answer is another one."""
        if isinstance(answer, Failure):
            await context.abort(answer.code, answer.details, answer.trailing_metadata)
        if not isinstance(answer, method.response):
            await context.abort(
                grpc.StatusCode.INTERNAL,
                f"the script of {method.name} at {self.id} answered {shown(answer)}, which is no "
                f"{method.response.DESCRIPTOR.full_name}",
            )
        return answer

    def _record(self, method: Method) -> ReceivedCall:
        call = current_call()
        assert call is not None  # noqa: S101 - the mesh's own server runs this
        received = ReceivedCall(
            method=method.name,
            instance=self.id,
            caller=call.caller,
            metadata=call.metadata,
            time_remaining=call.time_remaining(),
        )
        self._log.add(received)
        return received


class ScriptedService(_Scripted):
    """A service whose answers a test writes: what `LocalMesh.script` returns.

    `payment[1]` is the instance `payment-1`; iterating gives those that run.
    """

    def __init__(
        self,
        name: str,
        descriptor: ServiceDescriptor,
        join: Callable[[str, Callable[[str], ScriptedInstance]], Awaitable[ScriptedInstance]],
        surroundings: Surroundings,
    ) -> None:
        """Used by `LocalMesh.script`; `join` gives an instance its id and lets it serve."""
        methods = methods_of(descriptor)
        super().__init__(ScriptBook(name, methods), CallLog(), None)
        self.name = name
        self._full_name = descriptor.full_name
        self._methods = methods
        self._join = join
        self._surroundings = surroundings
        self._instances: dict[int, ScriptedInstance] = {}

    def __repr__(self) -> str:
        return f"<ScriptedService {self.name} instances={len(self)} calls={len(self.calls())}>"

    def __getitem__(self, number: int) -> ScriptedInstance:
        instance = self._instances.get(number)
        if instance is None:
            there = ", ".join(map(str, self._instances)) or "none"
            raise IndexError(f"{self.name} has no instance {number}, only {there}")
        return instance

    def __iter__(self) -> Iterator[ScriptedInstance]:
        return iter([each for each in self._instances.values() if each.is_running])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    async def add(self, **settings: Any) -> ScriptedInstance:
        """Start one more instance; `settings` such as version, zone, labels and weight.

        Raises:
            SettingsError: a setting cannot be used.
        """

        def create(id_: str) -> ScriptedInstance:
            service = Service(self.name)
            service.settings = Settings.resolve({}, **settings)
            return ScriptedInstance(
                self._surroundings,
                service,
                id_,
                full_name=self._full_name,
                methods=tuple(self._methods.values()),
                book=ScriptBook(self.name, self._methods),
                fallback=self.book,
                log=self._log,
            )

        instance = await self._join(self.name, create)
        self._instances[instance.number] = instance
        return instance


async def _recorded(requests: AsyncIterable[Any], received: ReceivedCall) -> AsyncIterator[Any]:
    async for request in requests:
        received.requests.append(request)
        yield request
