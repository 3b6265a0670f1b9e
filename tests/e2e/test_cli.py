"""Claims about the inspection commands: each is a real process, asking real processes.

One control service and one shop (one order, two payment workers) serve all tests that only read; what
tests write, they write into namespaces of their own. A server outside the mesh, in the test's
own process, has the call kinds that the shop lacks.
"""

import asyncio
import base64
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2
from grpc_reflection.v1alpha import reflection

from meshrpc.cli.reflection import find_method
from meshrpc.errors import MeshError
from meshrpc.mesh import Mesh
from meshrpc.v1 import control_pb2, control_pb2_grpc, registry_pb2, registry_pb2_grpc

pytestmark = pytest.mark.process

PATIENCE = 30.0
"""Seconds until a test gives up on something that should happen."""
ROOT = Path(__file__).parents[2]
MESHRPC = (sys.executable, "-m", "meshrpc")
CHARGE = "payment.v1.PaymentService/Charge"


# Processes.


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str

    def json(self):
        assert self.code == 0, self
        assert not self.err, self
        return json.loads(self.out)

    def error(self):
        """Return the one line on stderr of a command that failed."""
        assert self.code == 1, self
        assert "Traceback" not in self.err, self
        assert not self.out, self
        line = self.err.rstrip("\n")
        assert line.startswith("error: "), self
        assert "\n" not in line, self
        return line.removeprefix("error: ")


