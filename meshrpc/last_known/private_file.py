"""Files that only this user writes and reads, replaced as a whole.

A new file is written beside the old one, synced, and renamed over it: whoever reads sees the one
or the other, also after a power cut, and of many writers the last one wins. What others own or
may write is not read, since its checksum would be theirs too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from meshrpc.last_known.seal import UnusableError

LEFT_OVER_AFTER = 60.0
"""Seconds from which on a temporary file is somebody's who was killed while writing it."""

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_TEMPORARY = ".tmp"


def read(path: Path) -> bytes | None:
    """Return what the file holds; None: there is none.

    Raises:
        UnusableError: it, or its folder, is not this user's alone, or it cannot be read.
    """
    try:
        _check(os.lstat(path.parent), stat.S_ISDIR, "its folder")
        # Not blocking: a pipe in its place would wait for a writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags)
        try:
            _check(os.fstat(descriptor), stat.S_ISREG, "it")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnusableError("it is a symbolic link") from error
        raise UnusableError(f"it cannot be read: {error.strerror}") from error


def replace(path: Path, data: bytes) -> None:
    """Let the file hold `data` and nothing else; make its folder if need be.

    Raises:
        OSError: nothing was changed.
        UnusableError: the folder is not this user's alone.
    """
    _make(path.parent)
    _check(os.lstat(path.parent), stat.S_ISDIR, "the folder")
    descriptor, temporary = tempfile.mkstemp(_TEMPORARY, f".{path.name}.", path.parent)  # 0600
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 - as `mkstemp` names it
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108 - as above
        raise
    _sync(path.parent)


def remove(path: Path) -> None:
    """Let there be no such file.

    Raises:
        OSError: it is there still.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path.unlink()
        _sync(path.parent)


def remove_left_over(folder: Path) -> None:
    """Remove what writers left that were killed."""
    with contextlib.suppress(OSError):
        for temporary in folder.glob(f".*{_TEMPORARY}"):
            if temporary.lstat().st_mtime < time.time() - LEFT_OVER_AFTER:
                temporary.unlink()


def _check(found: os.stat_result, is_right_kind: Callable[[int], bool], what: str) -> None:
    if not is_right_kind(found.st_mode):
        raise UnusableError(f"{what} is of another kind")
    if found.st_uid != os.geteuid():
        raise UnusableError(f"{what} belongs to another user")
    if found.st_mode & _OTHERS_MAY_WRITE:
        raise UnusableError(f"others may write to {what}")


def _make(folder: Path) -> None:
    if not folder.is_dir():
        _make(folder.parent)
        with contextlib.suppress(FileExistsError):  # somebody else was quicker; or it is a file
            folder.mkdir(mode=0o700)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
