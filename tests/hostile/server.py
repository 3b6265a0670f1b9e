"""A service to attack, as a process of its own: `python -m tests.hostile.server`.

It says its address on stdout, and lives until stdin ends. `service()` is the same one for tests
that serve it themselves.
"""

import asyncio
import sys

import grpc
from google.protobuf import struct_pb2

import meshrpc

ECHO = b"/hostile.Echo/Say"
READ = b"/hostile.Echo/Read"
FLOOD = b"/hostile.Echo/Flood"
TAKE = b"/hostile.Echo/Take"
BLOCKING = b"/hostile.Echo/Blocking"
BLOCKING_FLOOD = b"/hostile.Echo/BlockingFlood"
ANY = b"/any."
PIECE = bytes(64 * 1024)


async def say(message, context):
    return message


async def read(message, context):
    return message


async def large(message, context):
    return bytes(int(message))


async def flood(message, context):
    for _ in range(1_000):
        yield PIECE


async def take(messages, context):
    return str(sum([len(each) async for each in messages])).encode()


def blocking(message, context):
    return message


def blocking_flood(message, context):
    for _ in range(1_000):
        yield PIECE


HANDLERS = {
    "Say": grpc.unary_unary_rpc_method_handler(say),
    "Read": grpc.unary_unary_rpc_method_handler(
        read,
        request_deserializer=struct_pb2.Struct.FromString,
        response_serializer=struct_pb2.Struct.SerializeToString,
    ),
    "Large": grpc.unary_unary_rpc_method_handler(large),
    "Flood": grpc.unary_stream_rpc_method_handler(flood),
    "Take": grpc.stream_unary_rpc_method_handler(take),
    "Blocking": grpc.unary_unary_rpc_method_handler(blocking),
    "BlockingFlood": grpc.unary_stream_rpc_method_handler(blocking_flood),
}


class Anything(grpc.GenericRpcHandler):
    """Answers every name of one kind, as a proxy does."""

    def service(self, details):
        if details.method.startswith(ANY.decode()):
            return HANDLERS["Say"]
        return None


def service(**arguments):
    """Return the service, not entered yet."""
    made = meshrpc.Service("hostile", control="none", registry="memory:", **arguments)
    made.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("hostile.Echo", HANDLERS), Anything())
    )
    return made


async def main():
    async with service() as served:
        sys.stdout.write(f"{served.address}\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
