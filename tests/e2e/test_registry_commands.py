"""Claims about the commands that change and check a registry, against real ones.

One control service and the tests' Consul serve all of them; each test has a namespace of its own.
Most commands run in this process, which is quick; those that ask a person, or are asked by a
pipe, are real processes.
"""

import contextlib
import http.client
import json
import os
import pty
import queue
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass

import click.testing
import grpc
import pytest
import yaml

from meshrpc.cli import main
from meshrpc.v1 import control_pb2, control_pb2_grpc, registry_pb2, registry_pb2_grpc

pytestmark = pytest.mark.process

PATIENCE = 30.0
"""Seconds until a test gives up on something that should happen."""
MESHRPC = (sys.executable, "-m", "meshrpc")
NOBODY = "127.0.0.1:1"
"""An address where nothing listens."""


def environment(**settings):
    """The environment without any setting of meshrpc but `settings`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MESHRPC_")}
    return kept | {"COLUMNS": "200"} | {f"MESHRPC_{n.upper()}": v for n, v in settings.items()}


@pytest.fixture(scope="module")
def control():
    """The address of a control service."""
    listen = ("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--store", "sqlite::memory:")
    process = subprocess.Popen(
        (*MESHRPC, "control", *listen), env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        ready = re.match(r"control ready: grpc (\S+),", process.stdout.readline())
        assert ready
        yield ready[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str

    def json(self):
        assert self.code == 0, self
        return json.loads(self.out)

    def said(self):
        """Return the one line on stdout of a command that succeeded."""
        assert self.code == 0, self
        assert self.out.count("\n") == 1, self
        return self.out.rstrip("\n")

    def error(self):
        """Return the one line on stderr of a command that failed."""
        assert (self.code, self.out) == (1, ""), self
        line = self.err.rstrip("\n")
        assert line.startswith("error: "), self
        assert "\n" not in line, self
        return line.removeprefix("error: ")


class Place:
    """A namespace of a registry, and the commands that work on it."""

    def __init__(self, registry, control="none"):
        self.namespace = f"n{uuid.uuid4().hex[:8]}"
        self.settings = {"registry": registry, "control": control, "namespace": self.namespace}
        self.control = control

    def run(self, *arguments):
        """Run `meshrpc registry`, in this process."""
        unset = {name: None for name in os.environ if name.startswith("MESHRPC_")}
        given = {f"MESHRPC_{name.upper()}": value for name, value in self.settings.items()}
        runner = click.testing.CliRunner(env=unset | given | {"COLUMNS": "200"})
        result = runner.invoke(main, ["registry", *arguments], catch_exceptions=False)
        return Result(result.exit_code, result.stdout, result.stderr)

    def start(self, *arguments, **streams):
        """Start `meshrpc registry` as a process of its own."""
        return subprocess.Popen(
            (*MESHRPC, "registry", *arguments), env=environment(**self.settings), **streams
        )

    def listed(self, service):
        return self.run("instances", service, "-o", "json").json()

    def register_process(self, id_, service="payment", address=NOBODY, load=0.0, weight=1):
        """Register as a process does: with a lease."""
        instance = registry_pb2.Instance(
            id=id_, service=service, namespace=self.namespace, address=address, weight=weight
        )
        if load:
            instance.load.utilization = load
        with grpc.insecure_channel(self.control) as channel:
            registry_pb2_grpc.RegistryStub(channel).Register(
                registry_pb2.RegisterRequest(instance=instance, lease_seconds=PATIENCE),
                wait_for_ready=True,
                timeout=PATIENCE,
            )


@pytest.fixture
def mesh(control):
    """Control's own registry."""
    return Place("mesh:", control)


@pytest.fixture(params=["mesh", pytest.param("consul", marks=pytest.mark.consul)])
def place(request):
    """Each registry that can be written to."""
    if request.param == "mesh":
        return request.getfixturevalue("mesh")
    return Place(request.getfixturevalue("consul_url"))


def service_of(place):
    """A name of its own: Consul's services are in no namespace."""
    return f"legacy-{place.namespace}"


# Records made by hand.


