"""Calling a service without its generated code: gRPC server reflection, and JSON for messages.

The server is asked what it serves and for the proto files behind one service; from these a
descriptor pool is built, and from that message classes. JSON is read and written by protobuf's
own mapping, with the field names of the proto file. Messages say what is wrong in one line,
with what there is instead.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from typing import Any, cast

import grpc
from google.protobuf import descriptor_pb2, json_format, message_factory
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection_pb2  # type: ignore[import-untyped]

from meshrpc.clock import SYSTEM_CLOCK
from meshrpc.errors import MeshError

_PROTOCOLS = ("grpc.reflection.v1alpha", "grpc.reflection.v1")
"""The same messages under two names: grpcio serves the first, some other servers only the second."""

_INFRASTRUCTURE = ("grpc.reflection.", "grpc.health.")
"""Services every server has; they are callable, but not what a wrong name meant."""


def did_you_mean(given: str, known: Iterable[str], *, kind: str = "known") -> str:
    """Return ` (did you mean …? known: …)`, or what of it there is to say."""
    names = sorted(known)
    close = difflib.get_close_matches(given, names, n=1)
    hints = [f"did you mean {close[0]}?"] if close else []
    hints.append(f"{kind}: {', '.join(names) or 'none'}")
    return f" ({' '.join(hints)})"


async def find_method(
    channel: grpc.aio.Channel, target: str, name: str, *, within: float
) -> MethodDescriptor:
    """Return the descriptor of method `pkg.Service/Method` as the server of `channel` knows it.

    Args:
        channel: a channel to the service.
        target: the service's name, for error messages.
        name: the method; a leading slash is allowed.
        within: seconds for all of it.

    Raises:
        MeshError: the server has no such method (names those it has), or no reflection.
        grpc.aio.AioRpcError: the server could not be asked.
    """
    deadline = SYSTEM_CLOCK.now() + within
    for protocol in _PROTOCOLS:
        try:
            return await _find_method(
                _Reflection(channel, protocol, deadline), target, name.removeprefix("/")
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
    raise MeshError(
        f"{target} does not offer server reflection, which this command needs to know its methods; "
        "a meshrpc.Service offers it by itself"
    )


async def _find_method(server: _Reflection, target: str, name: str) -> MethodDescriptor:
    # Asked first, because a server's files also describe services that it only calls.
    services = await server.services()
    service, _, method = name.rpartition("/")
    if service in services:
        found = (await server.methods(service)).get(name)
        if found is not None:
            return found
    known: dict[str, MethodDescriptor] = {}
    for each in services:
        if not each.startswith(_INFRASTRUCTURE):
            known |= await server.methods(each)
    said = f"{target} has no method {name!r}"
    if not service or not method:
        said += ", and a method is written pkg.Service/Method"
    raise MeshError(said + did_you_mean(name, known, kind="it has"))


class _Reflection:
    """The server's reflection service, asked one question per call.

    The method is a stream of questions, but grpcio hides why a server ended a stream that it was
    still writing to. One question is all there is to write, so that its status arrives.
    """

    def __init__(self, channel: grpc.aio.Channel, protocol: str, deadline: float) -> None:
        self._pool = DescriptorPool()
        self._files: set[str] = set()
        self._deadline = deadline
        self._method: Any = channel.unary_stream(
            f"/{protocol}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )

    async def services(self) -> frozenset[str]:
        """Return the full names of the gRPC services the server serves."""
        answer = await self._ask(reflection_pb2.ServerReflectionRequest(list_services=""))
        return frozenset(service.name for service in answer.list_services_response.service)

    async def methods(self, service: str) -> dict[str, MethodDescriptor]:
        """Return the service's methods by `pkg.Service/Method`; none if it cannot be described."""
        request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=service)
        try:
            self._add(await self._fetch(request))
            found = self._pool.FindServiceByName(service)
        except KeyError:
            return {}
        return {f"{service}/{method.name}": method for method in found.methods}

    async def _ask(self, request: reflection_pb2.ServerReflectionRequest) -> Any:
        within = max(0.0, self._deadline - SYSTEM_CLOCK.now())
        answers = [answer async for answer in self._method(request, timeout=within)]
        if not answers:
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.INTERNAL,
                grpc.aio.Metadata(),
                grpc.aio.Metadata(),
                "the server ended its reflection stream before answering",
            )
        return answers[0]

    async def _fetch(
        self, request: reflection_pb2.ServerReflectionRequest
    ) -> dict[str, descriptor_pb2.FileDescriptorProto]:
        """Return the files asked for and all they import, by name.

        Raises:
            KeyError: the server does not have them.
        """
        files: dict[str, descriptor_pb2.FileDescriptorProto] = {}
        while True:
            answer = await self._ask(request)
            if answer.HasField("error_response"):
                raise KeyError(answer.error_response.error_message)
            for serialized in answer.file_descriptor_response.file_descriptor_proto:
                file = descriptor_pb2.FileDescriptorProto.FromString(serialized)
                files[file.name] = file
            # Servers may leave imports to be asked for one by one.
            missing = {name for file in files.values() for name in file.dependency}
            missing -= files.keys() | self._files
            if not missing:
                return files
            request = reflection_pb2.ServerReflectionRequest(file_by_filename=min(missing))

    def _add(self, files: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
        """Put files into the pool, imports before those that import them."""

        def add(name: str) -> None:
            if name in files and name not in self._files:
                self._files.add(name)
                for imported in files[name].dependency:
                    add(imported)
                self._pool.Add(files[name])

        for name in files:
            add(name)


def message_from_json(descriptor: Descriptor, data: object) -> Message:
    """Return the message that `data`, as `json.loads` gives it, stands for.

    Raises:
        MeshError: `data` is not such a message; names the field.
    """
    message = message_factory.GetMessageClass(descriptor)()
    if not isinstance(data, dict) and not descriptor.full_name.startswith("google.protobuf."):
        raise MeshError(
            f"a {descriptor.full_name} is written as a JSON object, "
            f"not as {json.dumps(data, ensure_ascii=False)}"
        )
    pool: Any = descriptor.file.pool
    try:
        json_format.ParseDict(cast("Any", data), message, descriptor_pool=pool)
    except json_format.ParseError as error:
        raise MeshError(_one_line(error, descriptor)) from error
    return message


def message_to_json(message: Message) -> dict[str, Any]:
    """Return the message as JSON data: proto field names, unset fields left out."""
    pool: Any = message.DESCRIPTOR.file.pool
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, descriptor_pool=pool
    )


_NO_FIELD = re.compile(r'Message type "(?P<type>[^"]+)" has no field named "(?P<field>[^"]*)"')


def _one_line(error: json_format.ParseError, descriptor: Descriptor) -> str:
    """Say what protobuf's parser said in one line, with the fields there are."""
    no_field = _NO_FIELD.search(str(error))
    if no_field is None:
        return f"not a {descriptor.full_name}: {' '.join(str(error).split())}"
    message, field = no_field["type"], no_field["field"]
    known = [each.name for each in descriptor.file.pool.FindMessageTypeByName(message).fields]
    return f"{message} has no field {field!r}{did_you_mean(field, known, kind='it has')}"
