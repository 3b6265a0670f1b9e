"""A real Consul for the tests: found, or fetched, and run on free ports.

`python -m tests.consul --fetch` makes sure that there is a binary: `CONSUL_BIN`, or `consul` on
the path, or `.cache/consul/consul`. Where there is none, Debian's package is taken from the
mirror that this machine's apt already uses, checked against the checksum below, and unpacked
without being installed. `ConsulServer` runs the binary, `Told` waits for what a watch sees.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import http.client
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tests.ports import free_port

if TYPE_CHECKING:
    from meshrpc.registry.instance import Instance
    from meshrpc.registry.registry import Snapshot

CACHED = Path(__file__).resolve().parent.parent / ".cache" / "consul" / "consul"

# Debian 11 is the last release with a Consul package; the binary runs on later ones.
PACKAGE = "pool/main/c/consul/consul_1.8.7+dfsg1-2+b3_amd64.deb"
PACKAGE_SHA256 = "e4e888bba104daba1d9161f49bfc52649a7e4efd45b1a7ead5bc54f2cb9c89d9"
PACKAGE_BYTES = 14_473_816

MISSING = (
    "no Consul: set CONSUL_BIN, put consul on the path, or run: python -m tests.consul --fetch"
)


def find() -> Path | None:
    """Return the binary to use, if there is one."""
    given = os.environ.get("CONSUL_BIN")
    if given:
        return Path(given) if os.access(given, os.X_OK) else None
    installed = shutil.which("consul")
    if installed:
        return Path(installed)
    return CACHED if os.access(CACHED, os.X_OK) else None


SELDOM = 3600.0
"""Seconds between two of Consul's health checks of instances that have no server."""


class FetchError(Exception):
    """Why there is no Consul to be had here."""