def test_a_record_made_by_hand_lives_until_it_is_taken_away(place, control):
    """Registered, listed as permanent, marked and unmarked, replaced, taken away: a line each."""
    service = service_of(place)
    id_ = f"{service}-{control.replace(':', '-')}"
    arguments = ("register", service, control, "--version", "v1", "--label", "tier=gold")
    assert place.run(*arguments).said() == f"registered {id_} of {service} at {control}"
    (record,) = place.listed(service)
    assert record["id"] == id_
    assert record["permanent"]
    assert (record["version"], record["labels"]) == ("v1", {"tier": "gold"})
    assert place.run(*arguments).said().startswith(f"unchanged {id_}")

    drained = place.run("drain", id_, "--yes").said()
    assert drained == f"{id_} of {service} is draining: no new calls go to it"
    assert place.listed(service)[0]["state"] == "draining"
    assert place.run("drain", id_).said().endswith("is draining already")
    replaced = place.run(*arguments, "--weight", "3", "-o", "json").json()
    assert (replaced["weight"], replaced["state"]) == (3, "draining")
    (record,) = place.listed(service)
    assert (record["weight"], record["state"]) == (3, "draining")

    assert place.run("undrain", id_, "--yes").said().endswith("takes calls again")
    assert place.listed(service)[0]["state"] == "active"
    assert place.run("undrain", id_).said().endswith("is not draining: it takes calls")
    gone = place.run("deregister", id_, "--yes")
    assert (gone.said(), gone.err) == (f"{id_} of {service} is deregistered", "")
    assert "no service named" in place.run("instances", service).error()
    assert f"no instance '{id_}'" in place.run("deregister", id_, "--yes").error()


def test_the_record_of_a_process_is_not_replaced(mesh):
    """It would take it back: the two would fight."""
    mesh.register_process("payment-1")
    said = mesh.run("register", "payment", "127.0.0.1:2", "--id", "payment-1").error()
    assert "a process that registered itself" in said
    assert "another --id" in said
    assert mesh.listed("payment")[0]["address"] == NOBODY


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a b", NOBODY), "SERVICE 'a b': a name has letters"),
        (("legacy", "127.0.0.1"), "HOST:PORT '127.0.0.1': an address is host:port"),
        (("legacy", "127.0.0.1:0"), "HOST:PORT '127.0.0.1:0': the port is 1 to 65535"),
        (("legacy", NOBODY, "--id", ""), "--id '': a name has letters"),
        (("legacy", NOBODY, "--version", "v 1"), "version='v 1': a name has letters"),
        (("legacy", NOBODY, "--weight", "0"), "weight='0': a weight is 1 to 10000"),
        (("legacy", NOBODY, "--label", "zone=a"), "'zone' is a setting of its own"),
    ],
)
def test_what_cannot_be_registered_is_one_clear_line(arguments, message):
    """Before any registry is asked."""
    assert message in Place("mesh:", NOBODY).run("register", *arguments).error()


@pytest.mark.parametrize("labels", [("tier",), ("=gold",), ("a=1", "a=2")], ids=" ".join)
def test_labels_that_cannot_be_parsed_exit_with_2(labels):
    """As other arguments that cannot be parsed do."""
    given = [part for label in labels for part in ("--label", label)]
    result = Place("mesh:", NOBODY).run("register", "legacy", NOBODY, *given)
    assert result.code == 2
    assert f"{labels[-1]!r}: " in result.err


# Finding the one that is meant.


def test_an_id_of_several_services_has_to_be_told_apart(mesh):
    """The services are named, and --service says which."""
    for service in ("order", "payment"):
        mesh.register_process("one", service)
    said = mesh.run("drain", "one", "--yes").error()
    assert said == "'one' is an instance of order, payment: say which with --service NAME"
    assert mesh.run("drain", "one", "--yes", "--service", "order").code == 0
    assert mesh.listed("order")[0]["state"] == "draining"
    assert mesh.listed("payment")[0]["state"] == "active"
    assert "no service named 'paymnt'" in mesh.run("drain", "one", "--service", "paymnt").error()


