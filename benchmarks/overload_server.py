"""The servers that are overloaded: a bare `grpc.aio` one, or a `Service`; a process each."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Any

import grpc.aio

import meshrpc
from benchmarks.spinning import Spinning
from services.payment.v1 import payment_pb2_grpc


def serve(pipe: Any, kind: str, cpu: float) -> None:
    """Be a server whose handler costs `cpu` seconds: say the address, then answer questions.

    Whatever is asked, the answer is the CPU that this process has used and missed so far, and how
    many handlers ran. It comes from a thread: the event loop will be too busy to say anything.
    """
    handler = Spinning(cpu)

    async def main() -> None:
        if kind == "mesh":
            service = meshrpc.Service("payment", control="none", registry="memory:")
            payment_pb2_grpc.add_PaymentServiceServicer_to_server(handler, service)
            await service.__aenter__()
            address = service.address
        else:
            server = grpc.aio.server()
            payment_pb2_grpc.add_PaymentServiceServicer_to_server(handler, server)
            address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
            await server.start()
        pipe.send(address)
        threading.Thread(target=_answer, args=(pipe, handler), daemon=True).start()
        await asyncio.Event().wait()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())


def _answer(pipe: Any, handler: Spinning) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.recv()
            pipe.send((time.process_time(), _kept_waiting(), handler.runs))
    os._exit(0)  # the benchmark is over: there is nobody to take leave of


def _kept_waiting() -> float:
    """Return the seconds that the event loop could have run and other programs did.

    What gRPC's own threads had of the core meanwhile is this process's doing.
    """
    try:
        ran, waited, _ = map(int, Path("/proc/self/schedstat").read_text().split())
    except (OSError, ValueError):
        return 0.0  # not Linux: nobody can tell
    return waited / 1e9 - (time.process_time() - ran / 1e9)
