"""Writes docs/notebooks/*.ipynb anew from the tutorials, and runs them: python docs/notebooks.py

The tutorials are what is edited. A notebook is the same text and code as cells, with the outputs of its
last run. `python docs/notebooks.py NAME ...` runs these alone; it needs the extra [train].
"""

import ast
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
TUTORIALS = ("sample", "state", "inside", "induction", "steer", "pack", "lora", "train")
# Blocks that a comment stands above are not run; they stay text.
_BLOCK = re.compile(r"(?<! -->\n)^```(python|sh)\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
_COMMAND = "griffin-jax"
_MAGIC = "%%bash\n"


def notebook(page: str) -> dict:
    """Returns the notebook of a tutorial's text without outputs, as nbformat 4.4 has it."""
    title, _, rest = page.partition("\n\n")
    cells = [_text(title), _text(_COLAB), _code(_install())]
    done = 0
    for match in _BLOCK.finditer(rest):
        cells.append(_text(rest[done : match.start()]))
        cells.append(_code(match[2] if match[1] == "python" else _shell(match[2])))
        done = match.end()
    cells.append(_text(rest[done:]))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": [cell for cell in cells if cell["source"]],
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 4,
    }


_COLAB = (
    "**On Colab**, run the next cell first; in a checkout after `pip install -e '.[train]'`, skip it. A CPU runtime "
    'is enough. With a GPU runtime also run `%pip install -q "jax[cuda13]"`, with a TPU runtime '
    '`%pip install -q "jax[tpu]"`, and restart the session.'
)


def _install() -> str:
    """Returns the cell that installs the package: from the repository that mkdocs.yml names, or a wheel."""
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    if address := re.search(r'^repo_url: .*"(http[^"]+)"', settings, re.MULTILINE):
        return f'%pip install -q "griffin_jax[train] @ git+{address[1]}"'
    version = re.search(
        r'__version__ = "(.+)"', (ROOT / "griffin_jax/__init__.py").read_text(encoding="utf-8")
    )[1]
    return (
        "# Upload the wheel that `pip wheel --no-deps .` makes in a checkout.\n"
        f'%pip install -q "./griffin_jax-{version}-py3-none-any.whl[train]"'
    )


def _shell(code: str) -> str:
    """Returns commands as an installed package has them."""
    code = re.sub(r"^pip install .*\n", "", code, flags=re.MULTILINE)
    code = code.replace("python -m experiments.", f"{_COMMAND} ")
    code = re.sub(r"configs/(\w+)\.py", r"\1", code)
    return f"{_MAGIC}{code}" if code.strip() else ""


def _text(text: str) -> dict:
    text = re.sub(r"^<!-- .* -->\n", "", text, flags=re.MULTILINE)
    # Links of the tutorial, as they are from the folder of the notebooks.
    text = re.sub(r"\]\((?!\w+:|\.\./)([^)#]+)", r"](../tutorials/\1", text)
    return {"cell_type": "markdown", "metadata": {}, "source": _lines(text)}


def _code(code: str) -> dict:
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {},
        "outputs": [],
        "source": _lines(code),
    }


def _lines(text: str) -> list[str]:
    return text.strip("\n").splitlines(keepends=True)


def sources(cells: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns kind and text of every cell of a notebook: all of it but outputs."""
    return [(cell["cell_type"], "".join(cell["source"])) for cell in cells["cells"]]


def of_tutorial(name: str) -> dict:
    """Returns the notebook of the tutorial of this name, without outputs."""
    return notebook((DOCS / "tutorials" / f"{name}.md").read_text(encoding="utf-8"))


def read(name: str) -> dict:
    """Returns the notebook of this name from its file."""
    return json.loads((DOCS / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))


def run(
    cells: Mapping[str, Any], environment: Mapping[str, str]
) -> Iterator[tuple[dict[str, Any], str]]:
    """Runs a notebook in the working folder, and yields every code cell with what it prints.

    Cells of Python share one namespace of this process, as they share a kernel; those of `%%bash` are
    processes of their own. Cells that install packages are left out.

    Args:
      cells: The notebook.
      environment: Variables of the shells.

    Raises:
      RuntimeError: a command failed; the message has what it wrote. What Python raises is raised.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or "%pip install" in source:
            continue
        if source.startswith(_MAGIC):
            yield cell, _run_shell(source.removeprefix(_MAGIC), environment)
        else:
            yield cell, _run_python(source, f"cell {number}", names)


def _run_shell(code: str, environment: Mapping[str, str]) -> str:
    program = "import sys; sys.argv[0] = '%s'; from griffin_jax.console import main; main()"
    console = f'"{sys.executable}" -c "{program % _COMMAND}" "$@"'
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{_COMMAND}() {{ {console}; }}\n{code}"],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{code}\nended with {done.returncode}: {done.stderr}")
    return done.stdout


def _run_python(code: str, place: str, names: dict[str, Any]) -> str:
    """Runs a cell and returns what it prints, with the value of a last expression, as a kernel shows it."""
    tree = ast.parse(code, place)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, place, "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), place, "eval"), names)
            if value is not None:
                print(repr(value))
    return printed.getvalue()


def _with_outputs(name: str) -> dict:
    """Returns the notebook of a tutorial with the outputs of a run in a folder of its own."""
    made = of_tutorial(name)
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for count, (cell, printed) in enumerate(run(made, {}), 1):
                cell["execution_count"] = count
                printed = printed.replace(os.path.realpath(folder), ".")
                if printed:
                    cell["outputs"] = [
                        {"name": "stdout", "output_type": "stream", "text": _kept(printed)}
                    ]
        finally:
            os.chdir(here)
    return made


def _kept(printed: str) -> list[str]:
    return printed.splitlines(keepends=True)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    for tutorial in sys.argv[1:] or TUTORIALS:
        file = DOCS / "notebooks" / f"{tutorial}.ipynb"
        content = json.dumps(_with_outputs(tutorial), indent=1, ensure_ascii=False)
        file.write_text(content + "\n", encoding="utf-8")
        print(file)