def test_an_unknown_id_is_answered_with_what_may_be_meant(mesh):
    """All ids where there are few, else those that are alike."""
    mesh.register_process("payment-1")
    said = mesh.run("undrain", "payment-2").error()
    assert said == "no instance 'payment-2' in registry mesh: (known: payment-1)"
    for number in range(10, 22):
        mesh.register_process(f"payment-{number}")
    said = mesh.run("undrain", "paymnt-21").error()
    assert "(did you mean payment-21" in said
    assert mesh.run("undrain", "x").error().endswith("(it has 13 others)")


@pytest.mark.parametrize(
    "command",
    [
        ("register", "payment", "127.0.0.1:5001"),
        ("deregister", "127.0.0.1:5001"),
        ("drain", "127.0.0.1:5001"),
        ("undrain", "127.0.0.1:5001"),
    ],
    ids=lambda command: command[0],
)
def test_a_read_only_registry_says_so_at_once(command):
    """Nobody is asked to confirm what cannot be."""
    said = Place("static:payment=127.0.0.1:5001").run(*command).error()
    assert said.startswith(f"cannot {command[0]} ")
    assert said.endswith("a static: registry is a fixed list and registers nobody")
    assert "each process's own" in Place("memory:").run(*command).error()


# Being sure.


def test_without_a_terminal_it_takes_yes(mesh):
    """What cannot be asked is not guessed, and nothing changes."""
    mesh.register_process("payment-1")
    for command in ("drain", "deregister"):
        result = mesh.run(command, "payment-1")
        assert (result.code, result.out) == (1, "")
        assert result.err.splitlines()[-1].endswith("this is no terminal: give --yes")
    assert mesh.listed("payment")[0]["state"] == "active"


@contextlib.contextmanager
def at_a_terminal(place, *arguments):
    """A command at a terminal of its own; yields it and the terminal's other end."""
    ours, theirs = pty.openpty()
    # The first process of a session that opens a terminal has Ctrl-C from there.
    line = 'terminal=$1; shift; exec "$@" <>"$terminal" >&0 2>&0'
    process = subprocess.Popen(
        ("sh", "-c", line, "sh", os.ttyname(theirs), *MESHRPC, "registry", *arguments),
        env=environment(**place.settings),
        start_new_session=True,
    )
    try:
        yield process, ours
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(theirs)
        os.close(ours)


def read_until(terminal, words):
    """Return what the terminal has shown, once `words` are among it."""
    read = b""
    while words not in read:
        assert select.select([terminal], [], [], PATIENCE)[0], read
        read += os.read(terminal, 4096)
    return read.decode()


@pytest.mark.parametrize(
    ("typed", "code", "words", "state"),
    [
        (b"y\n", 0, "is draining: no new calls go to it", "draining"),
        (b"\n", 1, "error: not confirmed: payment-1 stays as it was", "active"),
        (b"\x04", 1, "error: not confirmed: payment-1 stays as it was", "active"),
        (b"\x03", 130, "", "active"),
    ],
    ids=["yes", "enter", "end of input", "Ctrl-C"],
)
def test_a_person_is_shown_the_record_and_asked(mesh, typed, code, words, state):
    """Only a yes changes anything."""
    mesh.register_process("payment-1")
    with at_a_terminal(mesh, "drain", "payment-1") as (process, terminal):
        asked = read_until(terminal, b"[y/N] ")
        assert f"address    {NOBODY}" in asked
        os.write(terminal, typed)
        assert process.wait(PATIENCE) == code
        os.write(terminal, b"\n-over-\n")  # which it shows, as terminals do, after all that came
        said = read_until(terminal, b"-over-")
    assert words in said
    assert "Traceback" not in said
    assert mesh.listed("payment")[0]["state"] == state


@pytest.mark.consul
def test_a_record_that_nobody_sees_is_found_and_taken_away(consul_server):
    """One that another program left in Consul: its check fails, so callers do not list it."""
    place = Place(consul_server.url)
    place.settings["namespace"] = "default"  # where Consul's others are
    service = service_of(place)
    check = {"TTL": "10s", "Status": "critical"}
    put(consul_server, {"Name": service, "ID": f"{service}-1", "Port": 5001, "Check": check})
    found = place.run("check", service, "-o", "json")
    assert (found.code, [each["id"] for each in json.loads(found.out)]) == (1, [f"{service}-1"])
    gone = place.run("deregister", f"{service}-1", "--service", service, "--yes")
    assert gone.said() == f"{service}-1 of {service} is deregistered"
    assert "no service named" in place.run("check", service).error()


