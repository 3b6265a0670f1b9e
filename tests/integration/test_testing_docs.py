"""docs/testing.md as its reader uses it, and the pytest plugin in a pytest of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "docs/testing.md").read_text(), re.MULTILINE | re.DOTALL
)

pytestmark = pytest.mark.process

USES_BOTH = """
import pytest

{mark}
async def test_both(local_mesh, virtual_clock):
    assert local_mesh.clock is virtual_clock
    await virtual_clock.advance(1)
"""


def run_pytest(folder, *arguments):
    """Run pytest on what is in `folder`; return its exit code and all it printed."""
    (folder / "pytest.ini").write_text(
        # Without the second line pytest-asyncio itself warns.
        "[pytest]\nfilterwarnings = error\nasyncio_default_fixture_loop_scope = function\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MESHRPC_STATE_DIR": str(folder / "state")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_every_snippet_of_the_page_runs(tmp_path):
    """Put into one file, in a project that has only asyncio_mode set, all its tests pass."""
    text = "\n\n".join(BLOCKS)
    (tmp_path / "test_shop.py").write_text(text)
    code, output = run_pytest(tmp_path, "--asyncio-mode=auto")
    assert code == 0, output
    tests = len(re.findall(r"^async def test_", text, re.MULTILINE))
    assert tests == len(BLOCKS)
    assert f"{tests} passed" in output


def test_the_users_test_has_about_twenty_lines():
    """Two services, one failing instance and a virtual minute; imports aside."""
    test = BLOCKS[0][BLOCKS[0].index("async def") :]
    assert "advance" in test
    assert "fail(" in test
    assert len(test.splitlines()) <= 20


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_the_fixtures_work_in_both_modes_of_pytest_asyncio(tmp_path, mode):
    """In strict mode with the marker that it asks for."""
    mark = "@pytest.mark.asyncio" if mode == "strict" else ""
    (tmp_path / "test_it.py").write_text(USES_BOTH.format(mark=mark))
    code, output = run_pytest(tmp_path, f"--asyncio-mode={mode}")
    assert code == 0, output
    assert "1 passed" in output


def test_without_pytest_asyncio_the_fixture_says_what_to_install(tmp_path):
    """And the other fixture goes on working."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "def find_spec(name, package=None):\n"
        "    return None if name == 'pytest_asyncio' else find(name, package)\n"
        "importlib.util.find_spec = find_spec\n"
    )
    (tmp_path / "test_it.py").write_text(
        "def test_mesh(local_mesh): pass\n"
        "def test_clock(virtual_clock): assert virtual_clock.now() == 1000\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:asyncio", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "local_mesh needs pytest-asyncio: pip install 'meshrpc[testing]'" in done.stdout
    assert "1 passed, 1 error" in done.stdout
