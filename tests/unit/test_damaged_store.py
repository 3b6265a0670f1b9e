"""A store that cannot be used: nothing of it is told as if its owner had deleted it, nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import shutil
import sqlite3
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from meshrpc.control import database_file
from meshrpc.control import records as records_module
from meshrpc.control import store as store_module
from meshrpc.control.database import Database, StoreFullError
from meshrpc.control.database_file import open_memory
from meshrpc.control.records import InstanceRecords
from meshrpc.control.salvage import DamagedError, take_along
from meshrpc.control.store import PolicyStore
from meshrpc.errors import ControlError
from meshrpc.registry.instance import Instance

SCHEMA = store_module.SCHEMA + records_module.SCHEMA
PAGE = 4096
COUNT = 200
DOCUMENT = json.dumps({"note": "x" * 500})
NO_DATABASE = b"this is not a database, and long enough to be taken for one " * 100
NOBODY = 65534


@contextlib.asynccontextmanager
async def opened(path: Path):
    database = await Database.open(f"sqlite:{path}", SCHEMA, renewable=records_module.TABLES)
    try:
        yield database, await PolicyStore.load(database)
    finally:
        await database.close()


def instance(id: str) -> Instance:  # noqa: A002
    labels = {"note": "x" * 500}
    return Instance(id=id, service="payment", address="127.0.0.1:5001", labels=labels)


@pytest.fixture
async def path(tmp_path) -> Path:
    """A store with two hundred policies and as many instances."""
    path = tmp_path / "control.db"
    await fill(path)
    return path


async def fill(path: Path) -> None:
    async with opened(path) as (database, store):
        await store.apply("default", {f"service-{n}": DOCUMENT for n in range(COUNT)})
        records = InstanceRecords(database)
        for number in range(COUNT):
            records.keep(instance(f"p{number}"))
        await records.flush()


async def refusal(path: Path) -> str:
    """Why a control service does not start on it. The file stays as it is, alone."""
    before = files(path.parent)
    with pytest.raises(ControlError) as caught:
        async with opened(path):
            pass
    assert files(path.parent) == before
    return str(caught.value)


def files(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()}


def pages_of(path: Path, table: str) -> list[int]:
    """The pages of the file, from 1, that hold a table."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        try:
            pages = database.execute("SELECT pageno FROM dbstat WHERE name = ?", [table])
        except sqlite3.OperationalError:
            pytest.skip("this SQLite does not tell which page is whose")
        return [page for (page,) in pages.fetchall()]


def overwrite(path: Path, pages: list[int], with_: bytes = b"\xff") -> None:
    content = bytearray(path.read_bytes())
    for page in pages:
        content[PAGE * (page - 1) : PAGE * page] = with_ * PAGE
    path.write_bytes(content)


