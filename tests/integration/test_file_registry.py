"""A file as the registry: read again when it changes, kept when it is bad."""

import asyncio
import os
import random

import pytest

from meshrpc.errors import ReadOnlyRegistry, RegistryError, SettingsError
from meshrpc.mesh import Mesh
from meshrpc.registry.file import LOOK_EVERY, FileRegistry
from meshrpc.registry.finding import Problem
from meshrpc.registry.instance import Instance
from tests.echo import PLAIN, EchoServer


class File:
    """A registry file that the test writes."""

    def __init__(self, path):
        self.path = path
        self.url = f"file://{path}"

    @staticmethod
    def text(**services):
        lines = ["schema: meshrpc.registry/v1", "services:"]
        for name, instances in services.items():
            lines += [f"  {name}: [{', '.join(instances)}]"]
        return "\n".join(lines) + "\n"

    def rename(self, text):
        """Replace the file, as editors, deployments and ConfigMaps do."""
        new = self.path.with_suffix(".new")
        new.write_text(text)
        new.replace(self.path)

    def rewrite(self, text):
        """Write into the file that is there."""
        with self.path.open("r+") as file:
            file.write(text)
            file.truncate()


@pytest.fixture
def file(tmp_path):
    file = File(tmp_path / "services.yaml")
    file.path.write_text(file.text(payment=["10.0.0.1:1", "10.0.0.2:1"]))
    return file


class Watched:
    def __init__(self, registry, service="payment"):
        self.snapshots = []
        self.watch = registry.watch(service, self.snapshots.append)

    @property
    def addresses(self):
        return [[each.address for each in told.instances] for told in self.snapshots]


async def looks(registry):
    """Look as often as a change takes to be read."""
    await registry.look()
    await registry.look()


@pytest.mark.parametrize("how", ["rename", "rewrite"])
async def test_a_changed_file_is_told_and_who_was_taken_out_has_departed(file, how):
    """Both ways of writing it; what left is certain to be gone, until it is back."""
    registry = FileRegistry(file.url)
    watched, other = Watched(registry), Watched(registry, "order")
    await registry.look()
    getattr(file, how)(file.text(payment=["10.0.0.2:1", "10.0.0.3:1"]))
    await looks(registry)
    getattr(file, how)(file.text(payment=["10.0.0.1:1"]))
    await looks(registry)
    assert watched.addresses == [
        ["10.0.0.1:1", "10.0.0.2:1"],
        ["10.0.0.2:1", "10.0.0.3:1"],
        ["10.0.0.1:1"],
    ]
    assert [set(told.departed) for told in watched.snapshots] == [
        set(),
        {"10.0.0.1:1"},
        {"10.0.0.2:1", "10.0.0.3:1"},
    ]
    assert other.addresses == [[]]
    getattr(file, how)(file.text(order=["10.0.0.9:1"]))
    await looks(registry)
    assert other.addresses == [[], ["10.0.0.9:1"]]
    assert watched.addresses[-1] == []


async def test_a_file_of_the_same_size_and_time_is_another_one(file):
    """Its inode and the time of its last change tell."""
    registry = FileRegistry(file.url)
    await registry.look()
    before = file.path.stat()
    for number, how in enumerate((file.rename, file.rewrite), 3):
        how(file.text(payment=[f"10.0.0.{number}:1", "10.0.0.2:1"]))
        os.utime(file.path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert file.path.stat().st_size == before.st_size
        await looks(registry)
        assert f"10.0.0.{number}:1" in [i.address for i in await registry.instances("payment")]


async def test_a_file_that_is_being_written_is_not_read_by_halves(file):
    """A change is read once it stands still from one look to the next, though it reads well."""
    registry = FileRegistry(file.url)
    watched = Watched(registry)
    await registry.look()
    addresses = []
    for number in range(4):
        addresses.append(f"10.0.1.{number}:1")
        file.rewrite(file.text(payment=addresses))
        await registry.look()
        assert len(watched.snapshots) == 1
    await registry.look()
    assert watched.addresses[1:] == [addresses]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "there is no document"),
        (
            File.text(payment=["10.0.0.1:1"]) + "servces: {}\n",
            "servces: {}: unknown field; did you mean services?",
        ),
        (File.text(payment=["10.0.0.1"]), "services.payment[0]: 10.0.0.1: an address is host:port"),
    ],
)
async def test_a_bad_file_changes_nothing_and_is_warned_of_once(file, caplog, text, words):
    """Watches and findings say what is wrong, until it is mended."""
    registry = FileRegistry(file.url)
    watched = Watched(registry)
    await registry.look()
    assert watched.watch.why_silent() is None
    assert await registry.findings("payment") == ()
    file.rename(text)
    for _ in range(5):
        await registry.look()
    assert words in watched.watch.why_silent()
    assert str(file.path) in watched.watch.why_silent()
    (finding,) = await registry.findings("payment")
    assert (finding.problem, finding.service, finding.id) == (Problem.BAD_RECORD, "payment", "")
    assert words in finding.detail
    assert caplog.text.count(words) == 1
    assert "is kept" in caplog.text
    assert len(await registry.instances("payment")) == 2
    file.rename(text + "\n# as bad as before\n")
    await looks(registry)
    assert caplog.text.count(words) == 2
    file.rename(file.text(payment=["10.0.0.7:1"]))
    await looks(registry)
    assert watched.watch.why_silent() is None
    assert watched.addresses == [["10.0.0.1:1", "10.0.0.2:1"], ["10.0.0.7:1"]]


