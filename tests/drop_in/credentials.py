"""Scenarios: TLS, and credentials of calls."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import grpc
import grpc.aio
import pytest

from tests.drop_in.battery import World, each_kind, plain, raised, scenario, status

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


async def echo(request, context):
    return request


async def unary_with_metadata(request, context):
    return repr(plain(context.invocation_metadata())).encode()


def handler_of(kind):
    """Return a handler that answers with the metadata of its call."""

    async def unary(request, context):
        if kind.startswith("stream"):
            _ = [each async for each in request]
        return await unary_with_metadata(request, context)

    async def stream(request, context):
        yield await unary(request, context)

    return stream if kind.endswith("stream") else unary


def start(method, kind, **keywords):
    return method(b"a" if kind.startswith("unary") else [b"a"], **keywords)


async def answers(call, kind):
    if kind.endswith("unary"):
        return await call
    return [message async for message in call]


class Token(grpc.AuthMetadataPlugin):
    """Adds a token, and remembers what it was asked for."""

    def __init__(self, world):
        self.world = world

    def __call__(self, context, callback):
        self.world.note((context.method_name, context.service_url.rsplit("/", 1)[-1]))
        callback((("x-token", "t"),), None)


class Failing(grpc.AuthMetadataPlugin):
    """Has no token."""

    def __call__(self, context, callback):
        callback((), LookupError("no token"))


class Raising(grpc.AuthMetadataPlugin):
    """Fails by itself."""

    def __call__(self, context, callback):
        raise LookupError("no plugin")


# --- TLS ----------------------------------------------------------------------------------


@scenario()
async def a_secure_channel_calls_a_secure_server(world: World):
    """The server's certificate is the one that the channel trusts."""
    channel = world.make_channel(await tls_server(world), credentials=trusting())
    return await world.unary_unary(echo, channel)(b"a")


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
    channel = world.make_channel(await tls_server(world), credentials=trusting("other.example"))
    return (await raised(world.unary_unary(echo, channel)(b"a")))[:2]


@scenario()
async def a_certificate_of_another_name_is_refused(world: World):
    """The name the channel asks for is not in the certificate."""
    channel = world.make_channel(
        await tls_server(world),
        credentials=trusting(),
        options=[("grpc.ssl_target_name_override", "else.example")],
    )
    return (await raised(world.unary_unary(echo, channel)(b"a")))[:2]


@scenario()
async def the_name_in_the_certificate_can_be_told(world: World):
    """grpc.ssl_target_name_override names whom to expect."""
    channel = world.make_channel(
        await tls_server(world),
        credentials=trusting(),
        options=[("grpc.ssl_target_name_override", NAME)],
    )
    return await world.unary_unary(echo, channel)(b"a")


@scenario()
async def a_default_authority_is_the_name_to_expect(world: World):
    """Under TLS the authority of calls is checked against the certificate."""
    port = await tls_server(world)
    seen = []
    for authority in (NAME, "else.example"):
        channel = world.make_channel(
            port, credentials=trusting(), options=[("grpc.default_authority", authority)]
        )
        seen.append((await raised(world.unary_unary(echo, channel)(b"a")))[:2])
    return seen


@scenario()
async def a_secure_channel_to_a_server_in_plain_text_fails(world: World):
    """UNAVAILABLE."""
    channel = world.make_channel(credentials=trusting())
    return (await raised(world.unary_unary(echo, channel)(b"a")))[:2]


@scenario()
async def a_plain_channel_to_a_secure_server_fails(world: World):
    """UNAVAILABLE."""
    channel = world.make_channel(await tls_server(world))
    return (await raised(world.unary_unary(echo, channel)(b"a")))[:2]


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
    channel = world.make_channel(port, credentials=trusting())
    return (await raised(world.unary_unary(echo, channel)(b"a")))[:2]


@scenario()
async def local_credentials_are_secure_enough_on_loopback(world: World):
    """grpc.local_channel_credentials, without any certificate."""
    port = await world.secure_server(grpc.local_server_credentials())
    channel = world.make_channel(port, credentials=grpc.local_channel_credentials())
    return await world.unary_unary(echo, channel)(b"a")


@scenario()
async def secure_channels_share_credentials(world: World):
    """One credentials object serves any number of channels."""
    port, credentials = await tls_server(world), trusting()
    channels = [world.make_channel(port, credentials=credentials) for _ in range(3)]
    return [await world.unary_unary(echo, channel)(b"a") for channel in channels]


@scenario()
async def credentials_that_secure_nothing_are_refused(world: World):
    """grpcio's insecure credentials are not for secure channels."""
    try:
        world.make_channel(credentials=grpc.experimental.insecure_channel_credentials())
    except Exception as error:  # noqa: BLE001 - that is the question
        return type(error).__name__
    return "made"