def by_hand(path: Path, *statements: str) -> None:
    """What somebody does to it with SQLite's own shell."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        for statement in statements:
            database.execute(statement)


# At the start: what would be told wrongly is not started on


def test_the_remedy_is_in_the_documentation():
    """The section that the errors name is there."""
    page = Path(__file__).parents[2] / "docs" / "control.md"
    assert "### A damaged store\n" in page.read_text()


@pytest.mark.parametrize("content", [NO_DATABASE, b"SQLite", b"\0" * PAGE])
async def test_a_file_that_is_no_database_is_refused(tmp_path, content):
    """A path written wrong costs nobody the file there, whatever it is called."""
    for name in ("notes.txt", "control.db"):
        path = tmp_path / name
        path.write_bytes(content)
        why = await refusal(path)
        assert why.startswith(f"the store sqlite:{path} is damaged (it is not a database: is the")
        assert "it stays as it is, and so do the policies that processes have" in why
        assert "restore it from a backup, or fill a new one with your policies" in why


@pytest.mark.parametrize("start", [b"SQLite format 3\0", b"SQLite format 3\0" + b"\xff" * 10_000])
async def test_a_file_that_merely_begins_like_a_database_is_refused(tmp_path, start):
    """It is not taken for a new one either."""
    path = tmp_path / "control.db"
    path.write_bytes(start)
    assert f"the store sqlite:{path} is damaged (" in await refusal(path)


@pytest.mark.parametrize("keep", [1, 16, 100, PAGE, 2 * PAGE, 20 * PAGE, 20 * PAGE + 17])
async def test_a_file_that_was_cut_off_is_refused(path, keep):
    """Wherever it was cut, also between two pages."""
    path.write_bytes(path.read_bytes()[:keep])
    assert f"the store sqlite:{path} is damaged (" in await refusal(path)


async def test_a_file_that_was_cut_off_in_its_last_page_is_refused(path):
    """A byte is enough."""
    path.write_bytes(path.read_bytes()[:-1])
    assert f"the store sqlite:{path} is damaged (" in await refusal(path)


async def test_an_empty_file_is_no_new_one(path):
    """Nor is the log beside it dropped, as SQLite would."""
    path.write_bytes(b"")
    log = path.with_name("control.db-wal")
    log.write_bytes(b"what was written last")
    assert "is damaged (it is empty); it stays as it is" in await refusal(path)


async def test_a_file_that_is_gone_while_its_log_is_there_is_no_new_one(path):
    """Killed before it was tidied up, and then only one of two files was moved."""
    path.rename(path.with_name("elsewhere"))
    path.with_name("control.db-wal").write_bytes(b"what was written last")
    why = await refusal(path)
    assert "is damaged (control.db is gone, and control.db-wal has changes that belong" in why


@pytest.mark.parametrize("table", ["documents", "revisions"])
async def test_a_file_that_lacks_a_table_of_policies_is_refused(path, table):
    """An empty one is not made in its place."""
    by_hand(path, f"DROP TABLE {table}")
    assert f"is damaged (it has no table {table}); it stays" in await refusal(path)


async def test_a_schema_that_was_changed_by_hand_is_refused(path):
    """What `writable_schema` allows: a table without its name, one that leads to another's pages."""
    content = path.read_bytes()
    for change in ("sql = 'no sql'", "name = 'other', tbl_name = 'other'", "rootpage = 2"):
        path.write_bytes(content)
        by_hand(
            path,
            "PRAGMA writable_schema = ON",
            f"UPDATE sqlite_master SET {change} WHERE name = 'documents'",  # noqa: S608
        )
        assert f"the store sqlite:{path} is damaged (" in await refusal(path)


async def test_another_programs_database_is_refused(tmp_path):
    """Nothing is written into it."""
    path = tmp_path / "other.db"
    by_hand(path, "CREATE TABLE titles (title TEXT)")
    why = await refusal(path)
    assert "(it has no table revisions and no table documents: is it ours?)" in why


async def test_another_releases_database_is_refused(tmp_path):
    """It has tables of the same names with other columns."""
    path = tmp_path / "other.db"
    by_hand(
        path,
        "CREATE TABLE documents (title TEXT)",
        "CREATE TABLE revisions (title INTEGER PRIMARY KEY AUTOINCREMENT)",
    )
    with pytest.raises(
        ControlError, match=r"cannot use .* another program's, or another release's"
    ):
        async with opened(path):
            pass


@pytest.mark.parametrize("table", ["documents", "revisions", "sqlite_sequence"])
@pytest.mark.parametrize("with_", [b"\xff", b"\0"])
async def test_a_page_of_policies_that_was_overwritten_is_refused(path, table, with_):
    """Of the file nothing is taken along, and nothing is changed."""
    overwrite(path, pages_of(path, table)[-1:], with_)
    assert f"the store sqlite:{path} is damaged (" in await refusal(path)


async def test_the_first_page_is_part_of_it(path):
    """With the header in order and the rest of the page overwritten."""
    content = bytearray(path.read_bytes())
    content[100:PAGE] = b"\xff" * (PAGE - 100)
    path.write_bytes(content)
    assert f"the store sqlite:{path} is damaged (" in await refusal(path)


async def test_revisions_that_are_gone_are_damage(path):
    """Nothing is broken in the file, but documents refer to nothing."""
    by_hand(path, "DELETE FROM revisions")
    assert "is damaged (table documents: what it refers to is lost); it" in await refusal(path)


@pytest.mark.parametrize("bad", [b"\xff\xfe", b'"\0', b'"}{'])
async def test_a_document_whose_bytes_were_changed_is_damage(path, bad):
    """SQLite finds nothing wrong with it; no process could have used it."""
    start = DOCUMENT[:20].encode()
    path.write_bytes(path.read_bytes().replace(start, start[: -len(bad)] + bad))
    assert f"the store sqlite:{path} is damaged (" in await refusal(path)


