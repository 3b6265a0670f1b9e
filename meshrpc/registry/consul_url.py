"""What a URL says of a Consul: `consul://HOST:PORT[/?OPTION=VALUE&...]`.

Options are few, checked here, and unknown ones are refused. The token is a secret: neither an
error nor a repr shows it, nor anything else after the question mark. `CONSUL_HTTP_SSL` and
`CONSUL_HTTP_SSL_VERIFY` count where the URL does not say; files are opened later.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field

from meshrpc.errors import SettingsError

DEFAULT_PORT = 8500
OPTIONS = ("dc", "token", "tls", "ca", "cert", "key", "verify", "stale", "tag", "tags")
EXPECTED = "consul://HOST:PORT[/?OPTION=VALUE&...]"


@dataclass(frozen=True, slots=True)
class ConsulUrl:
    """Where an agent is, how to talk to it, and what of it is meant."""

    host: str
    """An IPv6 address stands in brackets."""
    port: int
    dc: str | None = None
    """The datacenter that is listed and watched; None: the agent's own."""
    token: str | None = field(default=None, repr=False)
    tls: bool = False
    ca: str | None = None
    """A file of certificates that are trusted besides the machine's."""
    cert: str | None = None
    """A file with the certificate this process shows; its key may be in it."""
    key: str | None = None
    verify: bool = True
    stale: bool = False
    """Whether any server may answer, also without a leader."""
    tag: tuple[str, ...] = ()
    """Only instances with all these tags are seen."""
    tags: tuple[str, ...] = ()
    """Tags of what this process registers."""

    @property
    def address(self) -> str:
        """Where the agent is, as `host:port`."""
        return f"{self.host}:{self.port}"

    @property
    def certificate(self) -> str | tuple[str, str] | None:
        """The certificate this process shows, with its key where that is a file of its own."""
        return (self.cert, self.key) if self.cert and self.key else self.cert


def parse(url: str, environ: Mapping[str, str] = os.environ) -> ConsulUrl:
    """Read a URL.

    Raises:
        SettingsError: it cannot be used; the message says why, without its options' values.
    """
    # Everything after this may hold the token, also in a URL that is malformed.
    shown = re.split("[?#]", url)[0].rpartition("@")[2]
    shown = shown if shown.startswith("consul:") else f"consul://{shown}"

    def refuse(why: str) -> SettingsError:
        return SettingsError(f"registry {shown!r}: {why}")

    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError as error:
        raise refuse(str(error)) from None
    if not host or parts.path not in ("", "/") or "@" in parts.netloc or parts.fragment:
        raise refuse(f"expected {EXPECTED}")
    options: dict[str, list[str]] = {}
    for name, value in urllib.parse.parse_qsl(parts.query, keep_blank_values=True):
        options.setdefault(name, []).append(value.strip())
    if unknown := sorted(options.keys() - set(OPTIONS)):
        raise refuse(f"unknown option {', '.join(unknown)}; there are {', '.join(OPTIONS)}")
    for name, values in options.items():
        if not all(values):
            raise refuse(f"option {name} has no value")
        if len(values) > 1 and name != "tag":
            raise refuse(f"option {name} is given more than once")

    def text(name: str) -> str | None:
        return options[name][0] if name in options else None

    def switch(name: str, otherwise: bool) -> bool:
        match text(name):
            case None:
                return otherwise
            case "true":
                return True
            case "false":
                return False
        raise refuse(f"option {name} is true or false")

    tls = switch("tls", environ.get("CONSUL_HTTP_SSL", "").lower() == "true")
    verify = switch("verify", environ.get("CONSUL_HTTP_SSL_VERIFY", "true").lower() == "true")
    if not tls and (idle := [name for name in ("ca", "cert", "key", "verify") if name in options]):
        raise refuse(f"option {idle[0]} needs tls=true")
    if "key" in options and "cert" not in options:
        raise refuse("option key needs cert, the certificate it belongs to")
    if not verify and (idle := [name for name in ("ca", "cert") if name in options]):
        raise refuse(f"option {idle[0]} has no effect with verify=false")
    return ConsulUrl(
        host=f"[{host}]" if ":" in host else host,
        port=port,
        dc=text("dc"),
        token=text("token"),
        tls=tls,
        ca=text("ca"),
        cert=text("cert"),
        key=text("key"),
        verify=verify,
        stale=switch("stale", False),
        tag=tuple(options.get("tag", ())),
        tags=tuple(filter(None, map(str.strip, (text("tags") or "").split(",")))),
    )