def environment(**settings):
    """The environment without any setting of meshrpc but `settings`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MESHRPC_")}
    # What a command says must not depend on the width of anybody's terminal.
    return kept | {"COLUMNS": "200"} | {f"MESHRPC_{n.upper()}": v for n, v in settings.items()}


async def start(*arguments, control="127.0.0.1:1", **streams):
    """Start `meshrpc`; without `control`, it knows an address where nothing listens."""
    return await asyncio.create_subprocess_exec(
        *MESHRPC,
        *arguments,
        cwd=ROOT,
        env=environment(control=control),
        stdin=streams.get("stdin", subprocess.DEVNULL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


async def meshrpc(*arguments, control="127.0.0.1:1", stdin=None):
    """Run `meshrpc` to its end; `stdin` is bytes for it to read."""
    source = subprocess.DEVNULL if stdin is None else subprocess.PIPE
    process = await start(*arguments, control=control, stdin=source)
    try:
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate(stdin)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Result(process.returncode, out.decode(), err.decode())


async def in_shell(line, *arguments):
    """Run a line of sh with the arguments as `$@`."""
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", line, "sh", *arguments),
        cwd=ROOT,
        env=environment(control="none"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate()
    except TimeoutError:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return Result(process.returncode, out.decode(), err.decode())


def stop(process):
    """Stop a server process as Ctrl-C does, and hold it to ending well."""
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise


@contextlib.contextmanager
def running_control(folder):
    """A `meshrpc control` on free ports; yields its gRPC address."""
    listen = ("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
    with (folder / "control.log").open("wb") as log:
        process = subprocess.Popen(
            [*MESHRPC, "control", *listen, "--store", f"sqlite:{folder / 'control.db'}"],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        line = process.stdout.readline().decode()
        ready = re.match(r"control ready: grpc (\S+), http \S+, store sqlite:", line)
        assert ready, line or (folder / "control.log").read_text()
        yield ready[1]
    finally:
        stop(process)


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    """The address of a control service."""
    with running_control(tmp_path_factory.mktemp("control")) as address:
        yield address


@pytest.fixture(scope="module")
def shop(control, tmp_path_factory):
    """The address of the control service of a running shop: one order and two payment workers."""
    state = tmp_path_factory.mktemp("state")
    processes = []
    try:
        for name, workers in (("payment", "2"), ("order", "1")):
            command = (*MESHRPC, "run", f"services.{name}.app:service", "--workers", workers)
            with (state / f"{name}.log").open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        command,
                        cwd=ROOT,
                        env=environment(control=control, state_dir=str(state)),
                        stdout=subprocess.DEVNULL,
                        stderr=log,
                    )
                )
        with grpc.insecure_channel(control) as channel:
            registry = registry_pb2_grpc.RegistryStub(channel)
            give_up = time.monotonic() + PATIENCE
            while (found := [listed(registry, name) for name in ("payment", "order")]) != [2, 1]:
                logs = "".join(log.read_text() for log in state.glob("*.log"))
                assert all(process.poll() is None for process in processes), logs
                assert time.monotonic() < give_up, f"instances: {found}\n{logs}"
                time.sleep(0.1)
        yield control
    finally:
        for process in processes:
            stop(process)


def listed(registry, service):
    """How many instances of the service serve."""
    request = registry_pb2.ListInstancesRequest(namespace="default", service=service)
    found = registry.ListInstances(request, wait_for_ready=True, timeout=PATIENCE).instances
    return sum(each.health == registry_pb2.Instance.HEALTH_SERVING for each in found)


# A server outside the mesh, with every kind of call, and its proto file made here.


def field(name, number, kind, repeated=False, type_name=None):
    labels = descriptor_pb2.FieldDescriptorProto
    return labels(
        name=name,
        number=number,
        type=getattr(labels, f"TYPE_{kind.upper()}"),
        label=labels.LABEL_REPEATED if repeated else labels.LABEL_OPTIONAL,
        type_name=type_name,
    )


def echo_messages():
    """The message class of a proto file that no generated code of ours knows."""
    file = descriptor_pb2.FileDescriptorProto(
        name="test/cli/echo.proto",
        package="test.cli",
        syntax="proto3",
        dependency=["google/protobuf/timestamp.proto"],
    )
    text = file.message_type.add(name="Text")
    text.field.append(field("text", 1, "string"))
    text.field.append(field("repeat_count", 2, "int64"))
    text.field.append(field("at", 3, "message", type_name=".google.protobuf.Timestamp"))
    text.field.append(field("words", 4, "string", repeated=True))
    service = file.service.add(name="Echo")
    for name in ("Say", "Repeat", "Collect", "Chat", "Refuse", "Hang", "Tell"):
        service.method.add(
            name=name,
            input_type=".test.cli.Text",
            output_type=".test.cli.Text",
            client_streaming=name in ("Collect", "Chat"),
            server_streaming=name in ("Repeat", "Chat"),
        )
    pool = descriptor_pool.DescriptorPool()
    for dependency in (timestamp_pb2.DESCRIPTOR,):
        copy = descriptor_pb2.FileDescriptorProto()
        dependency.CopyToProto(copy)
        pool.Add(copy)
    pool.Add(file)
    return pool, message_factory.GetMessageClass(pool.FindMessageTypeByName("test.cli.Text"))


def echo_handlers(text):
    async def say(request, context):
        return request

    async def repeat(request, context):
        for number in range(request.repeat_count):
            yield text(text=request.text, repeat_count=number)

    async def collect(requests, context):
        return text(words=[request.text async for request in requests])

    async def chat(requests, context):
        async for request in requests:
            yield text(text=request.text.upper())

    async def refuse(request, context):
        trailers = (("retry-after", "7"), ("x-private", "not for people"))
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not\nyou", trailers)

    async def hang(request, context):
        await asyncio.Event().wait()

    async def tell(request, context):
        metadata = dict(context.invocation_metadata())
        return text(words=[metadata.get("x-group", ""), repr(metadata.get("x-raw-bin", b""))])

    kinds = {
        "Say": (grpc.unary_unary_rpc_method_handler, say),
        "Repeat": (grpc.unary_stream_rpc_method_handler, repeat),
        "Collect": (grpc.stream_unary_rpc_method_handler, collect),
        "Chat": (grpc.stream_stream_rpc_method_handler, chat),
        "Refuse": (grpc.unary_unary_rpc_method_handler, refuse),
        "Hang": (grpc.unary_unary_rpc_method_handler, hang),
        "Tell": (grpc.unary_unary_rpc_method_handler, tell),
    }
    handlers = {
        name: kind(handler, text.FromString, text.SerializeToString)
        for name, (kind, handler) in kinds.items()
    }
    return grpc.method_handlers_generic_handler("test.cli.Echo", handlers)


@contextlib.asynccontextmanager
async def running_echo(*, with_reflection=True):
    pool, text = echo_messages()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((echo_handlers(text),))
    if with_reflection:
        names = ("test.cli.Echo", reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server, pool=pool)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@pytest.fixture
async def echo():
    """The address of a server that is in no registry."""
    async with running_echo() as address:
        yield address


async def call(address, method, *arguments, **options):
    """`meshrpc call` of the echo server, which a static registry names."""
    url = f"static:echo={address}"
    return await meshrpc(
        "call", "echo", f"test.cli.Echo/{method}", "-r", url, *arguments, **options
    )


# registry

INSTANCE_KEYS = [
    *("id", "service", "namespace", "address", "version", "zone", "weight", "labels", "pid"),
    *("health", "state", "permanent", "load"),
]


async def test_a_static_registry_needs_no_control_service():
    """Services and instances of a static: registry are listed with nothing else running."""
    url = "static:payment=127.0.0.1:5001,127.0.0.1:5002;order=127.0.0.1:6001"
    services = await meshrpc("registry", "services", "-r", url, "-o", "json")
    assert services.json() == [
        {"service": "order", "instances": 1},
        {"service": "payment", "instances": 2},
    ]
    instances = await meshrpc("registry", "instances", "payment", "-r", url, "-o", "json")
    assert [each["address"] for each in instances.json()] == ["127.0.0.1:5001", "127.0.0.1:5002"]


async def test_instances_are_listed_with_the_keys_of_the_contract(shop):
    """`-o json` has one object per worker process, with exactly the documented keys."""
    found = (await meshrpc("registry", "instances", "payment", "-o", "json", control=shop)).json()
    assert len(found) == 2
    for instance in found:
        assert list(instance) == INSTANCE_KEYS
        assert instance["service"] == "payment"
        assert instance["namespace"] == "default"
        assert instance["version"] == "v1"
        assert instance["weight"] == 1
        assert (instance["health"], instance["state"]) == ("serving", "active")
    assert len({instance["pid"] for instance in found}) == 2


async def test_every_output_form_lists_the_same_instances(shop):
    """The table, JSON and YAML name the same ids; the table has a heading."""
    listing = ("registry", "instances", "payment")
    as_json = (await meshrpc(*listing, "-o", "json", control=shop)).json()
    as_yaml = await meshrpc(*listing, "-o", "yaml", control=shop)
    as_table = await meshrpc(*listing, control=shop)
    assert yaml.safe_load(as_yaml.out) == as_json
    heading, *rows = as_table.out.splitlines()
    assert heading.split()[:3] == ["ID", "SERVICE", "ADDRESS"]
    assert [row.split()[0] for row in rows] == [instance["id"] for instance in as_json]


async def test_services_are_listed_with_how_many_instances_they_have(shop):
    """Every service of the namespace is listed, and none of another one."""
    listing = ("registry", "services", "-o", "json")
    assert (await meshrpc(*listing, control=shop)).json() == [
        {"service": "order", "instances": 1},
        {"service": "payment", "instances": 2},
    ]
    assert (await meshrpc(*listing, "--namespace", "empty", control=shop)).json() == []


async def test_an_unknown_service_is_named_with_those_there_are(shop):
    """A typing mistake is answered with the name that was meant."""
    said = (await meshrpc("registry", "instances", "paymnt", control=shop)).error()
    assert said == (
        "no service named 'paymnt' in registry mesh: (did you mean payment? known: order, payment)"
    )


async def test_a_caller_says_what_it_makes_of_the_instances(shop):
    """The order process, once it has called, lists both payments with its connections to them; of
    a service that it does not call it has no view."""
    order = (await meshrpc("registry", "instances", "order", "-o", "json", control=shop)).json()
    item = {"sku": "mug", "quantity": 1, "unit_price": 100}
    request = {"request_id": "seen", "customer": "c", "items": [item], "currency": "EUR"}
    method = "order.v1.OrderService/CreateOrder"
    created = await meshrpc("call", "order", method, "-d", json.dumps(request), control=shop)
    assert created.code == 0, created
    view = ("registry", "instances", "payment", "--as-seen-by", order[0]["id"])
    seen = (await meshrpc(*view, "-o", "json", control=shop)).json()
    assert len(seen) == 2
    for instance in seen:
        assert list(instance) == [*INSTANCE_KEYS, "connectivity", "pending"]
        assert (instance["state"], instance["pending"]) == ("active", 0)
    assert "ready" in {instance["connectivity"] for instance in seen}
    drained = seen[0]["id"]
    assert (await meshrpc("registry", "drain", drained, "--yes", control=shop)).code == 0
    async with asyncio.timeout(PATIENCE):
        while (await meshrpc(*view, "-o", "json", control=shop)).json()[0]["state"] != "draining":
            pass
    assert (await meshrpc("registry", "undrain", drained, "--yes", control=shop)).code == 0
    other = ("registry", "instances", "order", *view[3:])
    said = (await meshrpc(*other, control=shop)).error()
    assert said.startswith(f"{order[0]['id']} does not call 'order'")


@pytest.mark.parametrize("names", [["echo"], []], ids=["one", "all"])
async def test_watch_prints_each_change_until_it_is_interrupted(control, names):
    """An instance of a service that was unknown at first comes, changes, drains and goes: four
    lines, in JSON one object each; Ctrl-C is a good end."""
    namespace = f"watch-{len(names)}"

    def register(service, weight):
        instance = registry_pb2.Instance(
            id=f"{service}-1",
            service=service,
            namespace=namespace,
            address="127.0.0.1:5001",
            weight=weight,
        )
        request = registry_pb2.RegisterRequest(instance=instance, lease_seconds=PATIENCE)
        return registry.Register(request)

    async with (
        running_watch(*names, "--namespace", namespace, control=control) as process,
        grpc.aio.insecure_channel(control) as channel,
    ):
        registry = registry_pb2_grpc.RegistryStub(channel)
        if names:
            waiting = await process.stderr.readline()
            assert waiting == b"no service named 'echo' yet: waiting for it\n"
        else:
            await register("first", 1)
            assert json.loads(await process.stdout.readline())["service"] == "first"
        this = {"namespace": namespace, "service": "echo", "id": "echo-1"}
        lines = []
        for step in (
            lambda: register("echo", 1),
            lambda: register("echo", 2),
            lambda: registry.Drain(registry_pb2.DrainRequest(**this)),
            lambda: registry.Deregister(registry_pb2.DeregisterRequest(**this)),
        ):
            await step()
            lines.append(json.loads(await process.stdout.readline()))
    assert [line["change"] for line in lines] == ["added", "changed", "draining", "removed"]
    assert [line["weight"] for line in lines] == [1, 2, 2, 2]
    assert [line["state"] for line in lines[:3]] == ["active", "active", "draining"]
    assert [line["changes"] for line in lines] == [
        {},
        {"weight": [1, 2]},
        {"state": ["active", "draining"]},
        {},
    ]
    assert {line["id"] for line in lines} == {"echo-1"}


async def test_watch_prints_a_line_of_text_unless_told_otherwise():
    """The instances there are at first come as added."""
    url = "static:payment=127.0.0.1:5001"
    async with running_watch("-r", url, output="table") as process:
        line = (await process.stdout.readline()).decode()
    assert line.split() == [
        *("added", "payment", "127.0.0.1:5001", "127.0.0.1:5001", "-", "unknown", "active")
    ]


@contextlib.asynccontextmanager
async def running_watch(*arguments, output="json", **options):
    """A `meshrpc registry watch`, ended by Ctrl-C and held to ending well."""
    process = await start("registry", "watch", *arguments, "-o", output, **options)
    try:
        async with asyncio.timeout(PATIENCE):
            yield process
            process.send_signal(signal.SIGINT)
            out, err = await process.communicate()
        assert (process.returncode, out, err) == (0, b"", b"")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


# policy

LIMIT = """
schema: meshrpc.policy/v1
service: payment
timeout: 2s
rate_limits:
  - {name: all, rate: 10/s, burst: 10}
