"""Every block of the pages for users runs as it stands, in one process and one cache of programs."""

import contextlib
import inspect
import os
import pkgutil
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path.append(str(DOCS))  # whose scripts are no package
import notebooks  # noqa: E402
import site_pages  # noqa: E402

README = "../README.md"  # whose commands are run by .ci/run
PAGES = [README] + [
    page.relative_to(DOCS).as_posix()
    for folder in (".", "tutorials", "how-to", "explanation")
    for page in sorted((DOCS / folder).glob("*.md"))
]
# A comment above a block says that it is not run, and why; whose source it is; or that it is a server, which runs
# beside the blocks that follow.
BLOCK = re.compile(
    r"^(?:<!-- (not run|source|background)(?:: (\S+).*)? -->\n)?```(\w*)\n(.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
PORT = ":8000"  # which may be taken here
# Tutorials whose blocks run as cells of a notebook, which has the same.
AS_NOTEBOOKS = {f"tutorials/{name}.md" for name in notebooks.TUTORIALS}


def blocks(page):
    """Language, code and line of each block that is run; the language of a server is "background"."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        comment, _, language, code = match.groups()
        if language in ("python", "sh") and comment in (None, "background"):
            yield comment or language, code, text.count("\n", 0, match.start(4))


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Variables of the commands, which share a cache of programs and compile as users' do: they run for longer
    than tests.
    """
    return {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("programs")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "XLA_FLAGS": "",
    }


def run_shell(code, environment):
    """Runs commands but for installations, which are the business of whoever runs this."""
    code = re.sub(r"(?m)^pip install .*$", "", code)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    print(done.stdout, done.stderr, sep="\n")
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def serving(code, port, environment):
    """Runs a server beside what follows, on a free port; it must be ready soon and end well on Ctrl-C."""
    command = f"exec {code.strip()} --config.port={port}"
    with subprocess.Popen(
        ["bash", "-c", command], env=os.environ | environment, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            for line in server.stderr:
                if '"event": "ready"' in line:
                    break
            yield
        finally:
            server.send_signal(signal.SIGINT)
            _, log = server.communicate(timeout=120)
        assert server.returncode in (0, 130), log


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a shell")
@pytest.mark.parametrize("page", [page for page in PAGES if page not in AS_NOTEBOOKS])
def test_every_block_of_the_page_runs(page, environment, tmp_path, monkeypatch):
    pytest.importorskip("grain")
    monkeypatch.chdir(tmp_path)
    names, port = {}, free_port()
    with contextlib.ExitStack() as servers:
        for language, code, line in blocks(page):
            if language == "background":
                servers.enter_context(serving(code, port, environment))
            elif language == "python":
                code = "\n" * line + code.replace(PORT, f":{port}")
                exec(compile(code, str(DOCS / page), "exec"), names)
            elif page != README:
                run_shell(code, environment)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a shell")
@pytest.mark.parametrize("name", notebooks.TUTORIALS)
def test_the_file_of_the_notebook_runs_and_has_its_outputs(
    name, environment, tmp_path, monkeypatch
):
    pytest.importorskip("grain")
    monkeypatch.chdir(tmp_path)
    for cell, printed in notebooks.run(notebooks.read(name), environment):
        assert bool(printed) == bool(cell["outputs"]), f"run python docs/notebooks.py {name}"


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
    found, made = notebooks.read(name), notebooks.of_tutorial(name)
    again = f"run python docs/notebooks.py {name}"
    assert notebooks.sources(found) == notebooks.sources(made), again
    assert any(cell.get("outputs") for cell in found["cells"]), again
    assert file.stat().st_size < 40_000
    assert made["cells"][0]["source"][0].startswith("# ")


def test_the_notebooks_links_lead_somewhere():
    for name in notebooks.TUTORIALS:
        cells = notebooks.sources(notebooks.read(name))
        text = "\n".join(source for kind, source in cells if kind == "markdown")
        links = re.findall(r"\]\((?!\w+:)([^)#]+)", text)
        assert links
        for link in links:
            assert (DOCS / "notebooks" / link).exists(), f"{name}: {link}"


def test_nothing_names_a_repository_that_may_not_be_there():
    """The one place for its address is mkdocs.yml."""
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]:
        found = re.findall(r"(?:github|gitlab)\.com/[\w-]+/griffin_jax", page.read_text("utf-8"))
        assert not found, page


def test_every_page_has_a_place_in_the_navigation():
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split()
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert not pages - set(listed), "list these in mkdocs.yml"


def test_the_page_of_shardings_has_every_parameter_and_state():
    import griffin_jax
    from griffin_jax.devices import LOGICAL_AXES
    from griffin_jax.models import declarations

    page = site_pages.shardings_page()
    for path in declarations(griffin_jax.preset("recurrentgemma-9b")):
        assert f"| `{re.sub('blocks_[0-9]+/', '', path)}` |" in page
    assert all(f"| `{name}` |" in page for name in LOGICAL_AXES if name)
    # One of each kind, as docs/sharding explains it.
    for row in (
        "| `embedder/embedding` | vocabulary, width | 256,000 x 4,096 | `model`, `fsdp` |",
        "| `recurrent.hidden` | batch, recurrence | 1 x 4,096 | `data` and `fsdp`, `model` |",
        "| adapter `lora_b` | features, - |  | `model`, whole |",
    ):
        assert row in page


def test_the_page_of_metrics_has_what_the_server_counts():
    pytest.importorskip("prometheus_client")
    page = site_pages.metrics_page()
    assert "| `griffin_time_to_first_token_seconds` | histogram | `model_name` |" in page
    assert "| `griffin_errors` | counter | `model_name`, `kind` |" in page
    text = (DOCS / "serving" / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"`(griffin_\w+?)(?:_total)?[`{]", text):
        assert f"| `{name}` |" in page, name


def test_the_glossary_has_every_shape_letter():
    from griffin_jax import models

    letters = re.findall(r"(?:^|  )([A-Z]) [a-z]", models.__doc__, re.MULTILINE)
    glossary = (DOCS / "reference" / "glossary.md").read_text(encoding="utf-8")
    assert len(letters) > 8
    assert all(f"\n| {letter} | " in glossary for letter in letters)


def prose(page):
    """A page without its code."""
    blocks_gone = re.sub(r"^ *```.*?^ *```", "", page.read_text("utf-8"), flags=re.DOTALL | re.M)
    return re.sub(r"`[^`\n]+`", "CODE", blocks_gone)


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    for title in re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


def test_links_between_the_repositorys_pages_lead_somewhere():
    """mkdocs checks the links of the site; the README and dev are not on it, and a repository has other anchors."""
    pages = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "dev").rglob("*.md")]
    for page in pages:
        for target, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)", prose(page)):
            path = page.parent / target if target else page
            assert path.exists(), f"{page}: {target}"
            if anchor and path.suffix == ".md":
                assert anchor in anchors(path), f"{page}: {target}#{anchor}"


def test_pages_of_figures_say_when_and_how_these_were_recorded():
    pages = [page for page in (DOCS / "benchmarks").glob("*.md") if page.name != "README.md"]
    pages += [DOCS / "evaluation" / f"{name}.md" for name in ("quality", "safety", "forking")]
    pages += [DOCS / name / "README.md" for name in ("quantization", "tpu", "griffin-tiny")]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert re.search(
            r"Recorded on \d{4}-\d\d-\d\d at commit \w{7}\+?: `python -m experiments\.\w+", text
        ), page
