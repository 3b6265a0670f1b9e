"""A method as a stub calls it: its path, and how its messages become bytes and bytes messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from meshrpc.client.local_error import local_error


class Method:
    """One method of a service, for the calls of one stub.

    Serialising is done here because grpcio's own fails silently: a serialiser that raises sends
    an empty message, a deserialiser that raises makes the call return None.
    """

    __slots__ = ("_deserializer", "_serializer", "path")

    def __init__(
        self,
        path: str,
        serializer: Callable[[Any], bytes] | None,
        deserializer: Callable[[bytes], Any] | None,
    ) -> None:
        self.path = path
        self._serializer = serializer
        self._deserializer = deserializer

    intercepted = False
    """Whether grpcio gets messages, for interceptors to see, and not bytes."""

    def multicallable(self, channel: grpc.aio.Channel, kind: str) -> Callable[..., Any]:
        """Return grpcio's multicallable of this method, for bytes."""
        made: Callable[..., Any] = getattr(channel, kind)(self.path)
        return made

    def serialize(self, message: Any) -> Any:
        """Return what grpcio gets; what the serialiser raises, this raises."""
        data = message if self._serializer is None else self._serializer(message)
        if type(data) is not bytes:  # grpcio takes no subclass of it
            raise TypeError(f"{self.path} sends bytes, not {type(data).__name__}")
        return data

    def deserialize(self, data: Any) -> Any:
        """Return the message that came.

        Raises:
            grpc.aio.AioRpcError: INTERNAL, as in grpc's other languages, when it is none.
        """
        if self._deserializer is None:
            return data
        try:
            return self._deserializer(data)
        except Exception as error:
            raise local_error(
                grpc.StatusCode.INTERNAL, f"cannot read the answer of {self.path}: {error}"
            ) from error
