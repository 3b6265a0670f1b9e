"""compose.yaml cannot be run here, so what can be is: its commands, health checks and files.

Our own services run as local processes, in the order their dependencies ask for. Each has a
loopback address of its own in place of its name, so that ports stay as written; its volumes are
folders of the test. In Jaeger's place there is a collector of the test's own, and in Consul's the
real one that other tests share.
"""

import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import sqlite3
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from meshrpc.demo.spans import SpanCollector
from meshrpc.settings import Settings

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PATIENCE = 60.0
"""Seconds until a test gives up on something that should happen."""

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]

ORDER = {
    "request_id": "r1",
    "customer": "c1",
    "currency": "EUR",
    "items": [{"sku": "s1", "quantity": 2, "unit_price": 950}],
}


# Reading the two files.


def dockerfile():
    """The Dockerfile as (instruction, words) for each of its lines."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if line.strip():
            instruction, _, rest = line.partition(" ")
            yield instruction, rest.strip()


def last_stage():
    """The lines that make the image itself."""
    lines = list(dockerfile())
    last = max(number for number, (instruction, _) in enumerate(lines) if instruction == "FROM")
    return lines[last:]


def copied(lines):
    """What COPY takes from this folder, as (source, destination)."""
    for instruction, rest in lines:
        if instruction == "COPY" and "--from=" not in rest:
            *sources, destination = rest.split()
            yield from ((source, destination) for source in sources)


def image_environment():
    """The variables that the image itself sets, but for PATH."""
    pairs = (
        word.split("=", 1)
        for instruction, rest in last_stage()
        if instruction == "ENV"
        for word in shlex.split(rest)
    )
    return {name: value for name, value in pairs if name != "PATH"}


def entrypoint():
    return next(json.loads(rest) for word, rest in last_stage() if word == "ENTRYPOINT")


def substituted(value, environment):
    """`value` with every ${NAME:-default} in it replaced, as Compose does."""
    if isinstance(value, dict):
        return {key: substituted(each, environment) for key, each in value.items()}
    if isinstance(value, list):
        return [substituted(each, environment) for each in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: environment.get(m[1]) or m[2], value)


def mounts(service):
    """The service's volumes, as (source, target)."""
    for volume in service.get("volumes", ()):
        source, target, *_ = volume.split(":")
        yield source, target


def dependencies(service):
    """What must have happened before the service is started, as (service, condition)."""
    given = service.get("depends_on", {})
    if isinstance(given, list):
        given = {name: {"condition": "service_started"} for name in given}
    return [(name, rule["condition"]) for name, rule in given.items()]


# Running it.


class Compose:
    """`docker compose up`, for our own services, without Docker."""

    def __init__(self, folder, *, variables, elsewhere):
        """`elsewhere` has addresses of services that are not ours, by NAME:PORT."""
        self._folder = folder
        self._services = substituted({name: SERVICES[name] for name in OURS}, variables)
        number = os.getpid()
        base = f"127.{1 + number % 250}.{1 + number // 250 % 250}"
        self._addresses = {name: f"{base}.{at}" for at, name in enumerate(OURS, start=1)}
        self._elsewhere = elsewhere
        for name in COMPOSE["volumes"]:
            self.volume(name).mkdir(parents=True)
        self._processes = {}
        self._started = []
        self._reached = {}
        self._app = folder / "app"
        self._app.mkdir()
        for source, destination in copied(last_stage()):
            (self._app / destination).symlink_to(ROOT / source)

    async def __aenter__(self):
        return self

    async def __aexit__(self, kind, *_):
        if kind is not None:
            sys.stderr.write(self._log("*"))
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def volume(self, name):
        """The folder that stands for a named volume."""
        return self._folder / "volumes" / name

    async def up(self):
        """Return once every service is healthy, or has done what it is for."""
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as starting:
            for name in OURS:
                starting.create_task(self._bring_up(name))

    async def down(self):
        """Stop them as Compose does, the control service last; return their exit codes."""
        codes = {}
        async with asyncio.timeout(PATIENCE):
            for names in ([name for name in self._processes if name != "control"], ["control"]):
                for name in names:
                    with contextlib.suppress(ProcessLookupError):
                        self._processes[name].send_signal(signal.SIGTERM)
                for name in names:
                    codes[name] = await self._processes[name].wait()
        return codes

    async def run(self, name, *arguments):
        """`docker compose exec NAME ARGUMENTS`: return what it answers in JSON."""
        process = await self._start(name, arguments, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        assert process.returncode == 0, self._log(name)
        return json.loads(output)

    async def _bring_up(self, name):
        service = self._services[name]
        for other, condition in dependencies(service):
            if other in OURS:
                await self._event(other, condition).wait()
        self._processes[name] = await self._start(name, [*entrypoint(), *service["command"]])
        self._event(name, "service_started").set()
        if "healthcheck" in service:
            await self._healthy(name, service["healthcheck"])
            self._event(name, "service_healthy").set()
        else:
            assert await self._processes[name].wait() == 0, self._log(name)
            self._event(name, "service_completed_successfully").set()

    async def _healthy(self, name, check):
        """Repeat the service's own health check until it succeeds; each ends by itself."""
        kind, *words = check["test"]
        arguments = {"CMD": words, "CMD-SHELL": ["sh", "-c", *words]}[kind]
        while True:
            assert self._processes[name].returncode is None, self._log(name)
            probe = await self._start(name, arguments, log="health.")
            if await probe.wait() == 0:
                return
            await asyncio.sleep(0.1)

    async def _start(self, name, arguments, *, stdout=None, log=""):
        """Start a process as if it were in the service's container."""
        given = self._services[name].get("environment", {})
        environment = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(self._folder),
            **{
                key: self._here(name, value) for key, value in (image_environment() | given).items()
            },
        }
        with (self._folder / f"{name}.{log}log").open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *(self._here(name, argument) for argument in arguments),
                cwd=self._app,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stdout or output,
                stderr=output,
            )
        self._started.append(process)
        return process

    def _here(self, name, text):
        """`text` with the container's names, addresses and paths replaced by this machine's."""
        text = re.sub(r"\b(0\.0\.0\.0|127\.0\.0\.1)(?=:\d)", self._addresses[name], text)
        for other, address in self._addresses.items():
            text = re.sub(rf"(?<![\w.-]){re.escape(other)}(?=:\d)", address, text)
        for other, address in self._elsewhere.items():
            text = re.sub(rf"(?<![\w.-]){re.escape(other)}\b", address, text)
        for source, target in mounts(self._services[name]):
            folder = ROOT / source if source.startswith(".") else self.volume(source)
            text = text.replace(target, str(folder))
        return text

    def _event(self, name, condition):
        return self._reached.setdefault((name, condition), asyncio.Event())

    def _log(self, name):
        return "\n".join(file.read_text()[-2000:] for file in self._folder.glob(f"{name}.*log"))


