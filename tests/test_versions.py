"""A JAX that was not tried is met in one line where the package is imported."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jaxlib
import pytest

from griffin_jax import versions

ROOT = Path(__file__).parents[1]
TRIED = "tried are jax and jaxlib " + ", ".join(versions.TRIED)


def imported(folder, **modules):
    """The last line of errors of importing the package beside modules of this text, and its status."""
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", "import griffin_jax"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    return done.stderr.strip().splitlines()[-1], done.returncode


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            {"jax": "__version__ = '0.9.1'", "jaxlib": "__version__ = '0.9.1'"},
            "jax 0.9.1 is too old for griffin_jax",
        ),
        (
            {"jax": "raise RuntimeError('jaxlib 0.9 is\\ntoo old')"},
            "griffin_jax cannot import JAX (jaxlib 0.9 is too old)",
        ),
        (
            {"jax": "raise ModuleNotFoundError('jax requires jaxlib to be installed')"},
            "griffin_jax cannot import JAX (jax requires jaxlib to be installed)",
        ),
    ],
)
def test_a_jax_that_cannot_serve_ends_the_import(tmp_path, modules, message):
    line, status = imported(tmp_path, **modules)
    assert line == f'ImportError: {message}; {TRIED}: pip install -U "jax>={versions.OLDEST}"'
    assert status == 1


@pytest.mark.parametrize(
    ("version", "library", "message"),
    [
        ("0.13.0", "0.13.0", "jax 0.13.0 is newer than what griffin_jax was tried with; " + TRIED),
        ("1.0", "1.0", "jax 1.0 is newer than"),
        ("0.12.3", "0.12.0", "jax 0.12.3 is beside jaxlib 0.12.0; " + TRIED),
    ],
)
def test_a_jax_that_was_not_tried_is_a_warning_at_the_line_that_imports(
    monkeypatch, version, library, message
):
    monkeypatch.setattr(jax, "__version__", version)
    monkeypatch.setattr(jaxlib, "__version__", library)
    with pytest.warns(RuntimeWarning, match=re.escape(message)) as found:
        versions.check()
    assert len(found) == 1


@pytest.mark.parametrize("version", [*versions.TRIED, "0.12.0.1", "0.12.9", "0.11.0.dev20260101"])
def test_nothing_is_said_of_what_was_tried(monkeypatch, recwarn, version):
    monkeypatch.setattr(jax, "__version__", version)
    monkeypatch.setattr(jaxlib, "__version__", version)
    versions.check()
    assert not recwarn


def test_the_oldest_is_the_one_that_the_installation_asks_for():
    assert f'"jax>={versions.OLDEST}"' in (ROOT / "setup.py").read_text(encoding="utf-8")