async def test_no_revision_is_given_out_again_when_the_count_of_them_is_lost(path):
    """It is at least that of the newest document."""
    async with opened(path) as (_, store):
        await store.apply("default", {"order": "[1]"})
    by_hand(path, "DELETE FROM sqlite_sequence")
    async with opened(path) as (_, store):
        assert store.revision == 2
        assert (await store.apply("default", {"order": "[2]"})).revision == 3


@pytest.mark.parametrize(
    "error", [PermissionError(1, "Operation not permitted"), FileExistsError(17, "File exists")]
)
async def test_a_new_file_comes_to_its_place_whole(tmp_path, monkeypatch, error):
    """Also on a filesystem without links; of two that are made at once one is used."""
    path, other = tmp_path / "control.db", tmp_path / "other.db"
    await fill(other)

    def link(made, file):
        if isinstance(error, FileExistsError):
            other.rename(file)
        raise error

    monkeypatch.setattr("os.link", link)
    async with opened(path) as (_, store):
        is_others = isinstance(error, FileExistsError)
        assert len(store.list("default")) == (COUNT if is_others else 0)
        other.unlink(missing_ok=True)
        assert {each.name for each in tmp_path.iterdir()} <= {"control.db", "control.db-wal"}


# At the start: what comes back by itself


@pytest.mark.parametrize("with_", [b"\xff", b"\0"])
async def test_lost_instances_cost_no_policy(path, caplog, with_):
    """They register again; all policies are there, and the damaged file is kept."""
    async with opened(path) as (_, store):
        await store.apply("default", {"order": "[1]"})
        await store.apply("default", {"order": "[2]"})
    by_hand(
        path, "DELETE FROM documents WHERE revision = 3", "DELETE FROM revisions WHERE revision = 3"
    )
    overwrite(path, pages_of(path, "instances")[-1:], with_)
    content = path.read_bytes()
    async with opened(path) as (database, store):
        assert len(store.list("default")) == COUNT + 1
        assert store.revision == 3
        assert await InstanceRecords(database).load() == ()
        assert (await store.apply("default", {"order": "[4]"})).revision == 4
    (warning,) = caplog.messages
    assert f"the store {path} was damaged (" in warning
    assert warning.endswith("the damaged file is control.db.damaged-1 now")
    assert path.with_name("control.db.damaged-1").read_bytes() == content
    caplog.clear()
    async with opened(path) as (_, store):
        assert store.get("default", "order").document == "[4]"
    assert not caplog.records
    assert sorted(files(path.parent)) == ["control.db", "control.db.damaged-1"]


async def test_no_older_damaged_file_is_overwritten(path):
    """The second one is called otherwise."""
    for number in (1, 2):
        if number == 2:
            async with opened(path) as (database, _):
                records = InstanceRecords(database)
                for each in range(COUNT):
                    records.keep(instance(f"p{each}"))
                await records.flush()
        overwrite(path, pages_of(path, "instances")[-1:])
        content = path.read_bytes()
        async with opened(path) as (_, store):
            assert len(store.list("default")) == COUNT
        assert path.with_name(f"control.db.damaged-{number}").read_bytes() == content


async def test_a_file_without_the_table_of_instances_gets_one(path):
    """Nothing is lost that does not come back."""
    by_hand(path, "DROP TABLE instances")
    async with opened(path) as (database, store):
        assert len(store.list("default")) == COUNT
        assert await InstanceRecords(database).load() == ()


async def test_one_record_whose_name_is_no_text_costs_one_instance(path):
    """The others are known."""
    by_hand(path, "UPDATE instances SET id = CAST(x'ff' AS TEXT) WHERE id = 'p7'")
    async with opened(path) as (database, _):
        assert len(await InstanceRecords(database).load()) == COUNT - 1


async def test_whoever_cannot_write_a_new_file_does_not_lose_the_old_one(path, monkeypatch):
    """The disk fills up while what is whole is copied."""
    overwrite(path, pages_of(path, "instances")[-1:])

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("meshrpc.control.database_file.take_along", fail)
    assert "cannot open the store" in (why := await refusal(path))
    assert "No space left on device" in why


async def test_of_a_table_of_policies_no_half_is_taken_along(path):
    """Not even if it was whole when it was looked at."""
    overwrite(path, pages_of(path, "documents")[-1:])
    with contextlib.closing(open_memory(SCHEMA)) as new:
        with pytest.raises((DamagedError, sqlite3.DatabaseError)):
            take_along(path, new, records_module.TABLES)
        assert new.execute("SELECT count(*) FROM documents").fetchone() == (0,)


