"""A method as a stub calls it: its path, and how its messages become bytes and bytes messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from meshrpc.client.destination import local_error


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

    def serialize(self, message: Any) -> bytes:
        """Return the message as bytes; what the serialiser raises, this raises."""
        data = message if self._serializer is None else self._serializer(message)
        if not isinstance(data, bytes):
            raise TypeError(f"{self.path} sends bytes, not {type(data).__name__}")
        return data

    def deserialize(self, data: bytes) -> Any:
        """Return the message in `data`.

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
