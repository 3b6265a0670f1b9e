"""Imports point down only, and what is pure does no I/O."""

import ast
from pathlib import Path

import pytest

import meshrpc

PACKAGE = Path(meshrpc.__file__).parent
SERVICES = PACKAGE.parent / "services"

LAYERS = (
    # Highest first. A module may import from its own layer and from those below.
    ("cli", "demo", "testing", "__main__"),
    ("control", "workers"),
    ("mesh", "session", "policies", "client", "server"),
    (
        *("interceptors", "telemetry", "registry.embedded", "registry.urls"),
        *("subscription", "interests", "outgoing", "watched", "absence", "fleet_limits"),
    ),
    ("last_known",),
    (
        *("registry.registration", "registry.static", "registry.memory"),
        *("registry.consul", "registry.consul_watch", "registry.consul_agent"),
        *("registry.consul_entry", "registry.consul_checks", "registry.consul_record"),
        *("registry.consul_meta", "registry.consul_url"),
        *("registry.dns", "registry.dns_url", "registry.dns_client", "registry.dns_answer"),
        *("registry.dns_lookup", "registry.dns_watch"),
        *("registry.file", "registry.file_document", "registry.file_look"),
        *("registry.record", "registry.read_only", "registry.followed"),
        *("registry.following", "registry.open_watch"),
    ),
    (
        *("balancer", "resilience", "limits", "policy"),
        *("registry.leases", "registry.lease_queue", "registry.departures", "registry.doubt"),
    ),
    ("registry.registry", "registry.instance", "registry.finding"),
    (
        *("settings", "errors", "clock", "wire", "load_report", "metadata", "v1"),
        *("timestamps", "log_rate", "outage", "backoff", "excerpt", "interrupts"),
    ),
)

PURE = (
    "balancer",
    "resilience",
    "limits",
    "policy",
    "registry.leases",
    "registry.lease_queue",
    "registry.departures",
    "registry.doubt",
    "registry.record",
    "registry.file_document",
    "registry.dns_url",
    "registry.dns_answer",
    "control.pushes",
    "control.subscriber",
    "control.instance_sets",
    "control.events",
    "control.quota",
    "control.quota_member",
    "control.division",
    "workers.team",
    "workers.outbox",
    "workers.places",
    "workers.roster",
    "workers.actions",
    "workers.restarts",
    "workers.rolling",
    "workers.scaling",
    "timestamps",
    "log_rate",
    "outage",
    "backoff",
    "excerpt",
)
"""Decisions: time and chance are arguments, and there is no I/O."""

BANNED_IN_PURE = {"asyncio", "socket", "time", "threading", "subprocess", "sqlite3", "logging"}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        if relative.parts[0] in ("v1", "_demo"):
            continue
        yield ".".join(relative.with_suffix("").parts).removesuffix(".__init__"), path


def imports(path):
    """Every module a file imports when it is imported, `if TYPE_CHECKING` aside."""
    tree = ast.parse(path.read_text())
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(module):
    for depth, members in enumerate(LAYERS):
        for member in members:
            if module == member or module.startswith(f"{member}."):
                return depth
    return None


NAMES = dict(modules())
EXEMPT = {"__init__", "registry"}
"""The front door gathers names from everywhere; a package over several layers has a docstring."""


@pytest.mark.parametrize("module", sorted(NAMES.keys() - EXEMPT))
def test_a_module_imports_from_its_own_layer_or_below(module):
    """Each module has a place, and nothing it imports is above it."""
    own = layer(module)
    assert own is not None, f"{module} has no layer: give it one in LAYERS and docs/architecture.md"
    for imported in imports(NAMES[module]):
        other = layer(imported.removeprefix("meshrpc."))
        if imported.startswith("meshrpc.") and other is not None:
            assert other >= own, f"{module} imports {imported}, which is above it"


@pytest.mark.parametrize("module", sorted(m for m in NAMES if m.startswith(PURE)))
def test_decisions_take_time_and_chance_as_arguments(module):
    """No clock, no socket, no event loop in what is pure."""
    imported = {name.partition(".")[0] for name in imports(NAMES[module])}
    assert not imported & BANNED_IN_PURE
    calls = {ast.unparse(node) for node in ast.walk(ast.parse(NAMES[module].read_text()))}
    assert not calls & {"random.random()", "random.Random()", "random.choice"}


@pytest.mark.parametrize("module", sorted(m for m in NAMES if m.startswith("balancer")))
def test_balancers_and_registries_never_know_each_other(module):
    """They meet in the client."""
    assert not any(name.startswith("meshrpc.registry") for name in imports(NAMES[module]))


@pytest.mark.parametrize("module", sorted(m for m in NAMES if m.startswith("registry")))
def test_registries_and_balancers_never_know_each_other(module):
    """They meet in the client."""
    assert not any(name.startswith("meshrpc.balancer") for name in imports(NAMES[module]))


def test_the_example_services_use_public_names_only():
    """What users copy from imports `meshrpc`, grpc and its generated code, nothing inside."""
    for path in SERVICES.rglob("*.py"):
        if "_pb2" in path.name:
            continue
        for name in imports(path):
            assert not name.startswith("meshrpc.") or name.count(".") == 1, f"{path}: {name}"


def test_the_front_door_is_small():
    """Every public name is listed, and there are not many."""
    assert len(meshrpc.__all__) <= 20
    assert all(hasattr(meshrpc, name) for name in meshrpc.__all__)
