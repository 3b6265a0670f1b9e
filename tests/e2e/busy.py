"""A service whose event loop each call blocks: `meshrpc run tests.e2e.busy:service`.

For BUSY_SECONDS, sleeping: the loop is as busy as if it computed, and the machine is not.
"""

import os
import time

import grpc

import meshrpc

NAME = "busy"
SECONDS = float(os.environ["BUSY_SECONDS"])


async def work(request, context):
    time.sleep(SECONDS)  # noqa: ASYNC251 - what a handler that computes does to its loop
    return request


service = meshrpc.Service(NAME, version=f"{SECONDS * 1000:.0f}ms")
service.add_generic_rpc_handlers(
    (
        grpc.method_handlers_generic_handler(
            "tests.Busy", {"Work": grpc.unary_unary_rpc_method_handler(work)}
        ),
    )
)
