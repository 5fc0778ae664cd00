"""Writes docs/notebooks/*.ipynb anew from the tutorials: python docs/notebooks.py

The tutorials are what is edited and what tests run; a notebook is the same text and code as cells.
"""

import json
import re
from pathlib import Path

DOCS = Path(__file__).parent
TUTORIALS = ("sample", "state", "pack", "lora", "train")
REPOSITORY = "https://github.com/USER/griffin_jax"
_BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```\n", re.DOTALL | re.MULTILINE)


def notebook(page: str) -> dict:
    """Returns the notebook of a tutorial's text, as nbformat 4.4 has it."""
    title, _, rest = page.partition("\n\n")
    cells = [
        _text(title),
        _text(_COLAB),
        _code(f'%pip install -q "griffin_jax[train] @ git+{REPOSITORY}"'),
    ]
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
    'On Colab, a CPU runtime will do. With a GPU, run `%pip install -q "jax[cuda13]"` too; with a TPU, '
    '`%pip install -q "jax[tpu]"`; then restart the session.'
)


def _shell(code: str) -> str:
    """Returns commands as an installed package has them."""
    code = re.sub(r"^pip install .*\n", "", code, flags=re.MULTILINE)
    code = code.replace("python -m experiments.", "griffin-jax ")
    code = re.sub(r"configs/(\w+)\.py", r"\1", code)
    return f"%%bash\n{code}" if code.strip() else ""


def _text(text: str) -> dict:
    # Links to other pages lead to where they stand.
    text = re.sub(
        r"\]\((?!\w+:)\.?/?([^)]*)\)", rf"]({REPOSITORY}/blob/main/docs/tutorials/\1)", text
    )
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


def encoded(name: str) -> str:
    """Returns the file of a tutorial's notebook."""
    page = (DOCS / "tutorials" / f"{name}.md").read_text(encoding="utf-8")
    return json.dumps(notebook(page), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for tutorial in TUTORIALS:
        (DOCS / "notebooks" / f"{tutorial}.ipynb").write_text(encoded(tutorial), encoding="utf-8")
