"""Instances whose certificate is wrong: calls fail once, or go elsewhere, and the log tells why."""

import logging

import grpc
import pytest

from meshrpc.registry.instance import Instance
from tests.drop_in.tls import certificate
from tests.echo import IDEMPOTENT, ROUND_ROBIN, EchoServer, Handlers, policy, ready

NAME = "shop.example"


class SecureServer(EchoServer):
    """An echo server with a certificate of its own."""

    def __init__(self, name, certified=NAME):
        super().__init__(name)
        self.certified = certified

    async def __aenter__(self):
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self.server.add_generic_rpc_handlers((Handlers(self),))
        keys = grpc.ssl_server_credentials([certificate(self.certified)])
        self.port = self.server.add_secure_port("127.0.0.1:0", keys)
        await self.server.start()
        return self


@pytest.fixture
def secure(mesh):
    return mesh.channel("echo", credentials=grpc.ssl_channel_credentials(certificate(NAME)[1]))


def said(caplog):
    return [record for record in caplog.records if record.name == "meshrpc.client"]


async def test_a_certificate_that_nobody_vouches_for_is_not_tried_again_and_again(
    registry, secure, caplog
):
    """One attempt for a call, although it may be repeated; one line in the log for all of them."""
    async with SecureServer("one", "other.example") as one:
        await registry.register(one.instance)
        for _ in range(3):
            call = secure.unary_unary(IDEMPOTENT)(b"", timeout=5)
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
            assert "handshake failed" in await call.details()
            assert len(call._tried) == 1
    (told,) = said(caplog)
    assert told.levelno == logging.WARNING
    assert "instance one of echo: failed to connect" in told.getMessage()


async def test_calls_go_to_those_that_are_trusted(mesh, registry, secure):
    """None of them fails for the one that is not."""
    async with SecureServer("one") as one, SecureServer("two", "other.example") as two:
        policy(mesh, balancer=ROUND_ROBIN)
        await registry.register(one.instance)
        await registry.register(two.instance)
        await ready(secure, 1)
        for _ in range(10):
            assert await secure.unary_unary(IDEMPOTENT)(b"", timeout=5) == b"@one"
        assert two.seen == []


async def test_an_instance_that_is_not_there_is_no_question_of_trust(registry, secure, caplog):
    """That is no news, and nothing is logged."""
    gone = Instance(id="gone", service="echo", address="127.0.0.1:1", pid=1)
    await registry.register(gone)
    call = secure.unary_unary(IDEMPOTENT)(b"", timeout=5)
    assert await call.code() is grpc.StatusCode.UNAVAILABLE
    assert said(caplog) == []
