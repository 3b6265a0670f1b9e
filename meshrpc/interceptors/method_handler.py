"""grpcio's handlers of a method, taken apart and put together again."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import grpc

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behavior = Callable[..., Any]


def behavior_of(handler: Handler) -> Behavior:
    """Return the function of a handler, whichever of the four arities it has."""
    if handler.request_streaming:
        behavior = handler.stream_stream if handler.response_streaming else handler.stream_unary
    else:
        behavior = handler.unary_stream if handler.response_streaming else handler.unary_unary
    assert behavior is not None  # noqa: S101 - grpcio's constructors always set it
    return behavior


def with_behavior(handler: Handler, behavior: Behavior, *, raw: bool = False) -> Handler:
    """Return a handler of the same arity with another function; `raw`: without serialisers."""
    make: Callable[..., Handler]
    if handler.request_streaming:
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
    else:
        make = (
            grpc.unary_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.unary_unary_rpc_method_handler
        )
    if raw:
        return make(behavior)
    return make(behavior, handler.request_deserializer, handler.response_serializer)


def is_async(behavior: Any, *, generator: bool | None = None) -> bool:
    """Whether a handler is asynchronous: a coroutine function or an async generator function.

    Objects whose `__call__` is one count too. `generator` asks for one kind only.
    """
    # A class's own attribute: every function has a __call__ that says nothing about it.
    candidates = (behavior, getattr(behavior, "__call__", None))  # noqa: B004
    is_generator = any(inspect.isasyncgenfunction(candidate) for candidate in candidates)
    is_coroutine = any(inspect.iscoroutinefunction(candidate) for candidate in candidates)
    if generator is None:
        return is_generator or is_coroutine
    return is_generator if generator else is_coroutine


_INFRASTRUCTURE = ("/grpc.health.", "/grpc.reflection.")


def is_infrastructure(method: str) -> bool:
    """Whether a method is of health checks or reflection: no work, and neither counted nor shown."""
    return method.startswith(_INFRASTRUCTURE)