@pytest.fixture(
    params=[
        pytest.param("consul", marks=pytest.mark.consul),
        pytest.param("mesh", marks=pytest.mark.soak),
    ]
)
def registry(request):
    """What the services register with: variables for Compose, and where Consul is."""
    if request.param == "mesh":
        return {"MESHRPC_REGISTRY": "mesh:"}, {}
    return {}, {"consul:8500": request.getfixturevalue("consul_server").address}


@pytest.mark.process
@pytest.mark.timeout(180)
@pytest.mark.skipif(sys.platform != "linux", reason="others have one loopback address only")
async def test_the_shop_of_compose_yaml_sells(tmp_path, registry):
    """Everything becomes healthy, an order is paid and traced, and all of it ends when told."""
    variables, elsewhere = registry
    spans = []
    async with SpanCollector(spans.append) as jaeger:
        elsewhere["jaeger:4317"] = jaeger.endpoint.removeprefix("http://")
        async with Compose(tmp_path, variables=variables, elsewhere=elsewhere) as compose:
            await compose.up()
            call = ("call", "order", "order.v1.OrderService/CreateOrder", "-d", json.dumps(ORDER))
            order, known, policies = await asyncio.gather(
                compose.run("order", "meshrpc", *call),
                compose.run("order", "meshrpc", "registry", "instances", "payment", "-o", "json"),
                compose.run("policies", "meshrpc", "policy", "list", "-o", "json"),
            )
            assert set((await compose.down()).values()) == {0}
        assert order["status"] == "STATUS_PAID"
        assert sorted(each["version"] for each in known) == ["v1", "v2"]
        with contextlib.closing(
            sqlite3.connect(compose.volume("payment-state") / "payments.db")
        ) as ledger:
            charged = ledger.execute("SELECT order_id, processed_by FROM payments").fetchall()
        assert charged == [(order["id"], order["paid_by"])]
        files = [yaml.safe_load(file.read_text()) for file in (ROOT / "policies").glob("*.yaml")]
        assert {each["service"] for each in policies} == {each["service"] for each in files}
    # Sent when the processes ended at the latest, and taken in before the collector did.
    traces = {span.trace for span in spans if span.service == "order" and span.callee == "payment"}
    assert {span.trace for span in spans if span.service == "payment"} & traces


# What is written in the files.


@pytest.mark.parametrize("name", OURS)
def test_every_variable_of_a_service_is_a_setting(name):
    """A MESHRPC_ variable that nothing reads would be ignored without a word."""
    known = {field.metadata["environment"] for field in fields(Settings)}
    given = image_environment() | SERVICES[name].get("environment", {})
    assert {each for each in given if each.startswith("MESHRPC_")} <= known


def test_what_compose_is_told_by_its_caller_is_a_setting():
    """`MESHRPC_REGISTRY=mesh: docker compose up` says the setting's own name."""
    told = set(re.findall(r"\$\{(\w+)", (ROOT / "compose.yaml").read_text()))
    assert told == {"MESHRPC_REGISTRY"}


