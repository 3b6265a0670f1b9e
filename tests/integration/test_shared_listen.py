"""A port for clients outside the mesh, beside the worker's own, in one process."""

import socket

import grpc.aio
import pytest

import meshrpc
from meshrpc.errors import SettingsError
from meshrpc.registry.memory import MemoryRegistry
from meshrpc.workers.shared_port import ReservedPort


async def echo(request, context):
    return request


def make_service(hasty_clock, shared, **options):
    service = meshrpc.Service(
        "echo",
        registry=MemoryRegistry(),
        control="none",
        clock=hasty_clock,
        shared_listen=shared,
        **options,
    )
    service.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "test.Echo", {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
            ),
        )
    )
    return service


async def call(address):
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        return await channel.unary_unary("/test.Echo/Echo")(b"hello", timeout=10.0)


@pytest.fixture
def shared():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return f"127.0.0.1:{found.getsockname()[1]}"


async def test_both_ports_answer_and_one_is_told_to_callers(hasty_clock, shared):
    """The shared one is nobody's instance; both are let go of when the service leaves."""
    service = make_service(hasty_clock, shared)
    async with service:
        assert service.instance.address == service.address != shared
        assert await call(shared) == await call(service.address) == b"hello"
    async with service:
        assert await call(shared) == b"hello"


async def test_without_a_supervisor_nobody_shares_it(hasty_clock, shared):
    """Another service is told that it is taken, and leaves nothing behind."""
    other = make_service(hasty_clock, shared)
    async with make_service(hasty_clock, shared):
        with pytest.raises(SettingsError, match="choose another with shared_listen="):
            await other.__aenter__()
    async with other:
        assert await call(shared) == b"hello"


async def test_what_a_supervisor_keeps_is_shared(hasty_clock, shared):
    """Several services listen there, while the port of each stays its own."""
    reserved = ReservedPort(shared)
    services = [make_service(hasty_clock, shared) for _ in range(2)]
    for service in services:
        service.shares_port = True
    async with services[0], services[1]:
        assert await call(shared) == b"hello"
        own = services[0].address
        with pytest.raises(SettingsError, match="in use"):
            await make_service(hasty_clock, None, listen=own).__aenter__()
        with socket.socket() as greedy:
            greedy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            host, _, port = own.rpartition(":")
            with pytest.raises(OSError, match="in use"):
                greedy.bind((host, int(port)))
    reserved.close()