async def test_a_file_that_goes_away_changes_nothing(file, caplog):
    """It is waited for; one that is the same again is no change."""
    registry = FileRegistry(file.url)
    watched = Watched(registry)
    await registry.look()
    text = file.path.read_text()
    file.path.unlink()
    for _ in range(3):
        await looks(registry)
    assert "No such file" in watched.watch.why_silent()
    assert caplog.text.count("No such file") == 1
    assert len(await registry.instances("payment")) == 2
    file.path.write_text(text)
    await looks(registry)
    assert watched.watch.why_silent() is None
    assert len(watched.snapshots) == 1


async def test_a_missing_file_is_an_error_for_who_asks_and_waited_for_by_who_watches(tmp_path):
    """It is read as soon as it is there."""
    file = File(tmp_path / "services.yaml")
    registry = FileRegistry(file.url)
    watched = Watched(registry)
    for ask in (registry.services, lambda: registry.instances("payment")):
        with pytest.raises(RegistryError, match=r"services\.yaml: No such file"):
            await ask()
    assert watched.snapshots == []
    assert "No such file" in watched.watch.why_silent()
    file.path.write_text(file.text(payment=["10.0.0.1:1"]))
    await registry.look()
    assert watched.addresses == [["10.0.0.1:1"]]


async def test_a_file_that_no_parser_survives_is_a_bad_one(file, monkeypatch):
    """Looking goes on, and the next good file is read."""
    registry = FileRegistry(file.url)
    watched = Watched(registry)

    def fail(content, namespace):
        raise RecursionError("too deep")

    with monkeypatch.context() as patched:
        patched.setattr("meshrpc.registry.file_look.read_services", fail)
        await looks(registry)
        assert "cannot be read: RecursionError: too deep" in watched.watch.why_silent()
    file.rename(file.text(payment=["10.0.0.3:1"]))
    await looks(registry)
    assert watched.addresses == [["10.0.0.3:1"]]


@pytest.mark.parametrize("kind", ["folder", "pipe", "binary"])
async def test_what_is_no_text_file_is_said_so(tmp_path, kind):
    """A pipe is not waited for."""
    path = tmp_path / "x"
    {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "binary": lambda: path.write_bytes(b"\xff\xfe\x00"),
    }[kind]()
    async with asyncio.timeout(5):
        with pytest.raises(RegistryError, match=r"no regular file|Is a directory|not UTF-8"):
            await FileRegistry(f"file:{path}").services()


async def test_it_is_looked_at_every_second_while_it_is_open(file, virtual_clock):
    """At once, then by the clock; leaving it ends that."""
    looked_at = []

    async def look():
        looked_at.append(virtual_clock.now() - started)

    tasks, started = asyncio.all_tasks(), virtual_clock.now()
    registry = FileRegistry(file.url, clock=virtual_clock)
    registry.look = look
    for _ in range(2):
        looked_at.clear()
        started = virtual_clock.now()
        async with registry:
            await virtual_clock.advance(3 * LOOK_EVERY)
            assert looked_at == [number * LOOK_EVERY for number in range(4)]
        assert asyncio.all_tasks() == tasks
        await virtual_clock.advance(3 * LOOK_EVERY)
        assert len(looked_at) == 4


