"""The control service's unary calls, as the commands make them.

A command asks once and ends, so unlike the subscription this client never waits for control to
come back: it takes the first address that answers, bounds everything by a deadline, and turns
every failure into a `ControlError` that says what to do.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

import grpc

from meshrpc.errors import ControlError
from meshrpc.settings import parse_address
from meshrpc.subscription import CHANNEL_OPTIONS
from meshrpc.v1 import (
    control_pb2,
    control_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
)

CONNECT_WITHIN: Final = 2.0
"""Seconds to find an address that accepts a connection, over all of them."""
ANSWER_WITHIN: Final = 5.0
"""Seconds for one call; a store that syncs to a slow disk answers well within."""
VIEW_WITHIN: Final = ANSWER_WITHIN + 2.0
"""Seconds for a view: control itself waits 5 s for the process that is asked, and says so then."""


class DocumentsRefused(ControlError):
    """Control found problems in the policy documents; one per line of the message."""


class ControlClient:
    """A connection to the first of `addresses` that accepts one.

    Raises `ControlError` on entering when none does, and from every call that fails.
    """

    def __init__(self, addresses: Sequence[str], *, namespace: str) -> None:
        self.namespace = namespace
        self._addresses = tuple(addresses)
        self._address = ""
        self._connection: grpc.aio.Channel | None = None

    def __repr__(self) -> str:
        state = f"connected to {self._address}" if self._connection else "not connected"
        return f"<ControlClient {','.join(self._addresses)} {state}>"

    async def __aenter__(self) -> Self:
        self._address = await reachable(self._addresses)
        self._connection = grpc.aio.insecure_channel(self._address, options=CHANNEL_OPTIONS)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()

    async def status(self) -> control_pb2.StatusResponse:
        """Return every connected process of the namespace and how far it is."""
        request = control_pb2.StatusRequest(namespace=self.namespace)
        answer: control_pb2.StatusResponse = await self._ask(self._control.Status, request)
        return answer

    async def view(self, instance: str, service: str) -> control_pb2.ViewResponse:
        """Return what one connected process makes of a service's instances.

        Raises:
            ControlError: no such process is connected, or it does not answer.
        """
        request = control_pb2.ViewRequest(
            namespace=self.namespace, instance=instance, service=service
        )
        try:
            answer: control_pb2.ViewResponse = await self._control.View(
                request, timeout=VIEW_WITHIN
            )
        except grpc.aio.AioRpcError as error:
            details = error.details() or ""
            if error.code() is grpc.StatusCode.UNAVAILABLE and details.startswith("process "):
                raise ControlError(details) from error  # control answers: the process does not
            raise self._explained(error) from error
        return answer

    async def apply_policies(
        self, documents: Sequence[str], *, dry_run: bool = False
    ) -> policy_pb2.ApplyResponse:
        """Store the JSON documents as one revision, or, with `dry_run`, say what would change.

        Raises:
            DocumentsRefused: control found problems in them, and nothing has changed.
        """
        request = policy_pb2.ApplyRequest(
            namespace=self.namespace, documents=documents, dry_run=dry_run
        )
        answer: policy_pb2.ApplyResponse = await self._ask(self._policies.Apply, request)
        return answer

    async def delete_policy(self, service: str) -> int:
        """Delete the service's document and return the store's new revision."""
        request = policy_pb2.DeletePolicyRequest(namespace=self.namespace, service=service)
        answer: policy_pb2.DeletePolicyResponse = await self._ask(self._policies.Delete, request)
        return answer.revision

    async def policy(self, service: str) -> policy_pb2.PolicyDocument | None:
        """Return the service's document; None if it has none."""
        request = policy_pb2.GetPolicyRequest(namespace=self.namespace, service=service)
        try:
            answer: policy_pb2.PolicyDocument = await self._policies.Get(
                request, timeout=ANSWER_WITHIN
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise self._explained(error) from error
        return answer if answer.document else None

    async def policies(self) -> tuple[policy_pb2.PolicyDocument, ...]:
        """Return all documents of the namespace, ordered by service."""
        request = policy_pb2.ListPoliciesRequest(namespace=self.namespace)
        answer: policy_pb2.ListPoliciesResponse = await self._ask(self._policies.List, request)
        return tuple(sorted(answer.policies, key=lambda document: document.service))

    @property
    def _control(self) -> Any:
        return control_pb2_grpc.ControlStub(self._channel)

    @property
    def _policies(self) -> Any:
        return policy_pb2_grpc.PolicyStoreStub(self._channel)

    @property
    def _channel(self) -> grpc.aio.Channel:
        if self._connection is None:
            raise RuntimeError("a ControlClient is used inside `async with`")
        return self._connection

    async def _ask(self, call: Any, request: Any) -> Any:
        try:
            return await call(request, timeout=ANSWER_WITHIN)
        except grpc.aio.AioRpcError as error:
            raise self._explained(error) from error

    def _explained(self, error: grpc.aio.AioRpcError) -> ControlError:
        code, details = error.code(), error.details() or ""
        where = f"the control service at {self._address}"
        match code:
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return ControlError(f"{where} did not answer within {ANSWER_WITHIN:g} s")
            case grpc.StatusCode.UNAVAILABLE:
                if details.startswith("failed to connect"):
                    details = details.rpartition(": ")[2]  # the rest repeats the address
                return ControlError(
                    f"{where} accepts connections but does not answer ({details}); "
                    "if that is another program, give the address `meshrpc control` prints as grpc"
                )
            case grpc.StatusCode.UNIMPLEMENTED:
                return ControlError(
                    f"{self._address} is not a control service of this release: {details}"
                )
            case grpc.StatusCode.INVALID_ARGUMENT:
                return DocumentsRefused(details)
            case grpc.StatusCode.RESOURCE_EXHAUSTED if "message larger than max" in details:
                return ControlError(f"this is more than {where} takes at once: apply it in parts")
        return ControlError(details or f"{where} answered {code.name}")


async def reachable(addresses: Sequence[str]) -> str:
    """Return the first address that accepts a TCP connection.

    A plain connection rather than gRPC's own, because its errors have one cause each, and
    because gRPC takes 20 s to give up on an address that swallows packets.

    Raises:
        ControlError: none does; names each with its cause.
    """
    if not addresses:
        raise ControlError(
            "this needs a control service, and the settings say there is none; "
            "give one with --control HOST:PORT or MESHRPC_CONTROL"
        )
    causes = []
    for address in addresses:
        try:
            async with asyncio.timeout(CONNECT_WITHIN / len(addresses)):
                await _connect(address)
        except OSError as error:
            causes.append(f"{address} ({_cause(error)})")
        else:
            return address
    raise ControlError(
        f"cannot reach the control service at {', '.join(causes)}; start it with: meshrpc control"
    )


async def _connect(address: str) -> None:
    host, port = parse_address(address)
    _, writer = await asyncio.open_connection(host.strip("[]"), port)
    writer.close()
    # The connection was made, which is all that was asked; how it ends is not our business.
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)


def _cause(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, socket.gaierror):
        return "no such name"
    # With several addresses behind one name, asyncio joins their errors and leaves errno out.
    return os.strerror(error.errno).lower() if error.errno else str(error).lower()