# --- Credentials of calls -----------------------------------------------------------------


@each_kind
def _plugin(kind):
    async def run(world: World):
        port = await world.secure_server(grpc.local_server_credentials())
        channel = world.make_channel(port, credentials=grpc.local_channel_credentials())
        method = getattr(world, kind)(handler_of(kind), channel)
        credentials = grpc.metadata_call_credentials(Token(world), "token")
        call = start(method, kind, credentials=credentials, metadata=(("k", "v"),))
        return await answers(call, kind)

    return (
        run,
        f"a_plugin_adds_metadata_to_a_{kind}_call",
        "It is asked once for the call, by its method, and the server sees what it gives.",
    )


@each_kind
def _insecure(kind):
    async def run(world: World):
        method = getattr(world, kind)(handler_of(kind))
        try:
            start(method, kind, credentials=grpc.access_token_call_credentials("t"))
        except grpc.aio.UsageError as error:
            return str(error)
        return "made"

    return (
        run,
        f"credentials_of_a_{kind}_call_are_refused_in_plain_text",
        "UsageError where the call is made, connected or not.",
    )


async def local(world, **arguments):
    port = await world.secure_server(grpc.local_server_credentials())
    return world.make_channel(port, credentials=grpc.local_channel_credentials(), **arguments)


@scenario()
async def credentials_are_refused_in_plain_text_on_a_connected_channel(world: World):
    """The same error as before it connects."""
    method = world.unary_unary(echo)
    await method(b"a")
    try:
        method(b"b", credentials=grpc.access_token_call_credentials("t"))
    except grpc.aio.UsageError as error:
        return str(error)
    return "made"


@scenario()
async def an_access_token_goes_out_as_authorization(world: World):
    """grpc.access_token_call_credentials."""
    method = world.unary_unary(unary_with_metadata, await local(world))
    return await method(b"a", credentials=grpc.access_token_call_credentials("abc"))


@scenario()
async def two_credentials_of_a_call_are_both_added(world: World):
    """grpc.composite_call_credentials."""
    method = world.unary_unary(unary_with_metadata, await local(world))
    both = grpc.composite_call_credentials(
        grpc.access_token_call_credentials("abc"),
        grpc.metadata_call_credentials(Token(world)),
    )
    return await method(b"a", credentials=both)


@scenario()
async def credentials_of_a_channel_are_added_to_each_call(world: World):
    """grpc.composite_channel_credentials: the plugin is asked for every call."""
    port = await world.secure_server(grpc.local_server_credentials())
    both = grpc.composite_channel_credentials(
        grpc.local_channel_credentials(), grpc.metadata_call_credentials(Token(world))
    )
    method = world.unary_unary(unary_with_metadata, world.make_channel(port, credentials=both))
    return [await method(b"a"), await method(b"b")]


@scenario()
async def credentials_of_channel_and_call_are_both_added(world: World):
    """Neither replaces the other."""
    port = await world.secure_server(grpc.local_server_credentials())
    both = grpc.composite_channel_credentials(
        grpc.local_channel_credentials(), grpc.access_token_call_credentials("abc")
    )
    method = world.unary_unary(unary_with_metadata, world.make_channel(port, credentials=both))
    return await method(b"a", credentials=grpc.metadata_call_credentials(Token(world)))


@scenario()
async def a_plugin_without_a_token_fails_the_call(world: World):
    """The call ends with grpcio's status and the plugin's reason; the server hears of nothing."""

    async def handler(request, context):
        world.note("called")
        return request

    method = world.unary_unary(handler, await local(world))
    call = method(b"a", credentials=grpc.metadata_call_credentials(Failing()))
    return [await raised(call), await status(call)]


@scenario()
async def a_plugin_that_raises_fails_the_call(world: World):
    """The same for one that breaks."""

    async def handler(request, context):
        world.note("called")
        return request

    method = world.unary_unary(handler, await local(world))
    return await raised(method(b"a", credentials=grpc.metadata_call_credentials(Raising())))


@scenario()
async def a_call_without_credentials_follows_one_with(world: World):
    """Credentials are the call's own."""
    method = world.unary_unary(unary_with_metadata, await local(world))
    token = grpc.metadata_call_credentials(Token(world))
    return [await method(b"a", credentials=token), await method(b"b")]


@scenario()
async def an_interceptor_adds_credentials(world: World):
    """By replacing them in the call's details."""
    token = grpc.metadata_call_credentials(Token(world))

    class Adds(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation, details, request):
            return await continuation(details._replace(credentials=token), request)

    method = world.unary_unary(unary_with_metadata, await local(world, interceptors=[Adds()]))
    return await method(b"a")
