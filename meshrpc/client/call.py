"""Calls: grpcio's four call objects over a logical call.

Each kind is one way to send, a message or a stream of them (`sending.py`), with one way to receive
(`receiving.py`).
"""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio

from meshrpc.client.mirroring import Sent
from meshrpc.client.receiving import StreamResponse, UnaryResponse
from meshrpc.client.sending import StreamRequest, UnaryRequest


class UnaryUnaryCall(UnaryRequest, UnaryResponse, grpc.aio.UnaryUnaryCall):
    """One request, one answer."""

    _kind = "unary_unary"

    def __init__(self, request: bytes, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._request = request
        self._begin()

    def _offer_copy(self) -> None:
        destination, mirror = self._destination, self._policy.mirror
        assert mirror is not None  # noqa: S101 - looked at by whoever asks
        sent = Sent(
            self._method,
            self._request,
            self._metadata,
            self._added,
            self._deadline,
            self._options,
        )
        destination.mirrors.offer(destination, mirror, sent, self._aim.hash_key)


class UnaryStreamCall(UnaryRequest, StreamResponse, grpc.aio.UnaryStreamCall):
    """One request, a stream of answers."""

    _kind = "unary_stream"

    def __init__(self, request: bytes, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._request = request
        self._begin()


class StreamUnaryCall(StreamRequest, UnaryResponse, grpc.aio.StreamUnaryCall):
    """A stream of requests, one answer."""

    _kind = "stream_unary"
    _sampled = False

    def __init__(self, requests: Any, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._feed(requests)
        self._begin()


class StreamStreamCall(StreamRequest, StreamResponse, grpc.aio.StreamStreamCall):
    """A stream of requests, a stream of answers."""

    _kind = "stream_stream"

    def __init__(self, requests: Any, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._feed(requests)
        self._begin()