async def test_a_watch_that_is_closed_or_fails_harms_nobody(file, caplog):
    """The others are told."""
    registry = FileRegistry(file.url)

    def fail(snapshot):
        raise ValueError("no")

    registry.watch("payment", fail)
    closed, kept = Watched(registry), Watched(registry)
    closed.watch.close()
    closed.watch.close()
    await registry.look()
    assert (len(closed.snapshots), len(kept.snapshots)) == (0, 1)
    assert "a watch of 'payment' failed" in caplog.text
    assert len(Watched(registry).snapshots) == 1


async def test_it_lists_services_with_instances_and_registers_nobody(file):
    """A draining instance is listed as one; who is not serving is a finding."""
    file.path.write_text(
        "schema: meshrpc.registry/v1\n"
        "services:\n"
        "  payment: [{address: 'h:1', health: not_serving, id: p}]\n"
        "  order: [h:2]\n"
        "  nobody: []\n"
    )
    async with FileRegistry(file.url) as registry:
        assert await registry.services() == ("order", "payment")
        assert await registry.instances("nobody") == await registry.instances("other") == ()
        (finding,) = await registry.findings("payment")
        assert (finding.problem, finding.id) == (Problem.NOT_SERVING, "p")
        instance = Instance(id="x", service="payment", address="10.0.0.9:443")
        for change in ("register", "renew", "drain", "undrain", "deregister"):
            with pytest.raises(ReadOnlyRegistry, match="registers nobody"):
                await getattr(registry, change)(instance)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file:", "expected a file"),
        ("file://etc/services.yaml", "a third slash"),
        ("file:///etc/", "expected a file"),
    ],
)
def test_a_url_that_names_no_file_is_refused(url, words):
    """With the way it is written."""
    with pytest.raises(SettingsError, match=words) as raised:
        FileRegistry(url)
    assert "file:///etc/meshrpc/services.yaml" in str(raised.value)


def test_a_file_is_named_absolutely_or_from_the_current_folder(tmp_path, monkeypatch):
    """What URLs must escape is taken back."""
    monkeypatch.chdir(tmp_path)
    for url, path in (
        ("file:///a/b%20c.yaml", "/a/b c.yaml"),
        ("file://localhost/a.yaml", "/a.yaml"),
        ("file:/a.yaml", "/a.yaml"),
        ("file:a.yaml", f"{tmp_path}/a.yaml"),
    ):
        assert str(FileRegistry(url).path) == path


async def test_ten_thousand_instances_are_read_without_stopping_the_loop(file):
    """It happens in a thread."""
    rng = random.Random(1)
    services = {
        f"s{number}": [
            f"10.{rng.randrange(256)}.{number}.{host}:{port}"
            for host, port in ((host, 5000 + host) for host in range(50))
        ]
        for number in range(200)
    }
    file.path.write_text(file.text(**services))
    registry = FileRegistry(file.url)
    turns = 0
    looking = asyncio.ensure_future(registry.look())
    while not looking.done():
        turns += 1
        await asyncio.sleep(0.001)
    assert turns > 10
    assert sum([len(await registry.instances(name)) for name in services]) == 10_000


async def test_a_call_goes_to_what_a_file_lists(tmp_path, monkeypatch):
    """And to who takes its place."""
    monkeypatch.setattr("meshrpc.registry.file.LOOK_EVERY", 0.05)
    file = File(tmp_path / "services.yaml")
    async with EchoServer("one") as one, EchoServer("two") as two:
        file.path.write_text(file.text(echo=[f"127.0.0.1:{one.port}"]))
        async with (
            Mesh("shell", registry=file.url, control="none", state_dir=tmp_path) as mesh,
            mesh.channel("echo") as channel,
        ):
            call = channel.unary_unary(PLAIN)
            assert await call(b"hi", timeout=10) == b"hi@one"
            file.rename(file.text(echo=[f"127.0.0.1:{two.port}"]))
            async with asyncio.timeout(10):
                while await call(b"hi", timeout=10) != b"hi@two":
                    pass
