"""Which status an exception of a handler becomes, where it is to become one of its own.

Three kinds say what the caller is to hear: a `meshrpc.RpcError`, an exception that the service has
mapped to a status, and a deadline that has passed. Of all others the caller learns nothing but a
number, which the guard sees to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import grpc
import grpc.aio

from meshrpc.errors import RpcError
from meshrpc.interceptors.server_call import ServerCall

ABOUT_NOW: Final = 0.01
"""Seconds. A nested call has the deadline of the one being served, on a timer of its own."""

_NO_TIME_LEFT: Final = "the deadline has passed"


class ErrorMapping:
    """The exceptions of one service that mean a status.

    Raises:
        TypeError: a key is no class of exceptions, or a value no status code.
        ValueError: an exception would mean OK.
    """

    def __init__(self, errors: Mapping[type[Exception], grpc.StatusCode] | None = None) -> None:
        self._errors = dict(errors or {})
        for kind, code in self._errors.items():
            if not (isinstance(kind, type) and issubclass(kind, Exception)):
                raise TypeError(f"errors= maps classes of exceptions, and {kind!r} is none")
            if not isinstance(code, grpc.StatusCode):
                raise TypeError(f"errors= maps {kind.__name__} to a grpc.StatusCode, not {code!r}")
            if code is grpc.StatusCode.OK:
                raise ValueError(f"errors= maps {kind.__name__} to OK: an exception is a failure")

    def __repr__(self) -> str:
        return f"<ErrorMapping of {len(self._errors)} classes>"

    def meaning(self, error: BaseException, call: ServerCall | None) -> RpcError | None:
        """Return what the caller is to hear of an exception; None for one that means nothing."""
        # A task group raises groups, also round the one exception that is meant.
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if isinstance(error, RpcError):
            return error
        for kind in type(error).__mro__:
            code = self._errors.get(kind)
            if code is not None:
                text = _text(error)
                return None if text is None else RpcError(code, text)
        if _tells_of_time(error) and _has_no_time_left(call):
            return RpcError(grpc.StatusCode.DEADLINE_EXCEEDED, _NO_TIME_LEFT)
        return None


def _text(error: BaseException) -> str | None:
    """Return its text; None if to ask for that fails in turn."""
    if isinstance(error, grpc.aio.AioRpcError):
        # A failed call's own text is long, and of the program that made it.
        return error.details() or ""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - the user's own code
        return None


def _tells_of_time(error: BaseException) -> bool:
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    return isinstance(error, TimeoutError)


def _has_no_time_left(call: ServerCall | None) -> bool:
    remaining = None if call is None else call.time_remaining()
    return remaining is not None and remaining <= ABOUT_NOW
