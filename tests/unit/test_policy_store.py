"""The policy store and the registry's records: what is written, what survives, what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3

import pytest

from meshrpc.control import records as records_module
from meshrpc.control import store as store_module
from meshrpc.control.database import Database, StoreFullError
from meshrpc.control.records import InstanceRecords
from meshrpc.control.store import PolicyStore
from meshrpc.errors import ControlError, SettingsError
from meshrpc.registry.instance import Instance, State

SCHEMA = store_module.SCHEMA + records_module.SCHEMA


@contextlib.asynccontextmanager
async def opened(url: str):
    database = await Database.open(url, SCHEMA, renewable=records_module.TABLES)
    try:
        yield database, await PolicyStore.load(database)
    finally:
        await database.close()


def instance(id: str, **fields) -> Instance:  # noqa: A002
    return Instance(id=id, service="payment", address="127.0.0.1:5001", **fields)


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:{tmp_path / 'state' / 'control.db'}"


async def test_documents_applied_together_are_one_revision(url):
    """Two documents in one apply change under one number, and both say so."""
    async with opened(url) as (_, store):
        applied = await store.apply("default", {"order": "[1]", "payment": "[2]"})
        assert (applied.revision, applied.changed) == (1, ("order", "payment"))
        assert [(one.service, one.revision) for one in store.list("default")] == [
            ("order", 1),
            ("payment", 1),
        ]


async def test_what_is_the_same_makes_no_revision(url):
    """Applying again changes nothing; of two documents only the different one changes."""
    async with opened(url) as (_, store):
        await store.apply("default", {"order": "[1]", "payment": "[2]"})
        again = await store.apply("default", {"order": "[1]", "payment": "[2]"})
        assert (again.revision, again.changed) == (1, ())
        part = await store.apply("default", {"order": "[1]", "payment": "[3]"})
        assert (part.revision, part.changed) == (2, ("payment",))
        assert store.version("default", "order") == 1


async def test_a_deletion_is_a_revision_and_deleting_nothing_is_not(url):
    """The version of a deleted document goes on growing, so that subscribers hear of it."""
    async with opened(url) as (_, store):
        await store.apply("default", {"payment": "[1]"})
        deleted = await store.apply("default", {"payment": ""})
        assert (deleted.revision, deleted.changed) == (2, ("payment",))
        assert store.get("default", "payment") is None
        assert store.version("default", "payment") == 2
        assert (await store.apply("default", {"payment": ""})).changed == ()
        assert store.revision == 2


async def test_namespaces_do_not_see_each_other(url):
    """The same service has a document of its own in each."""
    async with opened(url) as (_, store):
        await store.apply("default", {"payment": "[1]"})
        await store.apply("test", {"payment": "[2]"})
        assert [one.document for one in store.list("test")] == ["[2]"]
        assert [one.document for one in store.list("default")] == ["[1]"]


async def test_documents_and_revisions_survive_a_restart(url):
    """After reopening all is there, deletions too, and numbering goes on."""
    async with opened(url) as (_, store):
        await store.apply("default", {"order": "[1]"})
        await store.apply("default", {"payment": "[2]"})
        await store.apply("default", {"order": ""})
    async with opened(url) as (_, store):
        assert store.revision == 3
        assert [one.service for one in store.list("default")] == ["payment"]
        assert store.version("default", "order") == 3
        assert (await store.apply("default", {"order": "[4]"})).revision == 4


async def test_a_revision_is_never_used_twice(url):
    """Even when the newest rows are removed by hand, their numbers stay used."""
    async with opened(url) as (database, store):
        await store.apply("default", {"order": "[1]"})
        await store.apply("default", {"order": "[2]"})

        def remove(connection):
            connection.execute("DELETE FROM documents WHERE revision = 2")
            connection.execute("DELETE FROM revisions WHERE revision = 2")

        await database.run(remove)
    async with opened(url) as (_, store):
        assert store.revision == 2
        assert (await store.apply("default", {"order": "[3]"})).revision == 3


async def test_old_versions_are_kept(url):
    """The history has every version of a document, and who wrote it when."""
    async with opened(url) as (database, store):
        await store.apply("default", {"order": "[1]"}, author="ipv4:127.0.0.1:1")
        await store.apply("default", {"order": "[2]"}, author="ipv4:127.0.0.1:2")
        rows = await database.run(
            lambda connection: connection.execute(
                "SELECT document, author, at FROM documents JOIN revisions USING (revision)"
            ).fetchall()
        )
        assert [(document, author) for document, author, _ in rows] == [
            ("[1]", "ipv4:127.0.0.1:1"),
            ("[2]", "ipv4:127.0.0.1:2"),
        ]
        assert all(at.endswith("Z") for _, _, at in rows)


async def test_a_write_whose_caller_goes_away_is_done_and_told(url):
    """Cancelling an apply leaves memory, disk and subscribers in agreement."""
    async with opened(url) as (_, store):
        told = asyncio.Event()
        store.on_change = lambda namespace, applied: told.set()
        task = asyncio.create_task(store.apply("default", {"order": "[1]"}))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        async with asyncio.timeout(5):
            await told.wait()
        assert store.revision == 1
    async with opened(url) as (_, store):
        assert store.revision == 1


async def test_concurrent_writes_are_all_kept(url):
    """Twenty applies at once make twenty revisions, each of its own."""
    async with opened(url) as (_, store):
        done = await asyncio.gather(
            *(store.apply("default", {f"service-{n}": "{}"}) for n in range(20))
        )
        assert sorted(one.revision for one in done) == list(range(1, 21))
        assert len(store.list("default")) == 20


async def test_a_full_disk_refuses_the_write_and_harms_nothing(url):
    """The error says so, readers go on, and with room again the same store writes again."""
    async with opened(url) as (database, store):
        await store.apply("default", {"order": "[1]"})

        def limit(connection):
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {pages}")

        await asyncio.to_thread(limit, database._connection)
        with pytest.raises(StoreFullError, match="the disk is full; make room"):
            await store.apply("default", {"order": "x" * 1_000_000})
        assert store.revision == 1
        assert store.get("default", "order").document == "[1]"
        await asyncio.to_thread(
            lambda: database._connection.execute("PRAGMA max_page_count = 1000000")
        )
        assert (await store.apply("default", {"order": "[2]"})).revision > 1


async def test_a_second_control_service_on_the_same_file_is_refused(url, monkeypatch):
    """Two would drift apart in memory; the second hears who is to go."""
    monkeypatch.setattr("meshrpc.control.database_file.LOCKED_WITHIN", 0.05)
    async with opened(url):
        with pytest.raises(ControlError, match="another control service has it open"):
            await Database.open(url, SCHEMA)


@pytest.mark.parametrize("url", ["sqlite:", "postgres://x", "control.db"])
async def test_another_kind_of_store_is_refused(url):
    """Only SQLite, and the error shows how it is written."""
    with pytest.raises(SettingsError, match="a store is sqlite:PATH"):
        await Database.open(url, SCHEMA)


async def test_records_come_back_as_they_were_last(url):
    """Kept, replaced and forgotten records are on disk after one flush."""
    async with opened(url) as (database, _):
        records = InstanceRecords(database)
        records.keep(instance("p1"))
        records.keep(instance("p2", labels={"disk": "ssd"}, zone="a", incarnation=3))
        records.keep(instance("p1", state=State.DRAINING))
        records.keep(instance("p3"))
        records.forget("default", "payment", "p3")
        await records.flush()
    async with opened(url) as (database, _):
        assert set(await InstanceRecords(database).load()) == {
            instance("p1", state=State.DRAINING),
            instance("p2", labels={"disk": "ssd"}, zone="a", incarnation=3),
        }


async def test_records_that_cannot_be_written_stay_to_be(url):
    """A failed write loses nothing, and what changed meanwhile wins."""
    async with opened(url) as (database, _):
        records = InstanceRecords(database)
        records.keep(instance("p1"))

        def fail(connection):
            raise sqlite3.OperationalError("disk I/O error")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(records_module, "_write", lambda connection, batch: fail(connection))
            with pytest.raises(ControlError, match="disk I/O error"):
                await records.flush()
        records.keep(instance("p1", weight=5))
        await records.flush()
        assert await records.load() == (instance("p1", weight=5),)


async def test_a_record_that_cannot_be_read_is_left_out(url, caplog):
    """One bad row costs one instance its head start, not the service its start."""
    async with opened(url) as (database, _):
        records = InstanceRecords(database)
        records.keep(instance("p1"))
        await records.flush()
        bad = [("p2", b"\xff\xff"), ("p3", "text"), ("p4", b"")]
        await database.run(
            lambda connection: connection.executemany(
                "INSERT INTO instances VALUES ('default', 'payment', ?, ?)", bad
            )
        )
        assert await records.load() == (instance("p1"),)
    assert "cannot be read" in caplog.text