def fetch(apt: Path = Path("/etc/apt")) -> Path:
    """Download and unpack the package into `.cache/consul`; return the binary."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise FetchError(f"the package is for Linux on amd64, not {platform.platform()}")
    if shutil.which("dpkg") is None:
        raise FetchError("unpacking the package needs dpkg")
    tried = []
    for mirror in mirrors(apt):
        url = f"{mirror.rstrip('/')}/{PACKAGE}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310
                package = answer.read(PACKAGE_BYTES + 1)
        except (OSError, http.client.HTTPException, ValueError) as error:
            tried.append(f"{url}: {error}")
            continue
        if hashlib.sha256(package).hexdigest() != PACKAGE_SHA256:
            tried.append(f"{url}: not the package whose checksum is known")
            continue
        return _unpack(package)
    raise FetchError("; ".join(tried) or f"no Debian mirror in the apt sources under {apt}")


def mirrors(apt: Path) -> list[str]:
    """Return the archives apt reads `main` from, likeliest first; not security updates."""
    found = [
        *_one_line_sources([apt / "sources.list", *sorted(apt.glob("sources.list.d/*.list"))]),
        *_deb822_sources(sorted(apt.glob("sources.list.d/*.sources"))),
    ]
    unique = dict.fromkeys(
        uri
        for uri, suite, components in found
        if uri.startswith(("http://", "https://"))
        and "main" in components
        and "security" not in f"{uri} {suite}"
    )
    # The distribution's own archive is named after it; others only look alike.
    return sorted(unique, key=lambda uri: not uri.rstrip("/").endswith("/debian"))


def _one_line_sources(files: Iterable[Path]) -> Iterator[tuple[str, str, list[str]]]:
    """Read `deb [options] uri suite component...`."""
    for file in files:
        for line in file.read_text("utf-8").splitlines() if file.is_file() else ():
            kind, _, rest = line.partition("#")[0].strip().partition(" ")
            if rest.lstrip().startswith("["):
                rest = rest.partition("]")[2]
            words = rest.split()
            if kind == "deb" and len(words) >= 3:
                yield words[0], words[1], words[2:]


def _deb822_sources(files: Iterable[Path]) -> Iterator[tuple[str, str, list[str]]]:
    """Read stanzas of `Types:`, `URIs:`, `Suites:` and `Components:`."""
    for file in files:
        lines = [line for line in file.read_text("utf-8").splitlines() if not line.startswith("#")]
        for stanza in "\n".join(line.rstrip() for line in lines).split("\n\n"):
            pairs = (line.partition(":") for line in stanza.splitlines())
            fields = {key.strip().lower(): value.split() for key, _, value in pairs}
            if "deb" not in fields.get("types", ()) or fields.get("enabled") == ["no"]:
                continue
            for uri in fields.get("uris", ()):
                for suite in fields.get("suites", ()):
                    yield uri, suite, fields.get("components", [])


def _unpack(package: bytes) -> Path:
    CACHED.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHED.parent) as folder:
        file = Path(folder, "consul.deb")
        file.write_bytes(package)
        subprocess.run(["dpkg", "-x", file, folder], check=True, timeout=60)
        # In one step: another test run may be doing the same.
        Path(folder, "usr/bin/consul").replace(CACHED)
    return CACHED


class ConsulServer:
    """One `consul agent -dev`: a whole Consul in memory. `with ConsulServer() as server:`.

    `kill()` is kill -9; `restart()` brings it back on the same ports, empty. `config` is what a
    configuration file of Consul's says besides, `token` makes it ask for tokens and is the one
    that may do everything, and `tls` is the files of a CA, of a certificate and of its key: there
    is HTTPS then, for who shows a certificate of that CA.
    """

    START = 30.0
    """Seconds until it must have elected itself; it takes about one."""

    def __init__(
        self,
        binary: Path | None = None,
        *,
        config: Mapping[str, object] | None = None,
        token: str | None = None,
        tls: tuple[Path, Path, Path] | None = None,
    ) -> None:
        found = binary or find()
        if found is None:
            raise FileNotFoundError(MISSING)
        self._binary = found
        # It can't be given port 0.
        ports = (free_port() for _ in range(6))
        self._http, self._dns, self._https, self._lan, self._wan, self._rpc = ports
        self._token = token
        self._config = dict(config or {})
        if token is not None:
            rights = {"tokens": {"master": token, "agent": token}, "default_policy": "deny"}
            self._config["acl"] = {"enabled": True, **rights}
        if tls is not None:
            names = ("ca_file", "cert_file", "key_file")
            self._config.update(zip(names, map(str, tls), strict=True))
            self._config |= {"verify_incoming_https": True, "ports": {"https": self._https}}
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._http}"

    @property
    def https_address(self) -> str:
        return f"127.0.0.1:{self._https}"

    @property
    def dns_address(self) -> str:
        """Where it answers DNS, over UDP and TCP: `SERVICE.service.consul`."""
        return f"127.0.0.1:{self._dns}"

    @property
    def lan_address(self) -> str:
        """Where others of the same datacenter join it: `config={"retry_join": [...]}`."""
        return f"127.0.0.1:{self._lan}"

    @property
    def wan_address(self) -> str:
        """Where servers of other datacenters join it: `config={"retry_join_wan": [...]}`."""
        return f"127.0.0.1:{self._wan}"

    @property
    def url(self) -> str:
        return f"consul://{self.address}"

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def __enter__(self) -> Self:
        try:
            self.restart()
        except BaseException:
            self._log.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
        self._log.close()

    def kill(self) -> None:
        """End it at once; no error when it has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Start it, ending it first if it runs; return once it is ready."""
        self.kill()
        names = ("serf-wan", "serf-lan", "server", "dns")
        numbers = (self._wan, self._lan, self._rpc, self._dns)
        ports = [f"-{name}-port={port}" for name, port in zip(names, numbers, strict=True)]
        options = ["-bind=127.0.0.1", "-client=127.0.0.1", f"-http-port={self._http}"]
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(self._config, file)
            file.flush()
            self._process = subprocess.Popen(
                [
                    *(self._binary, "agent", "-dev", "-config-file", file.name),
                    *(*options, *ports, "-grpc-port=-1"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
            )
            self._wait()

    def _wait(self) -> None:
        give_up = time.monotonic() + self.START
        while not self._is_ready():
            if (
                self._process is None
                or self._process.poll() is not None
                or time.monotonic() > give_up
            ):
                self.kill()
                raise RuntimeError(f"{self._binary} did not start:\n{self.output()[-2000:]}")
            time.sleep(0.05)

    def get(self, path: str) -> Any:
        """Return what Consul's HTTP interface answers to GET; None when that is an error."""
        status, body = self._ask("GET", path)
        return json.loads(body) if status == 200 else None

    def until(self, path: str) -> Any:
        """Return what it answers to GET once that is something."""
        give_up = time.monotonic() + self.START
        while not (answer := self.get(path)):
            if time.monotonic() > give_up:
                raise TimeoutError(f"GET {path}: nothing in {self.START:g} s")
            time.sleep(0.05)
        return answer

    def put(self, path: str, body: object = None) -> Any:
        """Return what it answers to PUT.

        Raises:
            ValueError: it refused.
        """
        status, answer = self._ask("PUT", path, json.dumps(body))
        if status != 200:
            raise ValueError(f"PUT {path}: {status} {answer.decode()}")
        return json.loads(answer or b"null")

    def _ask(self, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._http, timeout=5)
        headers = {} if self._token is None else {"X-Consul-Token": self._token}
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def output(self) -> str:
        """Return what it has printed so far."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode("utf-8", "replace")

    def _is_ready(self) -> bool:
        """Whether it leads, and has entered itself in the catalog: from then on it serves."""
        try:
            return bool(self.get("/v1/status/leader") and self.get("/v1/catalog/service/consul"))
        except (OSError, http.client.HTTPException):
            return False


class Told:
    """What a watch was told, to wait on."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []
        self._told = asyncio.Event()

    def __call__(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)
        self._told.set()

    async def until(self, *instances: Instance) -> None:
        """Wait until these are all there is."""
        async with asyncio.timeout(30):
            while not self.snapshots or self.snapshots[-1].instances != instances:
                self._told.clear()
                await self._told.wait()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A real Consul for the tests.")
    parser.add_argument("--fetch", action="store_true", help="download one if there is none")
    options = parser.parse_args(arguments)
    binary = find()
    if binary is not None:
        print(f"consul: using {binary}")  # noqa: T201
        return 0
    if os.environ.get("CONSUL_BIN"):
        print(f"consul: CONSUL_BIN={os.environ['CONSUL_BIN']} cannot be run", file=sys.stderr)  # noqa: T201
        return 1
    if not options.fetch:
        print(MISSING, file=sys.stderr)  # noqa: T201
        return 1
    try:
        print(f"consul: fetched {fetch()}")  # noqa: T201
    except (FetchError, OSError, subprocess.SubprocessError) as error:
        print(f"consul: none here, and none to be had: {error}", file=sys.stderr)  # noqa: T201
        return 1 if os.environ.get("CI") == "true" else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