def put(server, body):
    """Register a service with Consul's own interface."""
    host, _, port = server.address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
    connection.request("PUT", "/v1/agent/service/register", json.dumps(body))
    assert connection.getresponse().status == 200
    connection.close()


def test_who_deregisters_a_process_is_told_that_it_comes_back(mesh):
    """And what keeps calls away; the record goes all the same."""
    mesh.register_process("payment-1")
    result = mesh.run("deregister", "payment-1", "--yes")
    assert result.said() == "payment-1 of payment is deregistered"
    assert "will register again by itself within 5 s" in result.err
    assert "meshrpc registry drain payment-1" in result.err


# Watching.


@contextlib.contextmanager
def watching(place, *arguments):
    """A `meshrpc registry watch`; yields a function that returns its next line."""
    process = place.start("watch", *arguments, stdout=subprocess.PIPE, text=True)
    lines = queue.Queue()

    def read():
        for line in process.stdout:
            lines.put(line)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield lambda: lines.get(timeout=PATIENCE)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()
    assert lines.empty()


def test_a_deregistered_instance_is_seen_leaving(place, control):
    """The mark comes before the end, also where nobody says that it was seen."""
    service = service_of(place)
    place.run("register", service, control, "--id", "one").said()
    with watching(place, service, "-o", "json") as line:
        assert json.loads(line())["change"] == "added"
        place.run("deregister", "one", "--yes").said()
        seen = [json.loads(line())]
        while seen[-1]["change"] != "removed":
            seen.append(json.loads(line()))
    changes = [each["change"] for each in seen if each["change"] != "changed"]
    assert changes == (["removed"] if place.control != "none" else ["draining", "removed"])


def test_watch_says_what_changed_and_leaves_load_out(mesh):
    """A line tells of the weight, before and after; a load that moved is no line."""
    mesh.register_process("payment-1", load=0.1)
    with watching(mesh, "payment") as line:
        assert line().split()[:3] == ["added", "payment", "payment-1"]
        mesh.register_process("payment-1", load=0.7)
        mesh.register_process("payment-1", load=0.7, weight=3)
        assert line().endswith("active  weight 1 -> 3\n")
        mesh.run("drain", "payment-1", "--yes").said()
        assert line().split()[0] == "draining"
        mesh.run("undrain", "payment-1", "--yes").said()
        assert line().endswith("active  state draining -> active\n")


# Checking.


@contextlib.contextmanager
def connected_process(place, library):
    """A process of another release, connected to control."""
    hello = control_pb2.Hello(
        namespace=place.namespace, service="payment", instance="payment-1", library=library
    )
    is_over = threading.Event()

    def requests():
        yield control_pb2.SubscribeRequest(hello=hello)
        yield control_pb2.SubscribeRequest(interest=control_pb2.Interest(policies=["payment"]))
        is_over.wait(PATIENCE)

    with grpc.insecure_channel(place.control) as channel:
        stub = control_pb2_grpc.ControlStub(channel)
        stream = stub.Subscribe(requests(), wait_for_ready=True)
        give_up = time.monotonic() + PATIENCE
        request = control_pb2.StatusRequest(namespace=place.namespace)
        while not stub.Status(request, timeout=PATIENCE).processes:
            assert time.monotonic() < give_up
            time.sleep(0.01)
        try:
            yield
        finally:
            is_over.set()
            stream.cancel()