# Access


@pytest.fixture
def ordinary():
    """A folder of a user who is not root, and does what this test does."""
    with tempfile.TemporaryDirectory() as folder:
        if os.geteuid() != 0:
            yield Path(folder)
            return
        os.chown(folder, NOBODY, -1)
        os.seteuid(NOBODY)
        try:
            yield Path(folder)
        finally:
            os.seteuid(0)


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        (0o000, "this user may not read the file"),
        (0o400, "the file is read-only, or this user may not write it"),
    ],
)
async def test_a_file_that_may_not_be_read_or_written_is_refused(ordinary, mode, why):
    """At the start, not at the first write; the error names the remedy."""
    path = ordinary / "control.db"
    await fill(path)
    path.chmod(mode)
    with pytest.raises(ControlError, match=f"{why}; make it writable for this user, or choose"):
        await Database.open(f"sqlite:{path}", SCHEMA)
    path.chmod(0o600)
    async with opened(path) as (_, store):
        assert len(store.list("default")) == COUNT


async def test_a_folder_that_may_not_be_written_is_refused(ordinary):
    """SQLite keeps its log there; also for a store that is to be made."""
    await fill(ordinary / "control.db")
    ordinary.chmod(0o500)
    try:
        for name in ("control.db", "new.db"):
            with pytest.raises(ControlError, match=f"the folder {ordinary} is read-only, or this"):
                await Database.open(f"sqlite:{ordinary / name}", SCHEMA)
    finally:
        ordinary.chmod(0o700)


async def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    """A file where the folder should be is named, with what to do."""
    (tmp_path / "file").write_text("")
    for name in ("control.db", "below/control.db"):
        with pytest.raises(ControlError, match=r"a file in its place; choose another"):
            await Database.open(f"sqlite:{tmp_path / 'file' / name}", SCHEMA)


async def test_a_path_that_is_a_folder_is_refused(tmp_path):
    """The error says that it is one."""
    with pytest.raises(ControlError, match=r"it is a folder; .* choose another with --store"):
        await Database.open(f"sqlite:{tmp_path}", SCHEMA)


async def test_a_path_that_is_a_pipe_is_refused(tmp_path):
    """Nobody waits until somebody writes into it."""
    path = tmp_path / "control.db"
    os.mkfifo(path)
    with pytest.raises(ControlError, match=r"it is not a file; .* choose another with --store"):
        await Database.open(f"sqlite:{path}", SCHEMA)


# Two at once: the one before is not gone yet, or was just faster


async def test_who_meets_another_in_its_first_start_is_told_so(path, monkeypatch):
    """Not that the file is gone: it was not there yet when it was looked for."""
    monkeypatch.setattr(database_file, "LOCKED_WITHIN", 0.01)
    other = path.with_name("other.db")
    path.rename(other)
    looked = Path.exists
    with contextlib.ExitStack() as others:

        def exists(file: Path) -> bool:
            if file != path or looked(path):
                return looked(file)
            other.rename(path)
            connection = sqlite3.connect(path, check_same_thread=False)
            others.callback(connection.close)
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("INSERT INTO revisions (author) VALUES ('another')")
            connection.commit()
            assert path.with_name("control.db-wal").stat().st_size
            return False

        monkeypatch.setattr(Path, "exists", exists)
        with pytest.raises(ControlError, match="another control service has it open"):
            await Database.open(f"sqlite:{path}", SCHEMA)


async def test_who_meets_another_in_its_end_goes_on(path, monkeypatch):
    """Its log goes into the file while that is looked at, which is not cut off therefore."""
    whole, cut = path.read_bytes(), path.read_bytes()[:-PAGE]
    path.write_bytes(cut)
    log = path.with_name("control.db-wal")
    log.write_bytes(b"what was written last")
    opening = Path.open

    def slowly(file: Path, mode: str, *args: Any) -> object:
        if not log.exists():
            return opening(file, mode, *args)
        log.unlink()
        path.write_bytes(whole)
        return io.BytesIO(cut)

    monkeypatch.setattr(Path, "open", slowly)
    async with opened(path) as (_, store):
        assert len(store.list("default")) == COUNT


