"""What a `dns:` URL asks of DNS: that of a channel names one host, that of a registry a domain.

    dns://HOST:PORT, dns:HOST:PORT, dns:///HOST:PORT     a channel: the addresses of HOST
    dns://_SERVICE._PROTO.NAME                           a channel: what its SRV records say
    dns://SERVER[:PORT][/DOMAIN][?port=N&srv=_S._P]      a registry: NAME.DOMAIN, from this server
    dns:///DOMAIN[?...]                                  a registry, by the system's resolver

Pure.
"""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass
from typing import Self

from meshrpc.errors import RegistryError, SettingsError
from meshrpc.settings import dialable

SCHEME = "dns:"
EXAMPLE = "dns://payments.example.com:443"
REGISTRY_EXAMPLES = "dns://127.0.0.1:8600 or dns:///{namespace}.svc.cluster.local?port=50051"
CONSUL_DOMAIN = "service.consul"
"""Where a server's services are looked for when the URL does not say."""
DNS_PORT = 53

# As above, or as gRPC writes it: `dns:host:port` and `dns:///host:port`.
_TARGET = re.compile(r"dns:(?:///?)?(?P<address>[^/?#]+)")
_SRV_NAME = re.compile(r"_[A-Za-z0-9-]{1,62}\._[A-Za-z0-9-]{1,62}(?P<host>\..+)?")
_OPTIONS = ("port", "srv")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked for one service; at least one of the two names is there."""

    host: str | None
    """The name whose addresses are the instances, at `port`; asked when `srv` has no records."""
    port: int | None
    srv: str | None
    """The name whose SRV records are the instances; asked first."""

    def __str__(self) -> str:
        return self.srv or self.host or ""


@dataclass(frozen=True, slots=True)
class Target:
    """What a channel's URL names: one service, called as the URL."""

    url: str
    asks: Question
    authority: str | None
    """What the server's certificate has to name."""

    server = None

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a channel's target.

        Raises:
            SettingsError: it names no host and port, and no SRV records.
        """
        match = _TARGET.fullmatch(url.strip())
        if match is None:
            raise SettingsError(f"{url!r}: expected a host and a port as in {EXAMPLE}")
        address = match["address"]
        srv = _SRV_NAME.fullmatch(address)
        if srv is not None and srv["host"] and ":" not in address:
            return cls(url, Question(None, None, address), srv["host"].strip("."))
        try:
            host, _, port = dialable(address).rpartition(":")
        except ValueError as error:
            raise SettingsError(f"{url!r}: {error}; expected one as in {EXAMPLE}") from error
        return cls(url, Question(host, int(port), None), f"{host}:{port}")

    def __str__(self) -> str:
        return self.authority or str(self.asks)

    def question(self, service: str, namespace: str) -> Question | None:  # noqa: ARG002
        """Return what to ask for a service; None: there is no such one."""
        return self.asks if service == self.url else None

    def services(self) -> tuple[str, ...]:
        """Return the URL: there is no other service."""
        return (self.url,)


@dataclass(frozen=True, slots=True)
class Domain:
    """What a registry's URL names: where services are looked up, and how."""

    server: tuple[str, int] | None
    """Who is asked; None: whom the system asks."""
    domain: str
    """What follows the service's name; empty: the system's search domains."""
    port: int | None
    srv: str | None

    authority = None

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a registry's URL.

        Raises:
            SettingsError: it cannot be used.
        """
        try:
            return cls._parse(url.strip())
        except ValueError as error:
            rule = f"{error}; expected one as in {REGISTRY_EXAMPLES}"
            raise SettingsError(f"registry {url!r}: {rule}") from error

    @classmethod
    def _parse(cls, url: str) -> Self:
        parts = urllib.parse.urlsplit(url)
        if not url.lower().startswith("dns://") or parts.fragment or "@" in parts.netloc:
            raise ValueError("this is no URL of a DNS registry")
        server = None
        if parts.netloc:
            if not parts.hostname or parts.netloc.endswith(":"):
                raise ValueError("the server is HOST or HOST:PORT")
            server = parts.hostname, DNS_PORT if parts.port is None else _port(str(parts.port))
        domain = urllib.parse.unquote(parts.path).strip("/").strip(".")
        if not re.fullmatch(r"(?:[\w-]+\.)*[\w-]+", domain.replace("{namespace}", "n") or "n"):
            raise ValueError(f"{domain!r} is no domain")
        options = dict.fromkeys(_OPTIONS, "")
        for name, value in urllib.parse.parse_qsl(parts.query, keep_blank_values=True):
            if name not in options:
                raise ValueError(f"unknown option {name}, known are {', '.join(_OPTIONS)}")
            if options[name] or not value:
                raise ValueError(f"option {name} stands there twice, or without a value")
            options[name] = value
        srv = options["srv"] or None
        if srv is not None and not ((match := _SRV_NAME.fullmatch(srv)) and not match["host"]):
            raise ValueError(f"srv={srv} is not written as _SERVICE._PROTO, such as _grpc._tcp")
        port = _port(options["port"]) if options["port"] else None
        if server is not None and not domain:
            domain = CONSUL_DOMAIN
        if not domain and port is None and srv is None:
            raise ValueError("it says neither where services are looked up nor their port")
        return cls(server, domain, port, srv)

    def __str__(self) -> str:
        server = "" if self.server is None else "{}:{}".format(*self.server)
        return f"{server}/{self.domain}"

    def question(self, service: str, namespace: str) -> Question | None:
        """Return what to ask for a service.

        A port says that the addresses are enough: a name's own SRV records, in Kubernetes, have
        every port it has.
        """
        host = service
        if self.domain:  # complete, so it ends with a dot: search domains do not matter
            host = f"{service}.{self.domain.replace('{namespace}', namespace)}."
        if self.srv is not None:
            return Question(host, self.port, f"{self.srv}.{host}")
        return Question(host, self.port, None) if self.port else Question(None, None, host)

    def services(self) -> tuple[str, ...]:
        """Raise: nobody can list them."""
        raise RegistryError(
            "DNS cannot list services: it only answers for a name; ask for one, as in "
            "`meshrpc registry instances NAME`"
        )


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:9]) <= 65535:
        raise ValueError("a port is 1 to 65535")
    return int(text)