"""
BAD = """
schema: meshrpc.policy/v1
service: payment
timeout: 2 seconds
retries: {attempts: 3}
"""


async def test_valid_files_are_valid_without_a_control_service(tmp_path):
    """`validate` names each document; what is not carried out yet is a warning, no failure."""
    (tmp_path / "payment.yaml").write_text(LIMIT + "telemetry: {}\n")
    (tmp_path / "order.json").write_text('{"schema": "meshrpc.policy/v1", "service": "order"}')
    result = await meshrpc("policy", "validate", "-f", str(tmp_path))
    assert result.code == 0
    assert result.out.splitlines() == [
        f"{tmp_path}/order.json: order: valid",
        f"{tmp_path}/payment.yaml: payment: valid",
    ]
    assert result.err.startswith(f"warning: {tmp_path}/payment.yaml: payment: telemetry: ")


async def test_every_problem_is_listed_with_file_path_value_and_rule(tmp_path):
    """Two mistakes in one file and one in another are three lines, and exit code 1."""
    (tmp_path / "bad.yaml").write_text(BAD)
    (tmp_path / "worse.yaml").write_text("service: [\n")
    result = await meshrpc("policy", "validate", "-f", str(tmp_path))
    assert (result.code, result.out) == (1, "")
    lines = sorted(result.err.splitlines())
    assert len(lines) == 3
    assert lines[0].startswith(f"error: {tmp_path}/bad.yaml: retries: {{attempts: 3}}: unknown ")
    assert lines[0].endswith("did you mean retry?")
    assert lines[1].startswith(f"error: {tmp_path}/bad.yaml: timeout: 2 seconds: expected a dur")
    assert lines[2].startswith(f"error: {tmp_path}/worse.yaml: line ")


async def test_files_that_cannot_be_read_are_named(tmp_path):
    """A missing file, an empty folder, bytes that are no text: one line each."""
    missing = await meshrpc("policy", "validate", "-f", "nowhere.yaml")
    assert missing.error() == "nowhere.yaml: cannot be read: no such file or directory"
    empty = await meshrpc("policy", "validate", "-f", str(tmp_path))
    assert "there are no policy files (*.yaml, *.yml, *.json)" in empty.error()
    (tmp_path / "bytes.yaml").write_bytes(b"service: \xff")
    assert (
        "is not UTF-8 text: byte 9"
        in (await meshrpc("policy", "validate", "-f", str(tmp_path / "bytes.yaml"))).error()
    )


async def test_two_files_for_one_service_are_refused(tmp_path):
    """Which of them would win is a guess, so neither does."""
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(LIMIT)
    said = (await meshrpc("policy", "validate", "-f", str(tmp_path))).error()
    assert said == (
        f"{tmp_path}/b.yaml: service: payment: "
        f"{tmp_path}/a.yaml has a document for this service already"
    )


async def test_a_policy_goes_round_apply_list_get_and_delete(control):
    """What was applied is listed with its revision, comes back as it can be applied again, and
    is gone after delete; applying the same again changes nothing."""
    here = ("--namespace", "policy")

    async def policy(*arguments, stdin=None):
        return await meshrpc("policy", *arguments, *here, control=control, stdin=stdin)

    text = LIMIT.encode()
    dry = (await policy("apply", "-f", "-", "--dry-run", "-o", "json", stdin=text)).json()
    assert dry["changed"] == ["payment"]
    assert (await policy("list", "-o", "json")).json() == []
    applied = (await policy("apply", "-f", "-", "-o", "json", stdin=text)).json()
    assert list(applied) == ["revision", "changed", "warnings"]
    assert applied == {"revision": dry["revision"] + 1, "changed": ["payment"], "warnings": []}
    entry = {"service": "payment", "revision": applied["revision"]}
    assert (await policy("list", "-o", "json")).json() == [entry]
    assert (await policy("list", "-o", "yaml")).out == (
        f"- service: payment\n  revision: {applied['revision']}\n"
    )
    assert (await policy("list")).out.split() == [
        "SERVICE",
        "REVISION",
        "payment",
        str(applied["revision"]),
    ]
    got = await policy("get", "payment")
    assert yaml.safe_load(got.out) == yaml.safe_load(LIMIT)
    assert (await policy("get", "payment", "-o", "json")).json()["timeout"] == "2s"
    again = (await policy("apply", "-f", "-", "-o", "json", stdin=got.out.encode())).json()
    assert again == {"revision": applied["revision"], "changed": [], "warnings": []}
    said = await policy("apply", "-f", "-", stdin=text)
    assert said.out == f"nothing changed (revision {applied['revision']})\n"
    deleted = await policy("delete", "payment")
    assert deleted.out == f"deleted payment (revision {applied['revision'] + 1})\n"
    assert (await policy("list", "-o", "json")).json() == []
    assert (await policy("delete", "payment")).error() == (
        "no policy for service 'payment' (known: none)"
    )


async def test_a_refused_document_changes_nothing(control, tmp_path):
    """With one bad file among good ones, `apply` stores none of them."""
    (tmp_path / "good.yaml").write_text(LIMIT)
    (tmp_path / "bad.yaml").write_text(BAD.replace("payment", "order"))
    here = ("--namespace", "refused")
    result = await meshrpc("policy", "apply", "-f", str(tmp_path), *here, control=control)
    assert (result.code, result.out) == (1, "")
    assert all(line.startswith(f"error: {tmp_path}/bad.yaml: ") for line in result.err.splitlines())
    listed = await meshrpc("policy", "list", *here, "-o", "json", control=control)
    assert listed.json() == []


async def test_the_policy_of_an_unknown_service_is_named_with_those_there_are(control):
    """A typing mistake in `get` is answered with the name that was meant."""
    here = ("--namespace", "unknown")
    await meshrpc("policy", "apply", "-f", "-", *here, control=control, stdin=LIMIT.encode())
    said = (await meshrpc("policy", "get", "paymnt", *here, control=control)).error()
    assert said == "no policy for service 'paymnt' (did you mean payment? known: payment)"


# status

STATUS_KEYS = ["service", "instance", "version", "revision", "state", "reason", "age"]


async def test_status_shows_every_connected_process(shop):
    """One object per worker, with exactly the documented keys; all get to be synced."""
    async with asyncio.timeout(PATIENCE):
        while True:
            found = (await meshrpc("status", "-o", "json", control=shop)).json()
            if len(found) == 3 and all(each["state"] == "synced" for each in found):
                break
    assert [each["service"] for each in found] == ["order", "payment", "payment"]
    for process in found:
        assert list(process) == STATUS_KEYS
        assert isinstance(process["age"], float)
        assert process["version"] == "v1"
        assert process["reason"] == ""
    instances = (
        await meshrpc("registry", "instances", "payment", "-o", "json", control=shop)
    ).json()
    assert {each["id"] for each in instances} < {each["instance"] for each in found}
    as_yaml = await meshrpc("status", "-o", "yaml", control=shop)
    assert [each["instance"] for each in yaml.safe_load(as_yaml.out)] == [
        each["instance"] for each in found
    ]
    heading, *rows, caption = (await meshrpc("status", control=shop)).out.splitlines()
    assert heading.split() == [key.upper() for key in STATUS_KEYS]
    assert [row.split()[1] for row in rows] == [each["instance"] for each in found]
    assert re.fullmatch(r"control is at revision \d+", caption)


async def test_status_tells_who_refused_and_who_has_not_answered(control):
    """A process that refuses a policy is shown with its reason, a silent one as pending."""
    here = "status"
    async with grpc.aio.insecure_channel(control) as channel, asyncio.timeout(PATIENCE):
        subscribe = control_pb2_grpc.ControlStub(channel).Subscribe
        streams = {}
        for name in ("refusing", "silent"):
            hello = control_pb2.Hello(namespace=here, service="echo", instance=name, pid=1)
            interest = control_pb2.Interest(policies=["echo"])
            streams[name] = subscribe()
            await streams[name].write(control_pb2.SubscribeRequest(hello=hello))
            await streams[name].write(control_pb2.SubscribeRequest(interest=interest))
        document = LIMIT.replace("payment", "echo").encode()
        apply = ("policy", "apply", "-f", "-", "--namespace", here, "-o", "json")
        revision = (await meshrpc(*apply, control=control, stdin=document)).json()["revision"]
        pushed = 0
        while pushed < revision:
            push = await streams["refusing"].read()
            pushed = push.revision
            answer = control_pb2.Acknowledgement(nonce=push.nonce)
            for policy in push.policies:
                if policy.document:
                    answer.refused.add(
                        kind=control_pb2.Refusal.KIND_POLICY,
                        name=policy.service,
                        reason="timeout: not today",
                    )
            await streams["refusing"].write(control_pb2.SubscribeRequest(acknowledgement=answer))
        found = {}
        while found.get("refusing", {}).get("state") != "refused":
            answer = await meshrpc("status", "--namespace", here, "-o", "json", control=control)
            found = {each["instance"]: each for each in answer.json()}
        for stream in streams.values():
            stream.cancel()
    assert "timeout: not today" in found["refusing"]["reason"]
    assert found["silent"]["state"] == "pending"
    assert found["silent"]["reason"]


# call


async def test_a_limit_holds_as_long_as_its_policy(shop):
    """After `apply` of one call an hour the second is refused, with when to come back; after
    `delete` calls are answered again."""
    listing = ("call", "order", "order.v1.OrderService/ListOrders")
    limit = "{schema: meshrpc.policy/v1, service: order, rate_limits: [LIMIT]}".replace(
        "LIMIT", "{name: all, key: [method], rate: 1/h, burst: 1}"
    )

    async def taken(change):
        """Wait until every process has taken the change."""
        async with asyncio.timeout(PATIENCE):
            while True:
                found = (await meshrpc("status", "-o", "json", control=shop)).json()
                if all(each["revision"] >= change["revision"] for each in found):
                    return

    here = ("-o", "json")
    applied = await meshrpc("policy", "apply", "-f", "-", *here, control=shop, stdin=limit.encode())
    await taken(applied.json())
    assert (await meshrpc(*listing, control=shop)).code == 0
    said = (await meshrpc(*listing, control=shop)).error()
    assert said.startswith("RESOURCE_EXHAUSTED: ")
    assert re.search(r"retry-after: 3[56]\d\d", said)
    await taken((await meshrpc("policy", "delete", "order", *here, control=shop)).json())
    assert (await meshrpc(*listing, control=shop)).code == 0


async def test_a_call_goes_through_the_mesh(shop):
    """A payment is charged by JSON alone; the answer has the field names of the proto file."""
    charge = {"idempotency_key": "k1", "order_id": "o1", "amount": 1999, "currency": "EUR"}
    paid = await meshrpc("call", "payment", CHARGE, "-d", json.dumps(charge), control=shop)
    answer = paid.json()
    assert answer["order_id"] == "o1"
    assert answer["amount"] == "1999"  # as protobuf writes 64-bit integers in JSON
    assert answer["processed_by"] == "v1"
    assert answer["status"] == "STATUS_CHARGED"


async def test_every_kind_of_call_can_be_made(echo):
    """Unary, server stream, client stream and both, of a server that only reflection describes."""
    at = "2024-05-06T07:08:09Z"
    said = await call(echo, "Say", "-d", json.dumps({"text": "hä", "at": at}))
    assert said.json() == {"text": "hä", "at": at}
    assert (await call(echo, "Say")).json() == {}
    repeated = await call(echo, "Repeat", "-d", '{"text": "a", "repeat_count": 2}')
    assert repeated.out == '{"text": "a"}\n{"text": "a", "repeat_count": "1"}\n'
    collected = await call(echo, "Collect", "-d", '{"text": "a"}', "-d", '[{"text": "b"}, {}]')
    assert collected.json() == {"words": ["a", "b", ""]}
    chat = await call(echo, "Chat", "-d", "-", stdin=b'{"text": "a"}\n{"text": "b"}\n')
    assert chat.out == '{"text": "A"}\n{"text": "B"}\n'


async def test_the_request_comes_from_a_file(echo, tmp_path):
    """`-d @FILE` reads it; a file that is not there is named."""
    (tmp_path / "request.json").write_text('{"text": "from a file"}')
    said = await call(echo, "Say", "-d", f"@{tmp_path}/request.json")
    assert said.json() == {"text": "from a file"}
    said = await call(echo, "Say", "-d", "@nowhere.json")
    assert said.error() == "nowhere.json: cannot be read: no such file or directory"


async def test_metadata_travels_with_the_call(echo):
    """-H adds a key; the value of a -bin key is base64."""
    raw = base64.b64encode(b"\x00\x01").decode()
    told = await call(echo, "Tell", "-H", "X-Group=beta", "-H", f"x-raw-bin={raw}")
    assert told.json() == {"words": ["beta", r"b'\x00\x01'"]}


async def test_a_failed_call_says_code_details_and_when_to_come_back(echo):
    """One line has all three, and no other trailers."""
    said = (await call(echo, "Refuse")).error()
    assert said == "PERMISSION_DENIED: not you (retry-after: 7)"


async def test_a_call_always_has_a_deadline(echo):
    """A handler that hangs ends with DEADLINE_EXCEEDED after --timeout."""
    assert (await call(echo, "Hang", "--timeout", "500ms")).error().startswith("DEADLINE_EXCEEDED")


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("Say", ("-d", "{"), "-d: this is no JSON: "),
        ("Say", ("-d", ""), "-d: this is no JSON: "),
        ("Say", ("-d", '{"text": 1, "text": 2}'), "the key 'text' is there twice"),
        ("Say", ("-d", '{"repeat_count": NaN}'), "NaN is not in JSON"),
        (
            "Say",
            ("-d", '{"texd": 1}'),
            "no field 'texd' (did you mean text? it has: at, repeat_count, text, words)",
        ),
        (
            "Say",
            ("-d", '{"repeat_count": "x"}'),
            "not a test.cli.Text: Failed to parse repeat_count",
        ),
        ("Say", ("-d", "[1]"), "a test.cli.Text is written as a JSON object, not as [1]"),
        ("Say", ("-d", "{}", "-d", "{}"), "Say takes one request, and 2 were given with -d"),
        (
            "Sya",
            (),
            "echo has no method 'test.cli.Echo/Sya' (did you mean test.cli.Echo/Say? it has: ",
        ),
    ],
)
async def test_a_call_that_cannot_be_made_is_one_clear_line(echo, method, arguments, message):
    """Bad JSON, an unknown field, too many requests, an unknown method: cause and remedy."""
    assert message in (await call(echo, method, *arguments)).error()


async def test_a_server_without_reflection_is_told_apart():
    """What such a server lacks is named."""
    async with running_echo(with_reflection=False) as address:
        said = (await call(address, "Say")).error()
    assert said.startswith("echo does not offer server reflection")


async def test_the_missing_reflection_is_told_every_time():
    """A server that ends the question before it is written is not mistaken for a broken one."""
    async with (
        running_echo(with_reflection=False) as address,
        Mesh("shell", control="none", registry=f"static:echo={address}") as mesh,
    ):
        channel = mesh.channel("echo")
        for _ in range(20):
            with pytest.raises(MeshError, match="does not offer server reflection"):
                await find_method(channel, "echo", "test.cli.Echo/Say", within=PATIENCE)


async def test_a_target_outside_the_mesh_can_be_called_by_address(echo):
    """`static:HOST:PORT` needs no registry at all."""
    said = await meshrpc("call", f"static:{echo}", "test.cli.Echo/Say", "-d", '{"text": "a"}')
    assert said.json() == {"text": "a"}


async def test_unknown_names_in_a_call_are_answered_with_those_there_are(shop):
    """An unknown service, a method of another service, a name that is no method."""
    service = await meshrpc("call", "paymnt", CHARGE, control=shop)
    assert "no service named 'paymnt' in registry mesh: (did you mean payment?" in service.error()
    method = await meshrpc("call", "payment", CHARGE + "s", control=shop)
    assert f"payment has no method '{CHARGE}s' (did you mean {CHARGE}? it has: " in method.error()
    bare = await meshrpc("call", "payment", "Charge", control=shop)
    assert "a method is written pkg.Service/Method (it has: " in bare.error()
    # The order service has the payment service's descriptors, because it calls it.
    other = await meshrpc("call", "order", CHARGE, control=shop)
    assert f"order has no method '{CHARGE}'" in other.error()


async def test_a_service_whose_instances_are_gone_fails_at_once():
    """Nobody listens at the only address: UNAVAILABLE, long before the deadline."""
    said = (await call("127.0.0.1:1", "Say", "--timeout", "20s")).error()
    assert said.startswith("UNAVAILABLE: ")
    assert "refused" in said.lower()


# What is not there.

NEEDS_CONTROL = [
    ("registry", "services"),
    ("registry", "instances", "payment"),
    ("registry", "watch"),
    ("policy", "apply", "-f", "policies"),
    ("policy", "get", "payment"),
    ("policy", "list"),
    ("policy", "delete", "payment"),
    ("status",),
    ("call", "payment", CHARGE),
]


@pytest.mark.parametrize("command", NEEDS_CONTROL, ids=" ".join)
async def test_an_unreachable_control_service_is_one_clear_line(command):
    """Each command that needs control says where it looked, why not, and how to start it."""
    assert (await meshrpc(*command)).error() == (
        "cannot reach the control service at 127.0.0.1:1 (connection refused); "
        "start it with: meshrpc control"
    )


async def test_the_first_control_service_that_answers_is_asked(control):
    """Of several addresses, one that refuses connections is passed over."""
    listing = ("policy", "list", "--namespace", "nothing", "-o", "json")
    assert (await meshrpc(*listing, control=f"127.0.0.1:1,{control}")).json() == []
    said = (await meshrpc("status", control="127.0.0.1:1,127.0.0.1:2")).error()
    assert "at 127.0.0.1:1 (connection refused), 127.0.0.1:2 (connection refused); " in said


@pytest.mark.parametrize("command", [("status",), ("registry", "services")], ids=" ".join)
async def test_something_that_never_answers_is_no_hang(command):
    """A listener that accepts connections and says nothing ends the command with an error."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = "{}:{}".format(*silent.getsockname())
        said = (await meshrpc(*command, control=address)).error()
    assert address in said


