"""Files of last known good: what they hold, whom they are believed, where they lie."""

import logging
import os
import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrpc.last_known import LastKnown, Remembered, private_file
from meshrpc.last_known.place import file_name, folder_of_control, folder_of_registry
from meshrpc.last_known.seal import FORMAT, UnusableError, seal, unseal
from meshrpc.registry.instance import Instance
from meshrpc.v1 import control_pb2, policy_pb2

INSTANCE = Instance(
    id="payment-1", service="payment", address="10.0.0.1:50051", version="2", labels={"tier": "a"}
)
BODY = control_pb2.InstanceSet(
    service="payment", instances=[INSTANCE.to_wire()]
).SerializeToString()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "last-known"


@pytest.fixture
def file(folder):
    """The file of payment's instances, as it should be."""
    path = folder / "payment.instances"
    private_file.replace(path, seal("instances", BODY, 1000.0))
    return path


def passed_over(caplog, folder):
    """Return why the file is not read; it is said once, however often somebody looks."""
    last_known = LastKnown(folder)
    caplog.clear()
    assert last_known.instances("payment") is None
    assert last_known.instances("payment") is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    return record.getMessage()


# What a file looks like


@given(st.binary(max_size=200), st.floats(0, 1e11))
def test_what_was_sealed_is_read_back(body, saved_at):
    """Any bytes, lines included, and the time to the millisecond."""
    read, at = unseal("policy", seal("policy", body, saved_at))
    assert read == body
    assert at == pytest.approx(saved_at, abs=0.0006)


def test_a_flipped_bit_never_gives_a_wrong_record():
    """A thousand of them, wherever they fall: each time it is said to be damaged, in some way."""
    rng = random.Random(6)
    whole = seal("instances", BODY, 1_700_000_000.123)
    for _ in range(1000):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        with pytest.raises(UnusableError):
            unseal("instances", bytes(damaged))


def test_a_file_cut_off_anywhere_is_not_read():
    """Nor is one that something was appended to."""
    whole = seal("instances", BODY, 1.0)
    for length in range(len(whole)):
        with pytest.raises(UnusableError):
            unseal("instances", whole[:length])
    with pytest.raises(UnusableError):
        unseal("instances", whole + b"\n")


def test_a_file_is_not_taken_for_one_of_another_kind():
    """A policy is no set of instances, though protobuf may read it as one."""
    with pytest.raises(UnusableError, match="something else than instances"):
        unseal("instances", seal("policy", BODY, 1.0))


# Whom it is believed


def test_a_good_file_is_read(folder, file):
    """With its age by wall time, which may have been set back since."""
    assert file.exists()
    found = LastKnown(folder, wall=lambda: 1240.0).instances("payment")
    assert found == Remembered((INSTANCE,), 240.0)
    assert LastKnown(folder, wall=lambda: 7.0).instances("payment").age == 0.0


def test_ages_are_for_people():
    """In the largest unit of which there are two."""
    ages = [Remembered(None, age).ago for age in (0.2, 100, 240, 7300, 3 * 86400)]
    assert ages == ["0 s ago", "100 s ago", "4 min ago", "2 h ago", "3 d ago"]