@pytest.fixture
def small_disk(tmp_path):
    """A real filesystem of 400 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if (
        os.geteuid() != 0
        or shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True, check=False).returncode != 0
    ):
        pytest.skip("a filesystem can be mounted by root only, and not everywhere")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def make_read_only(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)


async def test_on_a_full_disk_it_starts_with_what_there_is_and_writes_once_there_is_room(
    small_disk,
):
    """Readers need no disk; a new store cannot be made, and leaves nothing half made."""
    path, filler = small_disk / "control.db", small_disk / "filler"
    async with opened(path) as (_, store):
        await store.apply("default", {"order": DOCUMENT})
    with contextlib.suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(b"x")
            file.flush()
    async with opened(path) as (_, store):
        assert store.get("default", "order").document == DOCUMENT
        with pytest.raises(StoreFullError, match="the disk is full; make room, nothing else is"):
            await store.apply("default", {"order": "[2]"})
        with pytest.raises(ControlError, match="the disk is full; make room"):
            await Database.open(f"sqlite:{small_disk / 'new.db'}", SCHEMA)
        assert not [each for each in small_disk.iterdir() if "new.db" in each.name]
        filler.unlink()
        assert (await store.apply("default", {"order": "[2]"})).changed == ("order",)


async def test_a_disk_that_is_mounted_read_only_is_refused(small_disk):
    """Root has no permissions to lack, but cannot write there either."""
    path = small_disk / "control.db"
    async with opened(path) as (_, store):
        await store.apply("default", {"order": DOCUMENT})
    make_read_only(small_disk)
    with pytest.raises(ControlError, match="is read-only, or this user may not write it; make it"):
        await Database.open(f"sqlite:{path}", SCHEMA)


# While it runs


async def test_damage_that_shows_while_it_runs_ends_the_writing_and_nothing_else(path):
    """Readers keep what they had; each further write is refused with the reason, also one that
    would not touch what is damaged."""
    async with opened(path) as (database, store):
        await asyncio.to_thread(
            lambda: database._connection.execute("PRAGMA cache_size = 0").fetchall()
        )
        pages = pages_of_open(database, "documents")
        overwrite(path, pages)
        with pytest.raises(ControlError, match=r"is damaged \(.*malformed\); it stays as it is"):
            await store.apply("default", {f"service-{n}": "[2]" for n in range(COUNT)})
        assert store.revision == 1
        assert store.get("default", "service-7").document == DOCUMENT
        records = InstanceRecords(database)
        records.keep(instance("q1"))
        with pytest.raises(ControlError, match=r"is damaged \(.*malformed\)"):
            await records.flush()
    assert f"the store sqlite:{path} is damaged (" in await refusal(path)


def pages_of_open(database: Database, table: str) -> list[int]:
    """The pages of a table in a file that nobody else can open just now."""
    try:
        rows = database._connection.execute("SELECT pageno FROM dbstat WHERE name = ?", [table])
    except sqlite3.OperationalError:
        pytest.skip("this SQLite does not tell which page is whose")
    return [page for (page,) in rows.fetchall()]


async def test_a_file_that_is_cut_off_while_it_runs_is_written_to_no_more(path):
    """Otherwise what is written would look well until the next start."""
    async with opened(path) as (_, store):
        os.truncate(path, 5 * PAGE)
        with pytest.raises(ControlError, match=r"is damaged \(it was cut off\); it stays as it is"):
            await store.apply("default", {"order": "[1]"})
        assert len(store.list("default")) == COUNT


async def test_a_file_that_is_taken_away_while_it_runs_is_missed(path):
    """SQLite would write on into a file without a name. Back in its place it is used again."""
    elsewhere = path.with_name("elsewhere")
    async with opened(path) as (_, store):
        path.rename(elsewhere)
        with pytest.raises(ControlError, match="its file was removed or replaced; put it back, or"):
            await store.apply("default", {"order": "[1]"})
        path.write_bytes(elsewhere.read_bytes())
        with pytest.raises(ControlError, match="its file was removed or replaced; put it back, or"):
            await store.apply("default", {"order": "[1]"})
        assert len(store.list("default")) == COUNT
        elsewhere.replace(path)
        assert (await store.apply("default", {"order": "[1]"})).revision == 2
    async with opened(path) as (_, store):
        assert store.get("default", "order").document == "[1]"
