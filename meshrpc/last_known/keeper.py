"""Last known good: noted while the process knows it, read when it starts and nobody answers.

Notes are taken on the event loop, which costs nothing: encoding, comparing and writing are done
by one thread at a time, once a second at most. A file that says the same already is left alone,
so that of many processes that hear the same news one writes it.

What it does not do: decide when what is remembered is used, or what of it is believed.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

from meshrpc.clock import SYSTEM_CLOCK, Clock
from meshrpc.last_known import private_file
from meshrpc.last_known.content import (
    decode_instances,
    decode_policy,
    differ,
    encode_instances,
    encode_policy,
    joined,
    listed,
)
from meshrpc.last_known.disk_thread import in_disk_thread
from meshrpc.last_known.place import file_name
from meshrpc.last_known.seal import UnusableError, seal, unseal
from meshrpc.registry.instance import Instance

WRITE_EVERY = 1.0
"""Seconds from one round of writing to the next, at least."""
MOST_OF_THE_TIME = 0.05
"""The part of the time that may be spent writing, of which 10,000 instances take some."""
TRY_AGAIN_AFTER = 30.0
"""Seconds until a disk that was full, or a folder that was not ours, is tried again."""
CLOSE_WITHIN = 2.0
"""Seconds that a process waits at its end for a disk that does not answer."""

INSTANCES = "instances"
POLICY = "policy"

_log = logging.getLogger("meshrpc.last_known")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Remembered(Generic[T]):
    """What was known once."""

    value: T
    age: float
    """Seconds since it was saved, by wall time."""

    @property
    def ago(self) -> str:
        """The age for people: `4 min ago`."""
        for unit, seconds in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
            if self.age >= 2 * seconds:
                return f"{self.age / seconds:.0f} {unit} ago"
        return f"{self.age:.0f} s ago"


@dataclass(frozen=True, slots=True)
class _Note:
    """What is to be in one file; None: there is to be none."""

    content: tuple[Instance, ...] | str | None
    taken_at: float
    is_partial: bool = False
    """Whether instances that are missing may be there all the same."""


_Subject = tuple[str, str]
"""The kind of a file, and the service it is about."""


class LastKnown:
    """What is kept of one mesh in one folder. Open it with `async with`; it never raises.

    Args:
        folder: for these files alone, as `place` says; made when the first one is written.
        clock: for pauses between writing.
        wall: wall seconds, for the age.
    """

    def __init__(
        self, folder: Path, *, clock: Clock = SYSTEM_CLOCK, wall: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._wall = wall
        self._known: dict[_Subject, _Note] = {}
        """All that this process itself has noted."""
        self._due: dict[_Subject, _Note] = {}
        self._written: dict[_Subject, tuple[Instance, ...]] = {}
        """What the thread last found to be on disk, to tell news from a changed load."""
        self._noted = asyncio.Event()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._warned: set[Path] = set()
        self._is_failing = False
        self._has_cleaned = False

    def __repr__(self) -> str:
        return f"<LastKnown {self._folder} noted={len(self._known)} due={len(self._due)}>"

    async def __aenter__(self) -> Self:
        self._closing.clear()
        self._task = asyncio.create_task(
            self._keep_writing(), name="meshrpc last known", context=contextvars.Context()
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        if task is None:
            return
        self._closing.set()
        self._noted.set()
        await asyncio.wait([task], timeout=CLOSE_WITHIN)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def keep_instances(
        self, service: str, instances: Sequence[Instance], *, is_partial: bool = False
    ) -> None:
        """Note whom the service's caller believes in; nobody is no news.

        Draining ones and anybody's load are left out. `is_partial`: there may be more, so those
        that are kept already stay.
        """
        if instances:
            self._note((INSTANCES, service), tuple(instances), is_partial=is_partial)

    def keep_policy(self, service: str, document: str | None) -> None:
        """Note the service's own document as JSON text; None: it has none any more."""
        self._note((POLICY, service), document)

    def instances(self, service: str) -> Remembered[tuple[Instance, ...]] | None:
        """Return the service's instances as active ones, ordered by id; None: nothing is known.

        It reads the file here and now.
        """
        note = self._known.get((INSTANCES, service))
        if note is not None and isinstance(note.content, tuple):
            instances = listed(self._completed(service, note, note.content))
            return self._remembered(instances, note.taken_at) if instances else None
        return self._read((INSTANCES, service), decode_instances)

    def policy(self, service: str) -> Remembered[str] | None:
        """Return the service's own document as JSON text; None: none is known.

        It reads the file here and now.
        """
        note = self._known.get((POLICY, service))
        if note is not None:
            text = note.content
            return self._remembered(text, note.taken_at) if isinstance(text, str) else None
        return self._read((POLICY, service), decode_policy)

    def _remembered(self, value: T, since: float) -> Remembered[T]:
        return Remembered(value, max(0.0, self._wall() - since))

    def _read(self, subject: _Subject, decode: Callable[[str, bytes], T]) -> Remembered[T] | None:
        kind, service = subject
        path = self._path(subject)
        try:
            data = private_file.read(path)
            if data is None:
                return None
            body, saved_at = unseal(kind, data)
            return self._remembered(decode(service, body), saved_at)
        except UnusableError as error:
            if path not in self._warned:
                self._warned.add(path)
                _log.warning("%s is passed over: %s; it can be deleted", path, error)
            return None

    def _completed(
        self, service: str, note: _Note, instances: tuple[Instance, ...]
    ) -> tuple[Instance, ...]:
        """Return the instances that were noted, with those on disk if there may be more."""
        if not note.is_partial:
            return instances
        kept = self._read((INSTANCES, service), decode_instances)
        return instances if kept is None else joined(kept.value, instances)

    def _note(
        self,
        subject: _Subject,
        content: tuple[Instance, ...] | str | None,
        *,
        is_partial: bool = False,
    ) -> None:
        self._known[subject] = self._due[subject] = _Note(content, self._wall(), is_partial)
        self._noted.set()

    async def _keep_writing(self) -> None:
        while True:
            await self._noted.wait()
            self._noted.clear()
            due, self._due = self._due, {}
            if not due and self._closing.is_set():
                return
            began = self._clock.now()
            failed, error = await in_disk_thread(partial(self._write_all, due))
            self._due = {**failed, **self._due}
            self._say(error)
            if self._closing.is_set() and (failed or not self._due):
                return
            rest = max(WRITE_EVERY, (self._clock.now() - began) / MOST_OF_THE_TIME)
            if failed:
                rest = TRY_AGAIN_AFTER
                self._noted.set()
            with contextlib.suppress(TimeoutError):
                async with self._clock.timeout(rest):
                    await self._closing.wait()

    def _say(self, error: Exception | None) -> None:
        if error is not None and not self._is_failing:
            cause = error.strerror if isinstance(error, OSError) else error
            _log.warning(
                "cannot keep on disk what is known of the mesh, in %s: %s; a process that starts "
                "while the registry is away will miss it (state_dir says where it is kept)",
                self._folder,
                cause,
            )
        elif error is None and self._is_failing:
            _log.info("what is known of the mesh is kept in %s again", self._folder)
        self._is_failing = error is not None

    # From here on: in the thread, one at a time.

    def _write_all(
        self, due: Mapping[_Subject, _Note]
    ) -> tuple[dict[_Subject, _Note], Exception | None]:
        """Write the files; return what could not be written, and why."""
        if not self._has_cleaned:
            self._has_cleaned = True
            private_file.remove_left_over(self._folder)
        failed: dict[_Subject, _Note] = {}
        cause: Exception | None = None
        for subject, note in due.items():
            try:
                self._write(subject, note)
            except Exception as error:  # noqa: BLE001 - nor may one file keep others from theirs
                failed[subject] = note
                cause = error
        return failed, cause

    def _write(self, subject: _Subject, note: _Note) -> None:
        path = self._path(subject)
        kind, service = subject
        match note.content:
            case None:
                private_file.remove(path)
                return
            case str(text):
                body = encode_policy(service, text)
            case instances:
                if not differ(self._written.get(subject, ()), instances):
                    self._written[subject] = instances
                    return
                if not (kept := listed(self._completed(service, note, instances))):
                    return
                body = encode_instances(service, kept)
        if not _holds(path, kind, body):
            private_file.replace(path, seal(kind, body, note.taken_at))
        if isinstance(note.content, tuple) and not note.is_partial:
            self._written[subject] = note.content
        else:
            self._written.pop(subject, None)  # there may be others besides

    def _path(self, subject: _Subject) -> Path:
        kind, service = subject
        return self._folder / file_name(service, kind)


def _holds(path: Path, kind: str, body: bytes) -> bool:
    """Return whether the file says this already, and whole."""
    try:
        data = private_file.read(path)
        return data is not None and unseal(kind, data)[0] == body
    except UnusableError:
        return False  # it is replaced, if the folder is ours