async def test_no_control_service_is_told_from_one_that_is_away():
    """Where the settings say `none`, the remedy is another one."""
    said = (await meshrpc("status", control="none")).error()
    assert said.endswith("give one with --control HOST:PORT or MESHRPC_CONTROL")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--registry", "consul://127.0.0.1:1"), "127.0.0.1:1"),
        (("--registry", "zookeeper:"), "'zookeeper:': no such registry; expected one of mesh:"),
        (("--registry", "static:payment"), "expected services as in static:payment="),
        (("--control", "nowhere"), "control='nowhere': an address is host:port"),
        (("--namespace", "a b"), "namespace='a b': a name has letters"),
    ],
)
async def test_a_registry_that_cannot_be_used_is_one_clear_line(arguments, message):
    """Unreachable, of no known kind, malformed; and settings that cannot be used."""
    assert message in (await meshrpc("registry", "services", *arguments)).error()


@pytest.mark.parametrize(
    "arguments",
    [
        ("call", "payment", CHARGE, "--timeout", "5"),
        ("call", "payment", CHARGE, "-H", "no-value"),
        ("call", "payment", CHARGE, "-H", "x-raw-bin=?"),
        ("call", "payment"),
        ("policy", "apply"),
        ("registry", "services", "-o", "xml"),
    ],
    ids=" ".join,
)
async def test_wrong_usage_exits_with_2(arguments):
    """Arguments that cannot be parsed are told from failures by the exit code."""
    result = await meshrpc(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("Usage: meshrpc ")
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("call", "static:127.0.0.1:1", "a.B/C", "-d", "-"),
            "stdin: this is no JSON: Expecting value at line 1, column 1",
        ),
        (("policy", "validate", "-f", "-"), "stdin: document: there is no document in this text"),
    ],
)
async def test_a_closed_stdin_is_an_empty_one(arguments, message):
    """`<&-` leaves a command without stdin, which it need not take badly."""
    said = await in_shell('"$@" <&-', *MESHRPC, *arguments)
    assert said.error() == message


