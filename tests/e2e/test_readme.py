"""The README as a newcomer tries it: every command and every snippet in it is run."""

import os
import re
import shutil
import signal
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

RUN_ELSEWHERE = {
    "make demo ARGS='--duration 20 --chaos'": "test_demo.py runs the demo with and without chaos",
    "make test": "this is that command",
}


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
    for folder in ("services", "policies", "protos"):
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
        "PYTHONPATH": ".",
        "MESHRPC_STATE_DIR": str(tmp_path / "state"),
    }

    def run(script):
        end_all = "kill $(jobs -p) 2>/dev/null; wait || true"
        text = f"ip link set lo up 2>/dev/null\ntrap '{end_all}' EXIT\nset -e\n{script}"
        with subprocess.Popen(
            [*prefix, "bash", "-c", text],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
            env=environment,
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=120)
            except subprocess.TimeoutExpired:
                # All of it: what it started in the background stays in its process group.
                os.killpg(process.pid, signal.SIGKILL)
                output, _ = process.communicate()
                pytest.fail(f"the script did not end:\n{output}")
        assert process.returncode == 0, output
        assert "Traceback" not in output
        return output

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
    script = ""
    for command in commands():
        if command in RUN_ELSEWHERE:
            continue
        if command.startswith("meshrpc registry instances"):
            script += patient(f'test "$({command} | grep -c active)" = 3')
            script += f"{command}\n"
        elif command == "meshrpc status":
            script += patient(f'test "$({command} | grep -c synced)" = 3')
            script += f"{command}\n"
        elif command.startswith("for "):
            # Refused calls are what it shows: again where a slow machine makes none too many.
            script += patient(f"{{ {command} || true; }}", until="RESOURCE_EXHAUSTED")
        else:
            script += f"{command}\n"
    output = shell(script)
    assert '"status": "STATUS_CHARGED"' in output
    assert output.count("synced") == 3
    assert "RESOURCE_EXHAUSTED" in output
    assert "retry-after" in output
    assert "Run the service SERVICE of the module MODULE" in output


def test_the_readmes_service_and_caller_work_as_printed(shell):
    """The snippets are run as files, through the default control service."""
    output = shell(
        "meshrpc control &\npython shop/app.py &\n"
        + patient("python shop/shell.py", until="amount: 1999")
    )
    assert 'id: "for-o1"' in output


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