@pytest.mark.parametrize("name", [name for name in SERVICES if name not in OURS])
def test_an_image_of_others_is_pinned(name):
    """Its tag begins with a version: tomorrow's picture is today's."""
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+(\.\d+)?", SERVICES[name]["image"])


@pytest.mark.parametrize("name", SERVICES)
def test_every_port_is_open_to_this_machine_alone(name):
    """Nobody has to say who they are."""
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", ()))


def test_every_name_in_compose_yaml_means_something():
    """Volumes are declared and used, mounted files exist, dependencies can be met."""
    named = set()
    for service in SERVICES.values():
        for source, _ in mounts(service):
            if source.startswith("."):
                assert (ROOT / source).exists(), source
            else:
                named.add(source)
        for other, condition in dependencies(service):
            assert condition == "service_started" or "healthcheck" in SERVICES[other]
    assert named == set(COMPOSE["volumes"])


def configuration():
    """Every file under deploy/, by its path there."""
    readers = {".yaml": yaml.safe_load, ".json": json.loads}
    files = sorted(file for file in (ROOT / "deploy").rglob("*") if file.is_file())
    return {
        str(file.relative_to(ROOT / "deploy")): readers[file.suffix](file.read_text())
        for file in files
    }


def test_every_file_under_deploy_is_mounted():
    """A file that no container sees would rot."""
    mounted = [ROOT / source for each in SERVICES.values() for source, _ in mounts(each)]
    for file in configuration():
        path = ROOT / "deploy" / file
        assert any(path.is_relative_to(each) for each in mounted), file


def test_prometheus_asks_services_that_exist():
    """Each target is a service of compose.yaml, or Prometheus itself."""
    for job in configuration()["prometheus/prometheus.yaml"]["scrape_configs"]:
        for group in job["static_configs"]:
            for target in group["targets"]:
                host, _, port = target.partition(":")
                assert port.isdecimal()
                assert host == "localhost" or host in SERVICES
    command = SERVICES["prometheus"]["command"]
    read = next(word.split("=")[1] for word in command if word.startswith("--config.file="))
    assert read in [target for _, target in mounts(SERVICES["prometheus"])]


def test_grafanas_dashboards_ask_sources_that_exist():
    """A panel's source is provisioned, a source is a service, and the folder is mounted."""
    files = configuration()
    sources = files["grafana/provisioning/datasources/datasources.yaml"]["datasources"]
    for source in sources:
        assert re.fullmatch(rf"http://({'|'.join(SERVICES)}):\d+", source["url"])
    targets = {target: source for source, target in mounts(SERVICES["grafana"])}
    (provider,) = files["grafana/provisioning/dashboards/dashboards.yaml"]["providers"]
    folder = targets[provider["options"]["path"]]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (ROOT / folder / Path(home).name).exists()
    known = {(source["type"], source["uid"]) for source in sources}
    for file in (ROOT / folder).glob("*.json"):
        for panel in json.loads(file.read_text())["panels"]:
            asked = [panel["datasource"], *(each["datasource"] for each in panel["targets"])]
            assert {(each["type"], each["uid"]) for each in asked} <= known, panel["title"]


@pytest.mark.consul
async def test_consul_takes_its_file_and_its_health_check(tmp_path, consul_binary, consul_server):
    """Both are held against a real Consul."""
    service = SERVICES["consul"]
    image = tmp_path / "image.json"  # what the image's own start adds
    image.write_text(json.dumps({"data_dir": str(tmp_path)}))
    files = [str(image), *(str(ROOT / source) for source, _ in mounts(service))]
    kind, program, *words = service["healthcheck"]["test"]
    assert (kind, program) == ("CMD", "consul")
    for arguments in (["validate", *files], words):
        process = await asyncio.create_subprocess_exec(
            *(consul_binary, *arguments),
            env={"CONSUL_HTTP_ADDR": consul_server.address},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()


def test_the_dockerfile_copies_what_the_build_needs():
    """Its sources exist, .dockerignore lets them in, and pyproject.toml asks for nothing else."""
    sources = {source.rstrip("/") for source, _ in copied(dockerfile())}
    let_in = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    assert sources == let_in
    assert all((ROOT / source).exists() for source in sources)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    needed |= {*wheel["packages"], *wheel["force-include"]}
    assert needed <= sources


def test_the_image_runs_as_its_user_and_ends_as_compose_says():
    """No root, SIGTERM, and state in the folder that every service's volume is mounted at."""
    image = dict(last_stage())
    assert image["USER"] == "meshrpc"
    assert image["STOPSIGNAL"] == "SIGTERM"
    assert image["VOLUME"] == image_environment()["MESHRPC_STATE_DIR"]
    for name in OURS:
        state = [target for source, target in mounts(SERVICES[name]) if source[0] not in "./"]
        assert set(state) <= {image["VOLUME"]}, name


def test_the_image_installs_an_extra_that_exists():
    """The RUN line asks pip for this folder with extras of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (installs,) = (rest for word, rest in dockerfile() if word == "RUN" and "pip install" in rest)
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", installs)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
