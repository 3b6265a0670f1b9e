"""What the documentation says can be found in the code."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import meshrpc

ROOT = Path(meshrpc.__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_that_a_page_tells_of_exist(page):
    """`meshrpc.call_options` and its like, in text and in code."""
    for path in re.findall(r"\bmeshrpc((?:\.[A-Za-z_]\w*)+)\b(?!/)", page.read_text()):
        if path in (".policy", ".db") or path.startswith(".v1"):
            continue  # the schema's name, a file
        found = meshrpc
        for name in path.strip(".").split("."):
            try:
                found = getattr(found, name)
            except AttributeError:
                found = importlib.import_module(f"{found.__name__}.{name}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_on_a_page_is_python(page):
    """Every block marked as such can be parsed."""
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        compile(block, str(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def headings(page):
    """Return what the headings of a page are linked by."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    """Files and folders of this project; a heading is looked for in its file."""
    for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), target
        if heading:
            assert heading in headings(file), f"{target}#{heading}"
