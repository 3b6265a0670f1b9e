"""The demo as a user runs it: processes, chaos, a real Consul, an installed wheel, Ctrl-C."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]


def demo(*arguments, **options):
    """Start `meshrpc demo` in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "meshrpc", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )


def processes_of(marker):
    """Every process whose environment carries the marker: whatever the demo started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if f"MESHRPC_TEST_MARKER={marker}".encode() in environment.split(b"\0"):
                found.append(int(entry.name))
    return found


def setting(pid, name):
    """The value of a variable in a process's environment; None: it has none, or is gone."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return None
    return dict(each.partition("=")[::2] for each in environment.split("\0")).get(name)


def field(name, output):
    match = re.search(rf"^ {name} +(\d+)", output, re.MULTILINE)
    assert match, output
    return int(match.group(1))


def test_the_demo_sells_and_loses_nothing():
    """It exits 0, its books are clean, its policy landed, and its trace spans both services."""
    process = demo("--duration", "5")
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 0, output
    assert field("orders placed", output) > 50
    assert field("paid", output) == field("orders placed", output)
    assert field("lost", output) == field("duplicates", output) == 0
    assert re.search(r"policy revision 2 landed in 6 processes after \d+ ms", output)
    assert len(re.findall(r"^ *payment +payment-[0-9a-f]{8} +v[12] ", output, re.MULTILINE)) == 3
    assert len(re.findall(r"^ *order +order-[0-9a-f]{8} ", output, re.MULTILINE)) == 2
    tree = output[output.index("One trace:") :]
    for line in (
        "shop  order.v1.OrderService/CreateOrder  calls order",
        "order  order.v1.OrderService/CreateOrder  served by order-",
        "order  payment.v1.PaymentService/Charge  calls payment",
        "payment  payment.v1.PaymentService/Charge  served by payment-",
    ):
        assert line in tree


def test_the_demo_survives_a_killed_and_a_frozen_worker():
    """With --chaos every order is still paid once."""
    process = demo("--duration", "10", "--chaos")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "with SIGKILL" in output
    assert "with SIGSTOP" in output
    assert field("lost", output) == field("duplicates", output) == 0
    assert field("paid", output) >= 0.99 * field("orders placed", output)


@pytest.mark.consul
@pytest.mark.soak
def test_the_demo_runs_on_a_real_consul(consul_url):
    """The same, with Consul as the registry of every process."""
    process = demo("--duration", "6", "--registry", consul_url)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert field("paid", output) > 100
    assert field("lost", output) == field("duplicates", output) == 0


@pytest.mark.parametrize("at", ["policy revision 1 pushed", "1 orders placed"])
def test_ctrl_c_leaves_no_process_behind(at):
    """While it starts or while it sells, one Ctrl-C ends all that it started."""
    marker = os.urandom(8).hex()
    environment = {**os.environ, "MESHRPC_TEST_MARKER": marker, "PYTHONUNBUFFERED": "1"}
    with demo("--duration", "60", env=environment) as process:
        for line in process.stdout:
            if at in line:
                break
        assert len(processes_of(marker)) > 1
        if at == "1 orders placed":
            told = {setting(pid, "MESHRPC_CONTROL_HTTP") for pid in processes_of(marker)} - {None}
            assert len(told) == 1, "supervisors report events to the demo's own control"
            assert not told & {"127.0.0.1:7780", "none"}
        process.send_signal(signal.SIGINT)
        output = process.stdout.read()
        assert process.wait(timeout=60) == 130
    assert "Traceback" not in output
    assert processes_of(marker) == []


def test_a_second_ctrl_c_ends_everything_without_draining():
    """While workers drain, it ends them and the control service too."""
    marker = os.urandom(8).hex()
    environment = {**os.environ, "MESHRPC_TEST_MARKER": marker, "PYTHONUNBUFFERED": "1"}
    with demo("--duration", "10", env=environment) as process:
        for line in process.stdout:
            if "landed in 6 processes" in line:
                process.send_signal(signal.SIGINT)
            if "interrupted" in line:
                break
        else:
            pytest.fail("the demo ended by itself")
        process.send_signal(signal.SIGINT)
        output = process.stdout.read()
        assert process.wait(timeout=60) == 130
    assert "Traceback" not in output
    assert processes_of(marker) == []


def test_no_process_outlives_a_killed_demo():
    """After a kill -9 of the demo, all that it started ends by itself."""
    marker = os.urandom(8).hex()
    environment = {**os.environ, "MESHRPC_TEST_MARKER": marker, "PYTHONUNBUFFERED": "1"}
    with demo("--duration", "60", env=environment) as process:
        for line in process.stdout:
            if "1 orders placed" in line:
                break
        assert len(processes_of(marker)) == 10
        process.kill()
    give_up = time.monotonic() + 60
    while left := processes_of(marker):
        assert time.monotonic() < give_up, left
        time.sleep(0.1)


def test_a_registry_that_cannot_be_reached_is_one_clear_line():
    """Its cause and remedy, and a failure for the exit code."""
    process = demo("--duration", "5", "--registry", "consul://127.0.0.1:1")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in output
    assert "error: cannot reach Consul at 127.0.0.1:1" in output


def test_the_demo_runs_from_an_installed_wheel_outside_the_repository(tmp_path):
    """The wheel carries the services, their generated code and the policies."""
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path / "dist", ROOT],
        check=False,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "dist").glob("meshrpc-*.whl")
    installed = tmp_path / "site"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile"),
            *("--target", installed, wheel),
        ],
        check=True,
        capture_output=True,
    )
    where = subprocess.run(
        [sys.executable, "-c", "import meshrpc; print(meshrpc.__file__)"],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )
    assert str(installed) in where.stdout
    process = demo(
        "--duration", "5", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)}
    )
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 0, output
    assert field("paid", output) > 25
    assert (installed / "meshrpc" / "_demo" / "services" / "order" / "app.py").exists()
