"""A service whose calls take as long as they are told: `meshrpc run tests.faults.slow_service:service`.

`Take` sleeps for the seconds it is sent, `Count` sends so many numbers, `FOR_EVER` for no end, and
`Talk` answers each message until its client has said the last one. `Block` keeps its worker from doing
anything else for the seconds it is sent. None says that it may be repeated. Messages are plain bytes. The seconds that calls may go on when a worker leaves are in the
environment as `GRACE`.
"""

import asyncio
import os
import time

import grpc

import meshrpc

SLOW = "faults.Slow"
TAKE = f"/{SLOW}/Take"
COUNT = f"/{SLOW}/Count"
TALK = f"/{SLOW}/Talk"
BLOCK = f"/{SLOW}/Block"
FOR_EVER = -1
EVERY = 0.1
"""Seconds between two numbers."""
GRACE = "FAULTS_GRACE"


async def take(request, _context):
    await asyncio.sleep(float(request))
    return request


async def block(request, _context):
    time.sleep(float(request))  # noqa: ASYNC251 - the fault
    return request


async def count(request, _context):
    number = 0
    while number != int(request):
        await asyncio.sleep(EVERY)
        number += 1
        yield str(number).encode()


async def talk(requests, _context):
    async for request in requests:
        yield request


service = meshrpc.Service("slow", grace=float(os.environ.get(GRACE, "30")))
service.add_generic_rpc_handlers(
    (
        grpc.method_handlers_generic_handler(
            SLOW,
            {
                "Take": grpc.unary_unary_rpc_method_handler(take),
                "Block": grpc.unary_unary_rpc_method_handler(block),
                "Count": grpc.unary_stream_rpc_method_handler(count),
                "Talk": grpc.stream_stream_rpc_method_handler(talk),
            },
        ),
    )
)
