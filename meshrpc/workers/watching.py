"""Whether the Python files below a folder have changed, for `meshrpc run --reload`.

By looking at their times and sizes now and then: no dependency, the same on every system and on
every file system, network and container mounts included. Files of virtual environments, caches
and hidden folders are nobody's code in the making, and are passed over.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

LOOK_EVERY = 0.5
"""Seconds between two looks: what is noticed as at once, at some milliseconds for each."""

_PASSED_OVER = frozenset({"__pycache__", "site-packages", "node_modules"})

_Seen = dict[str, tuple[int, int]]


class Watch:
    """Looks at the Python files below `folder`, links to folders aside."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen = self._look()
        self._changed: set[str] = set()

    def __repr__(self) -> str:
        return f"<Watch {self._folder} files={len(self._seen)}>"

    def changes(self) -> list[str]:
        """Return the files that changed, relative to the folder; none while they still change.

        An editor that saves many files, or a checkout, is one change that way.
        """
        before, self._seen = self._seen, self._look()
        new = {path for path, _ in before.items() ^ self._seen.items()}
        self._changed |= new
        if new:
            return []
        changed, self._changed = self._changed, set()
        return sorted(os.path.relpath(path, self._folder) for path in changed)

    def _look(self) -> _Seen:
        return dict(_python_files(self._folder))


def _python_files(folder: Path | str) -> Iterator[tuple[str, tuple[int, int]]]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return  # gone since it was listed, or not ours to read
    if any(entry.name == "pyvenv.cfg" for entry in entries):
        return  # a virtual environment, whatever its name
    for entry in entries:
        if entry.name.startswith(".") or entry.name in _PASSED_OVER:
            continue
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _python_files(entry.path)
            elif entry.name.endswith(".py"):
                status = entry.stat()
                yield entry.path, (status.st_mtime_ns, status.st_size)
        except OSError:
            continue  # a file that is being replaced: it is a change in any case