async def test_a_closed_stdout_takes_nothing():
    """`>&-` loses the table and breaks nothing."""
    said = await in_shell('"$@" >&-', *MESHRPC, "registry", "services", "-r", "memory:")
    assert (said.code, said.err) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
async def test_a_full_disk_is_one_clear_line():
    """What cannot be written is an error, and Python does not try it once more."""
    listing = ("registry", "services", "-r", "static:a=127.0.0.1:1")
    said = await in_shell('"$@" > /dev/full', *MESHRPC, *listing)
    assert said.error() == "cannot write: no space left on device"


async def test_a_watch_ends_with_its_reader():
    """`watch | head -1` does not wait for a second change."""
    watching = ("registry", "watch", "echo", "-r", "static:echo=127.0.0.1:5001")
    said = await in_shell('"$@" | head -1', *MESHRPC, *watching)
    assert (said.code, said.err) == (0, "")
    assert said.out.split()[:2] == ["added", "echo"]


async def test_a_port_in_use_is_one_clear_line(control, tmp_path):
    """A second control service on the same address says which one, and exits 1."""
    store = f"sqlite:{tmp_path / 'control.db'}"
    arguments = ("control", "--listen", control, "--http", "127.0.0.1:0", "--store", store)
    host, port = control.split(":")
    said = (await meshrpc(*arguments)).error()
    assert said.startswith(f"port {port} on {host} is in use; ")


@pytest.mark.parametrize(
    "target", ["services.nowhere:service", "services.payment.app:nothing", "services.payment.app"]
)
async def test_a_wrong_module_or_service_is_one_clear_line(target):
    """`meshrpc run` of what is not there names it."""
    said = (await meshrpc("run", target)).error()
    assert target.rpartition(":")[0] or target in said
