"""One process's settings: arguments, then environment, then defaults.

Every setting has one name as an argument and one environment variable; the table below is the
only place where either is written down. `docs/settings.md` is checked against it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshrpc.errors import SettingsError

if TYPE_CHECKING:
    from meshrpc.registry.registry import Registry

DEFAULT_CONTROL_PORT = 7700
DEFAULT_CONTROL_HTTP_PORT = 7780
NO_CONTROL = "none"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


def parse_address(text: str) -> tuple[str, int]:
    """Split `host:port` (IPv6 hosts in brackets); the port is 0 to 65535."""
    host, colon, port = _text(text).rpartition(":")
    is_host = host and not {" ", "/"} & set(host)
    if not colon or not is_host or not port.isdecimal() or int(port) > 65535:
        raise ValueError("an address is host:port, such as 127.0.0.1:5001")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError("an IPv6 host stands in brackets, such as [::1]:5001")
    return host, int(port)


def dialable(text: str) -> str:
    """Return an address that can be dialled, as `host:port`; the port is 1 to 65535."""
    host, port = parse_address(text)
    if port == 0:
        raise ValueError("the port is 1 to 65535")
    return f"{host}:{port}"


def _text(given: str) -> str:
    if not isinstance(given, str):
        raise TypeError(f"this is text, not {type(given).__name__}")
    return given.strip()


def _address(text: str) -> str:
    host, port = parse_address(text)
    return f"{host}:{port}"


def _control(text: str | tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(text, tuple):
        return tuple(_address(address) for address in text)
    if text.strip() == NO_CONTROL:
        return ()
    return tuple(_address(address) for address in text.split(","))


def _control_http(text: str | tuple[str, ...]) -> tuple[str, ...]:
    given = _control(text)
    if not all(parse_address(address)[1] for address in given):
        raise ValueError("the port is 1 to 65535")
    return given


def _shared_listen(text: str) -> str:
    if parse_address(text)[1] == 0:
        raise ValueError("a port that is shared is told by its number, 1 to 65535")
    return _address(text)


def valid_name(text: str) -> str:
    """Return the name of a service, a namespace, a zone or a version.

    Raises:
        ValueError: it has other characters than letters, digits, `.`, `_` and `-`, or over 128.
        TypeError: it is no text.
    """
    _text(text)
    if not _NAME.fullmatch(text):
        raise ValueError("a name has letters, digits, '.', '_' and '-', 128 at most")
    return text


def _labels(given: str | Mapping[str, str]) -> Mapping[str, str]:
    if isinstance(given, str):
        pairs = [pair.partition("=") for pair in given.split(",") if pair.strip()]
        if not all(key.strip() and equals for key, equals, _ in pairs):
            raise ValueError("labels are key=value, separated by commas")
        given = {key.strip(): value.strip() for key, _, value in pairs}
    for reserved in ("version", "zone"):
        if reserved in given:
            raise ValueError(f"{reserved!r} is a setting of its own, not a label")
    return dict(given)


def _weight(given: str | int) -> int:
    if not str(given).strip().isdecimal() or not 1 <= int(given) <= 10_000:
        raise ValueError("a weight is 1 to 10000")
    return int(given)


def default_state_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Return the platform's folder for state: XDG's on Linux, Application Support on macOS."""
    environ = os.environ if environ is None else environ
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "meshrpc"
    base = environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "meshrpc"


def _setting(environment: str, default: Any, parse: Callable[[Any], Any]) -> Any:
    metadata = {"environment": environment, "parse": parse}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What one process is told about itself and its mesh.

    Make one with `Settings.resolve`, which reads the environment for what is not given.
    """

    control: tuple[str, ...] = _setting(
        "MESHRPC_CONTROL", (f"127.0.0.1:{DEFAULT_CONTROL_PORT}",), _control
    )
    """Control services, tried in turn; empty (written `none`) for no control service."""
    control_http: tuple[str, ...] | None = _setting("MESHRPC_CONTROL_HTTP", None, _control_http)
    """Where control services take events over HTTP, as `host:port`; empty (written `none`) for
    nowhere, None for what `control` implies: see `control_http_urls`."""
    registry: str | Registry = _setting("MESHRPC_REGISTRY", "mesh:", lambda given: given)
    """A registry URL, or an object that is a `Registry`."""
    namespace: str = _setting("MESHRPC_NAMESPACE", "default", valid_name)
    """Services in different namespaces of one registry never see each other."""
    listen: str = _setting("MESHRPC_LISTEN", "127.0.0.1:0", _address)
    """Where the server listens; port 0 takes any free one."""
    advertise: str | None = _setting("MESHRPC_ADVERTISE", None, _address)
    """What callers are told to dial; by default the address listened on."""
    shared_listen: str | None = _setting("MESHRPC_SHARED_LISTEN", None, _shared_listen)
    """One more address, shared by all workers of this service, for clients outside the mesh."""
    zone: str | None = _setting("MESHRPC_ZONE", None, valid_name)
    labels: Mapping[str, str] = _setting("MESHRPC_LABELS", dict, _labels)
    weight: int = _setting("MESHRPC_WEIGHT", 1, _weight)
    version: str | None = _setting("MESHRPC_VERSION", None, valid_name)
    state_dir: Path = _setting("MESHRPC_STATE_DIR", default_state_dir, Path)
    """Where services keep what must survive a restart."""

    @classmethod
    def resolve(cls, environ: Mapping[str, str] | None = None, /, **arguments: Any) -> Settings:
        """Take each setting from `arguments` (None: not given), then `environ`, then defaults.

        Raises:
            SettingsError: a value cannot be used; names the setting, the value and the rule.
        """
        environ = os.environ if environ is None else environ
        chosen: dict[str, Any] = {}
        for setting in fields(cls):
            given = arguments.pop(setting.name, None)
            source = f"{setting.name}="
            if given is None:
                variable = setting.metadata["environment"]
                source, given = f"{variable}=", environ.get(variable) or None
            if given is None:
                continue
            try:
                chosen[setting.name] = setting.metadata["parse"](given)
            except (ValueError, TypeError) as error:
                raise SettingsError(f"{source}{given!r}: {error}") from error
        if arguments:
            raise SettingsError(f"unknown settings: {', '.join(sorted(arguments))}")
        return cls(**chosen)


def control_http_urls(settings: Settings) -> tuple[str, ...]:
    """Return where control services are reached over HTTP, each as `http://host:port`.

    Unless told, they are looked for beside those of `control` that have the default port: of one
    with a port of its own nothing is known.
    """
    addresses = settings.control_http
    if addresses is None:
        dialled = map(parse_address, settings.control)
        addresses = tuple(
            f"{host}:{DEFAULT_CONTROL_HTTP_PORT}"
            for host, port in dialled
            if port == DEFAULT_CONTROL_PORT
        )
    return tuple(f"http://{address}" for address in addresses)
