"""Which part of the package may import which, and that no module leans on an order of imports."""

import ast
import functools
import graphlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import griffin_jax

ROOT = Path(griffin_jax.__file__).parent
# From the ground up: a room imports itself and rooms before it.
ROOMS = (
    *(
        "versions",
        "fields",
        "config",
        "errors",
        "foreign_settings",
        "paths",
        "locks",
        "text_files",
        "host",
        "markdown",
        "progress",
        "plotting",
        "files",
        "provenance",
        "compilation_cache",
    ),
    *("devices", "weight", "layer_of"),
    *("quantization", "kernels", "sharding", "models", "inputs"),
    *("chat_templates", "tokenizer_files", "tokenizer_base", "tokenizer", "checkpoints"),
    *("inference", "tracing", "language_model", "loading"),
    *("training", "evaluation", "serving", "benchmarks", "studies", "ahead_of_time", "console"),
)
# One of each room that has been part of a circle, as the first of the package to be imported.
FIRST = ("kernels.packed_matmul", "quantization.bitsandbytes", "sharding.trees", "models.linear")
ALONE = """
import importlib, sys
for name in sys.argv[1:]:
    for loaded in [x for x in sys.modules if x.partition(".")[0] == "griffin_jax"]:
        del sys.modules[loaded]
    importlib.import_module(f"griffin_jax.{name}")
"""
# The same of every module, each in a process of its own that has imported other projects' code only.
EACH = """
import importlib, os, sys
import jax, flax.linen, optax
for name in sys.argv[1:]:
    if not (child := os.fork()):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:  # of an extra that is not installed
            if error.name.partition(".")[0] == "griffin_jax":
                raise
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{name} does not import alone")
"""
# What a process that imports the package alone has loaded of it, and of what takes long to import.
BARE = """
import sys
import griffin_jax
print(*sorted(m for m in sys.modules if m.split(".")[0] in ("griffin_jax", "flax", "optax")))
import griffin_jax.tokenizer
assert griffin_jax.Tokenizer is griffin_jax.tokenizer.Tokenizer
assert griffin_jax.sharding.__name__ == "griffin_jax.sharding"
assert not hasattr(griffin_jax, "nothing") and "load" in dir(griffin_jax)
"""


@functools.cache
def modules():
    """The file of each module of the package, by its name without the package's."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def imports(name):
    """What a module imports of the package: (module, line), wherever in the file it does."""
    found = []
    for node in ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}:{node.lineno} is relative"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for target in names:
            package, _, inner = target.partition(".")
            if package == "griffin_jax" and inner:
                whole = inner in modules()
                found.append((inner if whole else inner.rpartition(".")[0], node.lineno))
    return found


def packages(name):
    parts = name.split(".")
    return {".".join(parts[:i]) for i in range(1, len(parts))}


def test_no_import_runs_back_up():
    rooms = {name: name.split(".")[0] for name in modules() if name}
    unknown = set(rooms.values()) - set(ROOMS)
    assert not unknown, f"give these a place in ROOMS: {unknown}"
    found = [(name, target, line) for name in rooms for target, line in imports(name) if target]
    assert len(found) > 400
    up = [
        f"{name}:{line} imports {target}"
        for name, target, line in found
        if ROOMS.index(target.split(".")[0]) > ROOMS.index(rooms[name])
    ]
    assert not up


def test_imports_make_no_circle():
    graph = {}
    for name in filter(None, modules()):
        targets = {target for target, _ in imports(name) if target}
        # A package is entered before its modules; one that is entered already is not waited for.
        entered = {name, *packages(name)}
        graph[name] = targets | set().union(*map(packages, targets)) - entered
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_modules_import_alone():
    run = subprocess.run([sys.executable, "-c", ALONE, *FIRST], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="imports each module in a fork")
def test_every_module_imports_alone():
    names = ["griffin_jax" + (name and f".{name}") for name in modules() if "__main__" not in name]
    run = subprocess.run([sys.executable, "-c", EACH, *names], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_package_imports_little_and_the_rest_where_it_is_used():
    run = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr.splitlines()[-1]
    assert run.stdout.split() == ["griffin_jax", "griffin_jax.versions"]


def test_every_name_of_the_package_says_where_it_is():
    text = modules()[""].read_text(encoding="utf-8")
    (block,) = (node for node in ast.parse(text).body if isinstance(node, ast.If))
    shown = {alias.name: line.module for line in block.body for alias in line.names}
    assert shown == {name: f"griffin_jax.{module}" for name, module in griffin_jax._MODULES.items()}
    assert {*shown, "__version__"} == set(griffin_jax.__all__)
