"""What a consul:// URL can ask for, against real Consuls: rights, TLS, datacenters, tags, reads."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from meshrpc.errors import RegistryError, SettingsError
from meshrpc.registry.consul import ConsulRegistry
from meshrpc.registry.instance import Health, Instance
from tests.consul import SELDOM, ConsulServer, Told

pytestmark = pytest.mark.consul

ROOT = str(uuid.uuid4())


@pytest.fixture
def instance() -> Instance:
    return Instance(
        id="1",
        service=f"payment-{uuid.uuid4().hex[:8]}",
        address="127.0.0.1:5001",
        health=Health.SERVING,
    )


def token(server: ConsulServer, rules: str) -> str:
    """Make a token that may do what the rules say."""
    policy = server.put("/v1/acl/policy", {"Name": uuid.uuid4().hex, "Rules": rules})
    made = server.put("/v1/acl/token", {"Policies": [{"ID": policy["ID"]}]})
    return str(made["SecretID"])


async def test_the_token_in_the_url_has_the_rights_it_needs(consul_binary, instance, monkeypatch):
    """The documented rights are enough, and what others have counts less than the URL's."""
    with ConsulServer(token=ROOT) as server:
        write = f'service "{instance.service}" {{ policy = "write" }} node_prefix "" '
        enough = token(server, write + '{ policy = "read" }')
        monkeypatch.setenv("CONSUL_HTTP_TOKEN", token(server, 'node_prefix "" { policy = "read" }'))
        url = f"{server.url}/?token={enough}"
        async with (
            ConsulRegistry(url, check_every=SELDOM) as registry,
            ConsulRegistry(server.url) as other,
        ):
            told = Told()
            registry.watch(instance.service, told)
            await registry.register(instance)
            await told.until(instance)
            assert await registry.renew(instance)
            await registry.drain(instance)
            await registry.undrain(instance)
            await told.until(instance)
            assert await registry.services() == (instance.service,)
            with pytest.raises(RegistryError, match="Permission denied") as denied:
                await other.register(replace(instance, id="2"))
            await registry.deregister(instance)
            await registry.deregister(instance)
            await told.until()
            shown = (url, repr(registry), repr(registry.__dict__), str(denied.value))
            assert [enough in each for each in shown] == [True, False, False, False]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> dict[str, Path]:
    """Files of a CA, and of keys and certificates it signed, made by openssl."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificates")
    folder = tmp_path_factory.mktemp("certificates")
    files = {
        f"{who}-{kind}": folder / f"{who}.{kind}" for who in ("ca", "it") for kind in ("crt", "key")
    }
    new = f"{openssl} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    ca = f"-CA {files['ca-crt']} -CAkey {files['ca-key']} -addext subjectAltName=IP:127.0.0.1"
    usage = "-addext basicConstraints=critical,CA:FALSE"
    signs = "-addext keyUsage=critical,keyCertSign"  # from Python 3.13 on it has to say so
    for who, more in (("ca", signs), ("it", f"{ca} {usage}")):
        made = f"-subj /CN={who} -keyout {files[f'{who}-key']} -out {files[f'{who}-crt']} {more}"
        subprocess.run(f"{new} {made}".split(), check=True, capture_output=True)
    return files


async def test_tls_verifies_both_sides(consul_binary, instance, certificates):
    """Without the CA the server is not trusted, without a certificate the client is not."""
    ca, cert, key = (str(certificates[name]) for name in ("ca-crt", "it-crt", "it-key"))
    files = (certificates["ca-crt"], certificates["it-crt"], certificates["it-key"])
    with ConsulServer(tls=files) as server:
        url = f"consul://{server.https_address}/?tls=true"
        whole = f"{url}&ca={ca}&cert={cert}&key={key}"
        async with ConsulRegistry(whole, check_every=SELDOM) as registry:
            told = Told()
            registry.watch(instance.service, told)
            await registry.register(instance)
            await told.until(instance)
        for short, why in (
            (url, "unable to get local issuer certificate; check tls=, ca=, cert= and key="),
            (f"{url}&ca={ca}", "cannot reach Consul at"),
            (f"{url}&verify=false", "cannot reach Consul at"),
            (f"consul://{server.https_address}", "HTTP request to an HTTPS server"),
            (f"{server.url}?tls=true&verify=false", "check tls="),
        ):
            async with ConsulRegistry(short) as registry:
                with pytest.raises(RegistryError, match=why):
                    await registry.instances(instance.service)
        missing = ConsulRegistry(f"{url}&ca=/nowhere.pem")
        with pytest.raises(SettingsError, match="ca=/nowhere\\.pem: no such file"):
            await missing.__aenter__()
        mixed = ConsulRegistry(f"{url}&cert={cert}&key={certificates['ca-key']}")
        with pytest.raises(SettingsError, match="key values mismatch"):
            await mixed.__aenter__()


async def test_a_datacenter_is_looked_into_from_another(consul_binary, instance):
    """`dc` is where instances are looked for; registering is the agent's own datacenter's."""
    there = replace(instance, address="10.0.0.5:5001", incarnation=5)
    with (
        ConsulServer(config={"datacenter": "west", "node_name": "w"}) as west,
        ConsulServer(
            config={"datacenter": "east", "node_name": "e", "retry_join_wan": [west.wan_address]}
        ) as east,
    ):
        async with (
            ConsulRegistry(west.url, check_every=SELDOM) as at_home,
            ConsulRegistry(f"{west.url}/?dc=east", check_every=SELDOM) as abroad,
            ConsulRegistry(east.url, check_every=SELDOM) as in_the_east,
        ):
            await asyncio.to_thread(west.until, "/v1/health/service/consul?dc=east")
            told = Told()
            abroad.watch(instance.service, told)
            await told.until()
            await in_the_east.register(there)
            await told.until(there)
            await abroad.register(instance)  # an older incarnation, but elsewhere
            here = Told()
            at_home.watch(instance.service, here)
            await here.until(instance)
            assert await abroad.instances(instance.service) == (there,)
            assert await abroad.services() == (instance.service,)
            assert told.snapshots[-1].instances == (there,)
        east.kill()
        async with ConsulRegistry(f"{west.url}/?dc=nowhere") as nowhere:
            with pytest.raises(RegistryError, match="No path to datacenter"):
                await nowhere.instances(instance.service)


async def test_tags_choose_who_is_seen(consul_server, instance):
    """All tags that are asked for; what this process registers has those it is given."""
    url = consul_server.url
    async with (
        ConsulRegistry(f"{url}?tags=blue,eu", check_every=SELDOM) as blue,
        ConsulRegistry(f"{url}?tags=green", check_every=SELDOM) as green,
        ConsulRegistry(f"{url}?tag=blue&tag=eu") as both,
        ConsulRegistry(f"{url}?tag=green&tag=eu") as neither,
        ConsulRegistry(url) as everyone,
    ):
        other = replace(instance, id="2")
        await blue.register(instance)
        await green.register(other)
        told, seen = Told(), Told()
        both.watch(instance.service, told)
        everyone.watch(instance.service, seen)
        await told.until(instance)
        await seen.until(instance, other)
        await blue.drain(instance)  # writes the record anew
        await blue.undrain(instance)
        await blue.register(replace(instance, weight=3))
        await told.until(replace(instance, weight=3))
        assert await neither.instances(instance.service) == ()
        assert instance.service not in await neither.services()
        await blue.deregister(instance)
        await green.deregister(other)


@pytest.mark.soak
async def test_stale_reads_need_no_leader(consul_binary, instance, tmp_path):
    """A server whose leader died goes on answering them, and says so."""
    wrapper = tmp_path / "consul"
    server = f"-server -data-dir={tmp_path}/data"
    wrapper.write_text(f'#!/bin/sh\nshift 2\nexec {consul_binary} agent {server} "$@"\n')
    wrapper.chmod(0o700)

    async def silent(url: str) -> str | None:
        """Return why a new watch is silent, once it knows the instance."""
        async with ConsulRegistry(url) as late:
            told = Told()
            watch = late.watch(instance.service, told)
            await told.until(instance)
            return watch.why_silent()

    with ConsulServer() as leader:
        joining = {"retry_join": [leader.lan_address], "node_name": "follower"}
        with ConsulServer(wrapper, config=joining) as follower:
            url = f"{follower.url}?stale=true"
            async with ConsulRegistry(url, check_every=SELDOM) as registry:
                await registry.register(instance)
                assert await silent(url) is None
                leader.kill()
                async with asyncio.timeout(30):
                    while "no leader" not in (await silent(url) or ""):  # noqa: ASYNC110
                        await asyncio.sleep(0.1)
                assert await registry.renew(instance)
                assert await registry.instances(instance.service) == (instance,)
                assert await registry.services() == (instance.service,)
            async with ConsulRegistry(follower.url) as strict:
                with pytest.raises(RegistryError, match="Consul at"):
                    await strict.instances(instance.service)
