"""One look at a registry file: whether it has changed, and what it says then. Runs in a thread."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from meshrpc.errors import Problem
from meshrpc.registry.file_document import Services, read_services

LONGEST = 64 * 1024 * 1024
"""Bytes of a file, at most: far more than anybody lists, and it cannot fill the memory."""

Signature = tuple[int, int, int, int, int]
"""What tells two versions of a file apart: device, inode, size, and the times of both changes."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What one look found."""

    signature: Signature | None
    """None: there is no file."""
    is_same: bool = False
    """Whether there is nothing new, or nothing that can be read yet."""
    services: Services | None = None
    """What a good file says."""
    problems: tuple[Problem, ...] = ()
    """What is wrong; those of the file itself have no path."""


def look_at(
    path: Path,
    namespace: str,
    seen: Signature | None,
    read: Signature | None,
    *,
    hurries: bool,
) -> Looked:
    """Read the file unless it is as it was read, or still changes.

    Args:
        path: the file.
        namespace: whose services are read.
        seen: what the last look saw.
        read: what was read last.
        hurries: read it also if the last look saw something else.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            signature = _signature(status)
            if signature == read or (signature != seen and not hurries):
                return Looked(signature, is_same=True)
            if not stat.S_ISREG(status.st_mode):
                return _bad(signature, "this is no regular file")
            if status.st_size > LONGEST:
                return _bad(signature, f"larger than {LONGEST // 1024 // 1024} MiB")
            content = file.read(LONGEST)
            if _signature(os.fstat(file.fileno())) != signature:
                return Looked(signature, is_same=True)
    except OSError as error:
        return _bad(None, error.strerror or str(error))
    try:
        services, problems = read_services(content.decode("utf-8"), namespace)
    except UnicodeDecodeError as error:
        return _bad(signature, f"this is not UTF-8: {error.reason} at byte {error.start}")
    except Exception as error:  # noqa: BLE001 - whatever a parser raises: the next look goes on
        return _bad(signature, f"this cannot be read: {type(error).__name__}: {error}")
    return Looked(signature, services=None if problems else services, problems=problems)


def _without_waiting(path: str, flags: int) -> int:
    """Open it; a pipe would otherwise wait for somebody to write."""
    return os.open(path, flags | os.O_NONBLOCK)


def _bad(signature: Signature | None, rule: str) -> Looked:
    return Looked(signature, problems=(Problem("", "", rule),))


def _signature(status: os.stat_result) -> Signature:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
