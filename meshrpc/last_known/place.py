"""Where last known good lies: a folder for each namespace and registry, a file for each service.

Names are readable where they can be. What a file system could take for something else, or for the
same, gets a checksum instead: `..`, a slash, capitals, what is too long.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

LONGEST = 80
"""Characters of a name that stay readable."""

_SECRET = re.compile(r"token|password|secret|key", re.IGNORECASE)
_AT_HAND = ("memory", "static", "file")
"""Registries whose list is in this process, or on this machine, anyway."""


def folder_of_registry(
    state_dir: Path, namespace: str, url: object, control: Sequence[str]
) -> Path | None:
    """Return the folder for what the registry says; None: it is not to be kept.

    Args:
        state_dir: below which all of them are.
        namespace: of the process.
        url: the registry's; an object in its place is somebody's own.
        control: addresses of the control services.
    """
    if not isinstance(url, str):
        return None
    scheme = url.partition(":")[0].strip().lower()
    if scheme in _AT_HAND:
        return None
    if scheme == "mesh":
        return folder_of_control(state_dir, namespace, control)
    try:
        return _folder(state_dir, namespace, _without_secrets(url.strip()))
    except ValueError:
        return None  # no URL: who opens the registry says so


def folder_of_control(state_dir: Path, namespace: str, control: Sequence[str]) -> Path | None:
    """Return the folder for what control says; None: there is no control service."""
    if not control:
        return None
    return _folder(state_dir, namespace, f"mesh:{','.join(sorted(control))}")


def file_name(service: str, kind: str) -> str:
    """Return what the file of a service is called; `*` is one too."""
    return f"{'mesh-wide' if service == '*' else _readable(service)}.{kind}"


def _folder(state_dir: Path, namespace: str, source: str) -> Path:
    return state_dir / "last-known" / _readable(namespace) / _readable(source)


def _readable(text: str) -> str:
    readable = re.sub(r"[^a-z0-9._-]+", "_", text.lower()).lstrip(".")[:LONGEST]
    if readable == text and text not in ("", "mesh-wide"):
        return text
    return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    query = [(key, value) for key, value in parse_qsl(parts.query) if not _SECRET.search(key)]
    place = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=place, query=urlencode(query), fragment="").geturl()