def test_only_the_users_own_files_are_in_the_folder(file):
    """Nobody else reads or writes them, whatever the umask says."""
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", range(20))
def test_a_damaged_file_is_passed_over(folder, file, caplog, damage):
    """Wherever a byte is another."""
    whole = bytearray(file.read_bytes())
    whole[damage * len(whole) // 20] ^= 0x10
    file.write_bytes(whole)
    assert f"{file} is passed over: it" in passed_over(caplog, folder)


def test_a_file_of_another_format_is_passed_over(folder, file, caplog):
    """It may be that of a newer release, so it is not called damaged."""
    newer = f"meshrpc-last-known {FORMAT + 1} ".encode()
    file.write_bytes(file.read_bytes().replace(f"meshrpc-last-known {FORMAT} ".encode(), newer))
    assert f"its format is {FORMAT + 1}" in passed_over(caplog, folder)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_passed_over(folder, file, caplog, mode):
    """Its checksum could be theirs too."""
    file.chmod(mode)
    assert "others may write to it" in passed_over(caplog, folder)


def test_a_folder_that_others_may_write_to_is_passed_over(folder, file, caplog):
    """They could put another file in the place of this one."""
    assert file.exists()
    folder.chmod(0o777)
    assert "others may write to its folder" in passed_over(caplog, folder)
    with pytest.raises(UnusableError, match="others may write to the folder"):
        private_file.replace(file, b"")


def test_another_users_file_is_passed_over(folder, file, caplog, monkeypatch):
    """Whatever it says."""
    assert file.exists()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert "belongs to another user" in passed_over(caplog, folder)


def test_a_symbolic_link_is_passed_over(folder, file, caplog):
    """Even to a good file."""
    other = file.rename(folder / "other")
    file.symlink_to(other)
    assert "it is a symbolic link" in passed_over(caplog, folder)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_passed_over(folder, file, caplog, make):
    """Without waiting for somebody to write into a pipe."""
    file.unlink()
    make(file)
    assert "it is of another kind" in passed_over(caplog, folder)


def test_a_file_under_another_services_name_is_passed_over(folder, file, caplog):
    """Somebody copied it."""
    file.rename(folder / "order.instances")
    assert LastKnown(folder).instances("order") is None
    assert "it is another service's" in caplog.text
    policy = policy_pb2.PolicyDocument(service="payment", document="{}").SerializeToString()
    private_file.replace(folder / "order.policy", seal("policy", policy, 1.0))
    assert LastKnown(folder).policy("order") is None
    assert str(folder / "order.policy") in caplog.text


@pytest.mark.parametrize("kind", ["instances", "policy"])
def test_a_sealed_file_with_other_content_is_passed_over(folder, caplog, kind):
    """The checksum is right, and what it vouches for is nothing that is known."""
    private_file.replace(folder / f"payment.{kind}", seal(kind, b"\xff\xff\xff", 1.0))
    last_known = LastKnown(folder)
    assert last_known.instances("payment") is None
    assert last_known.policy("payment") is None
    assert "cannot be decoded" in caplog.text


def test_nothing_kept_is_nothing_known(folder, tmp_path, caplog):
    """Without a word: neither a missing folder nor a file in its place is worth one."""
    assert LastKnown(folder).instances("payment") is None
    (tmp_path / "file").touch()
    assert LastKnown(tmp_path / "file" / "below").policy("payment") is None
    assert not caplog.records


# How it is written


def test_readers_and_many_writers_never_meet_in_half_a_file(folder):
    """Whoever reads finds one of the contents whole; nothing is left beside the file."""
    path = folder / "payment.instances"
    contents = [bytes([65 + n]) * (4096 * (n + 1)) for n in range(4)]
    torn = []

    def write(content):
        for number in range(15):
            private_file.replace(path, seal("instances", content, float(number)))

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        data = private_file.read(path)
        if data is not None and unseal("instances", data)[0] not in contents:
            torn.append(data)
    for writer in writers:
        writer.join()
    assert not torn
    assert [*folder.iterdir()] == [path]


def test_a_write_that_fails_leaves_what_was_there(file, monkeypatch):
    """And nothing beside it."""
    before = file.read_bytes()

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        private_file.replace(file, b"new")
    assert file.read_bytes() == before
    assert [*file.parent.iterdir()] == [file]


def test_what_a_killed_writer_left_is_removed_in_time(file):
    """Not at once: it may be being written."""
    old, new = file.parent / ".payment.policy.x.tmp", file.parent / ".payment.policy.y.tmp"
    for left in (old, new):
        left.touch()
    os.utime(old, (1.0, 1.0))
    private_file.remove_left_over(file.parent)
    assert {*file.parent.iterdir()} == {new, file}


def test_what_is_not_there_can_be_removed(folder, file):
    """Removing is about the end, not about the way."""
    private_file.remove(file)
    private_file.remove(file)
    private_file.remove(folder / "no" / "such")
    assert not file.exists()


# Where it lies


def names(*strange):
    return [file_name(each, "policy") for each in strange]


def test_ordinary_names_are_readable():
    """`*` is the mesh's."""
    assert names("payment", "a.b_c-1", "*") == [
        "payment.policy",
        "a.b_c-1.policy",
        "mesh-wide.policy",
    ]


@given(st.text(max_size=200), st.text(max_size=200))
def test_no_name_leads_out_of_the_folder_or_to_anothers_file(one, other):
    """Also where capitals are the same as small letters."""
    first, second = names(one, other)
    assert "/" not in first
    assert not first.startswith(".")
    assert len(first) < 150
    assert first.isascii()
    assert (first.lower() == second.lower()) == (one == other)


@pytest.mark.parametrize("strange", ["..", ".", "", "Payment", "a/b", "mesh-wide", "x" * 128])
def test_strange_names_get_a_checksum(strange):
    """They cannot be told apart by what is readable of them."""
    (name,) = names(strange)
    assert len(name.removesuffix(".policy").rpartition("-")[2]) == 12
    assert name != names("*")[0]


def test_namespaces_and_registries_have_folders_of_their_own(tmp_path):
    """Also when the namespace is called `..`; the order of control services is all one."""
    control = ("10.0.0.1:7700", "10.0.0.2:7700")
    folders = {
        folder_of_registry(tmp_path, namespace, url, control)
        for namespace in ("default", "staging", "..")
        for url in ("mesh:", "consul://a:8500", "consul://a:8500/?dc=west", "consul://b:8500")
    }
    assert len(folders) == 12
    assert all(folder.parent.parent == tmp_path / "last-known" for folder in folders)
    of_mesh = folder_of_registry(tmp_path, "default", " mesh: ", control)
    assert of_mesh == folder_of_control(tmp_path, "default", control[::-1])


def test_a_registrys_token_is_not_in_its_folders_name(tmp_path):
    """Nor does another token make another folder."""
    plain, *secret = (
        folder_of_registry(tmp_path, "default", f"consul://{url}", ())
        for url in (
            "a:8500/?dc=west",
            "a:8500/?token=s3cret&dc=west",
            "a:8500/?dc=west&Token=other",
            "me:s3cret@a:8500/?dc=west",
        )
    )
    assert set(secret) == {plain}
    assert plain.name.startswith("consul_a_8500")


@pytest.mark.parametrize(
    "url",
    ["memory:", "static:payment=10.0.0.1:1", "file:/etc/mesh.yaml", object(), "consul://[::1"],
)
def test_registries_at_hand_are_not_kept(tmp_path, url):
    """Nor is somebody's own, which has no name, nor what is no URL."""
    assert folder_of_registry(tmp_path, "default", url, ("10.0.0.1:7700",)) is None


def test_without_control_there_is_nothing_of_it_to_keep(tmp_path):
    """Its registry goes with it."""
    assert folder_of_control(tmp_path, "default", ()) is None
    assert folder_of_registry(tmp_path, "default", "mesh:", ()) is None
