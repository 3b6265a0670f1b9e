"""Scenarios: channels and servers with TLS."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import grpc
import grpc.aio
import pytest

from tests.drop_in.battery import scenario
from tests.drop_in.handlers import echo
from tests.drop_in.observations import raised
from tests.drop_in.world import World

NAME = "drop.example"


@functools.cache
def certificate(name):
    """Return key and self-signed certificate of a name and of 127.0.0.1, made by openssl."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificates")
    with tempfile.TemporaryDirectory() as folder:
        key, made = Path(folder, "key"), Path(folder, "certificate")
        subprocess.run(
            f"{openssl} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
            f"-subj /CN={name} -addext subjectAltName=DNS:{name},IP:127.0.0.1 "
            f"-keyout {key} -out {made}".split(),
            check=True,
            capture_output=True,
        )
        return key.read_bytes(), made.read_bytes()


async def tls_server(world, **arguments):
    return await world.secure_server(grpc.ssl_server_credentials([certificate(NAME)], **arguments))


def trusting(name=NAME):
    """Return credentials that trust a certificate made here."""
    return grpc.ssl_channel_credentials(certificate(name)[1])


async def called(world, port=None, **arguments):
    """Call over a channel made with `arguments`; return how that ends."""
    return (await raised(world.unary_unary(echo, world.make_channel(port, **arguments))(b"a")))[:2]


@scenario()
async def a_secure_channel_calls_a_secure_server(world: World):
    """The server's certificate is the one that the channel trusts."""
    return await called(world, await tls_server(world), credentials=trusting())


@scenario()
async def the_server_sees_that_a_secure_channel_is_secure(world: World):
    """In the auth context, with the kind of security."""

    async def handler(request, context):
        auth = context.auth_context()
        world.note((sorted(auth), auth.get("transport_security_type")))
        world.note((context.peer_identities(), context.peer_identity_key()))
        return request

    channel = world.make_channel(await tls_server(world), credentials=trusting())
    return await world.unary_unary(handler, channel)(b"a")


@scenario()
async def a_certificate_of_somebody_unknown_is_refused(world: World):
    """UNAVAILABLE, as any failed connection."""
    return await called(world, await tls_server(world), credentials=trusting("other.example"))


@scenario()
async def a_certificate_of_another_name_is_refused(world: World):
    """Another than the one to expect, which grpc.ssl_target_name_override tells."""
    port = await tls_server(world)
    return [
        await called(
            world, port, credentials=trusting(), options=[("grpc.ssl_target_name_override", name)]
        )
        for name in (NAME, "else.example")
    ]


@scenario()
async def a_default_authority_is_the_name_to_expect(world: World):
    """Under TLS the authority of calls is checked against the certificate."""
    port = await tls_server(world)
    return [
        await called(
            world, port, credentials=trusting(), options=[("grpc.default_authority", name)]
        )
        for name in (NAME, "else.example")
    ]


@scenario()
async def a_secure_channel_to_a_server_in_plain_text_fails(world: World):
    """UNAVAILABLE."""
    return await called(world, credentials=trusting())


@scenario()
async def a_plain_channel_to_a_secure_server_fails(world: World):
    """UNAVAILABLE."""
    return await called(world, await tls_server(world))


@scenario()
async def a_server_that_asks_for_a_certificate_gets_the_channel_s(world: World):
    """Both sides prove who they are; the handler sees the client's name."""

    async def handler(request, context):
        world.note((context.peer_identity_key(), list(context.peer_identities() or ())))
        return request

    key, made = certificate(NAME)
    port = await tls_server(world, root_certificates=made, require_client_auth=True)
    channel = world.make_channel(port, credentials=grpc.ssl_channel_credentials(made, key, made))
    return await world.unary_unary(handler, channel)(b"a")


@scenario()
async def a_server_that_asks_for_a_certificate_refuses_without(world: World):
    """UNAVAILABLE."""
    port = await tls_server(world, root_certificates=certificate(NAME)[1], require_client_auth=True)
    return await called(world, port, credentials=trusting())


@scenario()
async def local_credentials_are_secure_enough_on_loopback(world: World):
    """grpc.local_channel_credentials, without any certificate."""
    port = await world.secure_server(grpc.local_server_credentials())
    return await called(world, port, credentials=grpc.local_channel_credentials())


@scenario()
async def secure_channels_share_credentials(world: World):
    """One credentials object serves any number of channels."""
    port, credentials = await tls_server(world), trusting()
    return [await called(world, port, credentials=credentials) for _ in range(3)]


@scenario()
async def credentials_that_secure_nothing_are_taken(world: World):
    """With grpcio's insecure credentials a channel speaks plain text."""
    insecure = grpc.experimental.insecure_channel_credentials()
    return await called(world, credentials=insecure)