def test_check_finds_what_is_wrong(mesh, control):
    """An address of two services, one where nobody answers, one that is frozen, another release:
    each is named with its instance and what was found, and the exit code is 1."""
    mesh.register_process("order-1", "order", control)
    mesh.register_process("payment-1", "payment", control)
    mesh.register_process("payment-2", "payment", NOBODY)
    with socket.create_server(("127.0.0.1", 0)) as frozen, connected_process(mesh, "99.1.0"):
        mesh.register_process("payment-3", "payment", f"127.0.0.1:{frozen.getsockname()[1]}")
        result = mesh.run("check", "-o", "json")
        of_one = mesh.run("check", "order")
    assert (result.code, result.err) == (1, "")
    found = json.loads(result.out)
    assert all(list(each) == ["problem", "service", "id", "detail"] for each in found)
    assert [(each["service"], each["id"], each["problem"]) for each in found] == [
        ("order", "order-1", "duplicate_address"),
        ("payment", "payment-1", "duplicate_address"),
        ("payment", "payment-1", "version_skew"),
        ("payment", "payment-2", "unreachable"),
        ("payment", "payment-3", "unreachable"),
    ]
    details = {(each["id"], each["problem"]): each["detail"] for each in found}
    assert "payment-1 of payment" in details["order-1", "duplicate_address"]
    assert "runs meshrpc 99.1.0" in details["payment-1", "version_skew"]
    assert "connection refused" in details["payment-2", "unreachable"]
    assert "it may be frozen" in details["payment-3", "unreachable"]
    heading, row = of_one.out.splitlines()
    assert heading.split() == ["PROBLEM", "SERVICE", "ID", "DETAIL"]
    assert row.split()[:3] == ["duplicate_address", "order", "order-1"]
    assert (of_one.code, of_one.err) == (1, "1 instance of 1 service: 1 problem\n")


def test_check_of_what_is_well_finds_nothing(place, control):
    """How much was looked at is said, and the exit code is 0; a list for programs is empty."""
    service = service_of(place)
    place.run("register", service, control).said()
    give_up = time.monotonic() + PATIENCE  # until the registry has looked for itself
    while (result := place.run("check", service)).code:
        assert time.monotonic() < give_up, result
        time.sleep(0.1)
    assert result.said() == "1 instance of 1 service: nothing found"
    told = place.run("check", service, "-o", "json")
    assert (told.code, json.loads(told.out)) == (0, [])
    assert yaml.safe_load(place.run("check", service, "-o", "yaml").out) == []
    if place.control == "none":
        assert result.err == "note: releases are not compared: there is no control service to ask\n"


def test_a_long_check_shows_people_how_far_it_is():
    """At a terminal, and where it takes a while; into a pipe goes nothing but the answer."""
    addresses = ",".join(f"127.0.0.1:{port}" for port in range(1, 60))
    place = Place(f"static:payment={addresses}")
    with at_a_terminal(place, "check") as (process, terminal):
        assert "asking addresses" in read_until(terminal, b"59 problems")
        assert process.wait(PATIENCE) == 1
    result = place.run("check")
    assert (result.code, result.out.count("\n")) == (1, 60)
    assert "asking" not in result.err


def test_check_of_an_unknown_service_is_an_error(mesh):
    """A name nobody has is no service without problems."""
    assert "no service named 'paymnt'" in mesh.run("check", "paymnt").error()


# Who is asked.


def test_the_registry_can_be_named_before_the_command(mesh):
    """-r, --control and --namespace mean the same there; after the command they win."""
    before = ("-r", "static:a=127.0.0.1:1", "--namespace", "elsewhere")
    (record,) = mesh.run(*before, "instances", "a", "-o", "json").json()
    assert record["namespace"] == "elsewhere"
    after = mesh.run(*before, "services", "-r", "static:b=127.0.0.1:1", "-o", "json").json()
    assert after == [{"service": "b", "instances": 1}]


def test_a_process_that_is_not_connected_has_no_view(mesh):
    """Those that are connected are named; without control nobody can be asked."""
    with connected_process(mesh, "1.0.0"):
        said = mesh.run("instances", "payment", "--as-seen-by", "payment-2").error()
    assert said.startswith("no process 'payment-2' is connected to control ")
    assert said.endswith("(did you mean payment-1? connected: payment-1)")
    alone = Place("static:payment=127.0.0.1:1")
    said = alone.run("instances", "payment", "--as-seen-by", "order-1").error()
    assert said.startswith("this needs a control service, and the settings say there is none")
