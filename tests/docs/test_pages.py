"""Every block of the pages for users runs as it stands, in one process and one cache of programs."""

import importlib.util
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = "../README.md"  # whose commands are run by .ci/run
PAGES = [README] + [
    page.relative_to(DOCS).as_posix()
    for folder in (".", "tutorials", "how-to", "explanation")
    for page in sorted((DOCS / folder).glob("*.md"))
]
# A block that a comment stands above is not run: the comment says why, or whose source the block is.
BLOCK = re.compile(
    r"^(?:<!-- (not run|source): (\S+).* -->\n)?```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE
)

_spec = importlib.util.spec_from_file_location("notebooks", DOCS / "notebooks.py")
notebooks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(notebooks)


def blocks(page):
    """Language, code and line of each block that is run."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        comment, _, language, code = match.groups()
        if language in ("python", "sh") and not comment:
            yield language, code, text.count("\n", 0, match.start(4))


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return tmp_path_factory.mktemp("programs")


def run_shell(code, programs):
    """Runs commands but for installations, which are the business of whoever runs this."""
    code = re.sub(r"(?m)^pip install .*$", "", code)
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "XLA_FLAGS": "",  # commands compile as users' do: they run for longer than tests
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code], env=environment, capture_output=True, text=True
    )
    print(done.stdout, done.stderr, sep="\n")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a shell")
@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_the_page_runs(page, programs, tmp_path, monkeypatch):
    pytest.importorskip("grain")
    monkeypatch.chdir(tmp_path)
    names = {}
    for language, code, line in blocks(page):
        if language == "sh" and page != README:
            run_shell(code, programs)
        elif language == "python":
            exec(compile("\n" * line + code, str(DOCS / page), "exec"), names)


def test_there_are_blocks_on_every_tutorial():
    assert len(PAGES) > 5
    for page in PAGES:
        assert list(blocks(page)) or not page.startswith("tutorials"), page


def quoted():
    """Page, name and text of each block that quotes a function of the package."""
    for page in PAGES:
        for match in BLOCK.finditer((DOCS / page).read_text(encoding="utf-8")):
            if match[1] == "source":
                yield page, match[2], match[4]


@pytest.mark.parametrize(("page", "name", "text"), list(quoted()))
def test_code_beside_equations_is_the_code_that_runs(page, name, text):
    assert text == inspect.getsource(pkgutil.resolve_name(name)), f"copy {name} into docs/{page}"


@pytest.mark.parametrize("name", notebooks.TUTORIALS)
def test_notebooks_are_made_of_the_tutorials(name):
    file = DOCS / "notebooks" / f"{name}.ipynb"
    assert file.read_text(encoding="utf-8") == notebooks.encoded(name), (
        "run python docs/notebooks.py"
    )
    assert file.stat().st_size < 20_000
    first, *_ = json.loads(notebooks.encoded(name))["cells"]
    assert first["source"][0].startswith("# ")


def test_every_page_has_a_place_in_the_navigation():
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split()
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert not pages - set(listed), "list these in mkdocs.yml"
