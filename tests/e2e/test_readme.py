"""The README as a newcomer tries it: every command and every snippet in it is run."""

import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path

import pytest

from meshrpc.settings import Settings

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
README = (ROOT / "README.md").read_text()

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]

MAKE_TARGETS_RUN_ELSEWHERE = {
    "make demo ARGS='--duration 20 --chaos'": "test_demo.py runs the demo with and without chaos",
    "make test": "this is that command",
}

RUN_BY_CI = {"make install", "make check", "make help"}


def blocks(language):
    """Every fenced block of the README in `language`, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands():
    """Every command line of the README's console blocks, in order."""
    lines = (line for block in blocks("console") for line in block.splitlines())
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def files():
    """The README's snippets that are files, by the name in their first line."""
    found = {}
    for language in ("python", "yaml"):
        for block in blocks(language):
            name = re.match(r"# (\S+\.\w+)\n", block)
            assert name, f"a snippet without a file name:\n{block}"
            found[name.group(1)] = block
    return found


@pytest.fixture
def shell(tmp_path):
    """A shell in a copy of what the README talks about, with a network of its own.

    The README uses the default ports; in a network namespace they are nobody else's.
    """
    for folder in ("services", "policies"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for name, text in files().items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    prefix = []
    if subprocess.run(["unshare", "-rn", "true"], check=False, capture_output=True).returncode == 0:
        prefix = ["unshare", "-rn"]
    elif any(in_use(port) for port in (7700, 7780)):
        pytest.skip("ports 7700 and 7780 are in use, and there is no network namespace to be had")
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "MESHRPC_STATE_DIR": str(tmp_path / "state"),
    }

    def run(script):
        end_all = "kill $(jobs -p) 2>/dev/null; wait || true"
        text = f"ip link set lo up 2>/dev/null\ntrap '{end_all}' EXIT\nset -e\n{script}"
        return subprocess.run(
            [*prefix, "bash", "-c", text],
            check=False,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            timeout=120,
        )

    return run


def in_use(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def patient(command, until=""):
    """A command that is tried until it succeeds and says `until`: what it needs is starting."""
    return textwrap.dedent(f"""
        for try in $(seq 100); do
          if {command} > last.txt 2>&1 && {{ [ -z '{until}' ] || grep -q '{until}' last.txt; }}; then break; fi
          [ $try = 100 ] && cat last.txt && exit 1
          sleep 0.2
        done
        cat last.txt
    """)


def test_every_command_of_the_readme_works(shell):
    """In the order it gives them, each succeeds and shows what the text around it says."""
    tried = [
        command
        for command in commands()
        if command not in MAKE_TARGETS_RUN_ELSEWHERE and command not in RUN_BY_CI
    ]
    assert [line for line in tried if not line.startswith("meshrpc ")] == []
    script = ""
    for command in tried:
        if command.endswith("&"):
            script += f"{command}\n"
        elif command.startswith("meshrpc registry instances"):
            script += patient(f"{command} -o json", until="payment-")
            script += patient(f'test "$({command} | grep -c active)" = 3')
        else:
            script += f"echo '>>>'; {command}\n"
    done = shell(script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"status": "STATUS_CHARGED"' in done.stdout
    assert "revision" in done.stdout
    assert done.stdout.count("synced") >= 3
    assert "rate: 10/s" in done.stdout
    assert "Traceback" not in done.stderr


def test_the_readmes_service_and_caller_work_as_printed(shell):
    """The snippets are run as files, through the default control service."""
    done = shell(
        "meshrpc control &\n"
        "PYTHONPATH=. python shop/app.py &\n"
        + patient("PYTHONPATH=. python shop/shell.py", until="1999")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "for-shell 1999" in done.stdout


def test_the_readmes_rate_limit_limits(shell):
    """With limit.yaml applied, more than ten calls a second are refused with retry-after."""
    call = (
        "meshrpc call payment payment.v1.PaymentService/GetPayment "
        """-d '{"payment_id": "none"}'"""
    )
    flood = textwrap.dedent("""
        cat > flood.py <<'PY'
        import asyncio, collections, sys, grpc, meshrpc
        from services.payment.v1 import payment_pb2, payment_pb2_grpc
        async def main():
            async with meshrpc.Mesh("flood") as mesh:
                stub = payment_pb2_grpc.PaymentServiceStub(mesh.channel("payment"))
                calls = [stub.GetPayment(payment_pb2.GetPaymentRequest(payment_id="x"), timeout=5)
                         for _ in range(50)]
                codes, hints = collections.Counter(), set()
                for call in calls:
                    try:
                        await call
                    except grpc.aio.AioRpcError as error:
                        codes[error.code().name] += 1
                        hints |= {key for key, _ in error.trailing_metadata()}
                print(dict(codes), "retry-after" in hints)
        asyncio.run(main())
        PY
    """)
    done = shell(
        "meshrpc control &\nmeshrpc run services.payment.app:service &\n"
        + patient(f"{call} 2>&1 | grep NOT_FOUND")
        + flood
        + "PYTHONPATH=. python flood.py\n"
        + "meshrpc policy apply -f limit.yaml\nsleep 1\n"
        + "PYTHONPATH=. python flood.py\n"
        + "meshrpc policy delete payment\nsleep 1\n"
        + "PYTHONPATH=. python flood.py\n"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    free, limited, free_again = re.findall(r"^\{.*$", done.stdout, re.MULTILINE)
    assert free == free_again == "{'NOT_FOUND': 50} False"
    admitted = int(re.search(r"'NOT_FOUND': (\d+)", limited).group(1))
    assert 10 <= admitted <= 20
    assert f"'RESOURCE_EXHAUSTED': {50 - admitted}" in limited
    assert limited.endswith("True")


def test_every_page_the_readme_names_exists():
    """No link of the README or the docs leads nowhere."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_every_setting_is_documented():
    """docs/settings.md lists each setting with its environment variable, and no other."""
    table = re.findall(
        r"^\| `(\w+)=` \| `(\w+)` \|", (ROOT / "docs/settings.md").read_text(), re.MULTILINE
    )
    assert table == [(f.name, f.metadata["environment"]) for f in fields(Settings)]
