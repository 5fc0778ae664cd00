"""What every test runs under."""

import gc
import importlib.util
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if os.environ.get("GRIFFIN_PARITY") != "1" and os.environ["JAX_PLATFORMS"] == "cpu":
    # The plain run is mostly compilation of small programs that run once. The live comparisons, and
    # runs on an accelerator, compile as users do.
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    )

# What one worker, or one run, has compiled the next one loads, if that took long: small programs are
# compiled anew in the time that writing them takes.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache/compiled")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

import jax
import pytest

ROOT = Path(__file__).parent
# Folders and files with more than a few seconds of tests.
LONG = (
    *("sharding/test_eight_devices.py", "sharding/test_processes.py", "models/test_stack.py"),
    *("models/test_residual_step.py", "models/test_causality.py", "models/test_lookahead.py"),
    *(
        "models/test_attention_rows.py",
        "models/test_gated_mlp.py",
        "models/test_recurrent_rows.py",
    ),
    *("models/test_gated_recurrences.py", "experiments/", "parity/", "kernels/", "goldens/"),
    *("training/test_loop.py", "training/test_lora.py", "training/test_train_step.py"),
    *("training/test_devices.py", "training/test_corpus.py", "training/test_evaluate.py"),
    *("training/test_own_loop.py", "benchmarks/test_jobs.py", "studies/test_study.py"),
    *("tracing/test_trace.py", "tracing/test_page.py", "evaluation/test_harness.py"),
    *("inference/test_forking.py", "inference/test_speculation.py", "test_jax_settings.py"),
    *("checkpoints/test_load_memory.py", "ahead_of_time/test_compile.py", "test_rooms.py"),
    *("test_platforms.py", "serving/"),
)
ORACLES = ("torch", "transformers", "accelerate", "bitsandbytes", "recurrentgemma")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, and another folder to work in."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def missing(names):
    return [name for name in names if importlib.util.find_spec(name) is None]


def pytest_configure(config):
    """Under GRIFFIN_PARITY=1 nothing may be left out for want of an oracle."""
    absent = missing((*ORACLES, "peft"))
    if os.environ.get("GRIFFIN_PARITY") == "1" and absent:
        raise pytest.UsageError(f"GRIFFIN_PARITY=1, but {', '.join(absent)} is not installed")


def pytest_collection_finish():
    """What tests trace stays alive, so that looking for garbage among it often finds little."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """No workers for the tests of one file, which would stay together anyway."""
    files = {argument.partition("::")[0] for argument in config.args}
    return 0 if len(files) == 1 and files.pop().endswith(".py") else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Files that take long come first, and what is not among them is quick."""
    if (
        jax.default_backend() == "gpu"
    ):  # whose float32 products are of 10 bits unless told otherwise
        jax.config.update("jax_default_matmul_precision", "highest")
    items.sort(key=lambda item: not _takes_long(item))
    for item in items:
        if not _takes_long(item) and item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.quick)
        if jax.default_backend() == "gpu":  # where what JAX is about to remove still serves
            item.add_marker(
                pytest.mark.filterwarnings("ignore:The Pallas Triton:DeprecationWarning")
            )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    """Frees what a file's tests compiled, once that is much.

    Each program that XLA compiles for a CPU takes several mappings, of which Linux gives a process
    65,530 (vm.max_map_count); the compiler crashes where there are no more.
    """
    result = yield
    if (nextitem is None or nextitem.path != item.path) and _mappings() > 15_000:
        jax.clear_caches()
        gc.collect()
    return result


def _mappings():
    """The mappings of this process's memory; 0 where the system does not say."""
    maps = Path("/proc/self/maps")
    return len(maps.read_bytes().splitlines()) if maps.exists() else 0


def _takes_long(item):
    path = item.path.relative_to(ROOT).as_posix()
    return path.startswith(LONG)


def pytest_runtest_setup(item):
    """Skips `parity` tests where an oracle is missing.

    In the other tests, a shape mistake that broadcasting would hide is an error. The oracles' own
    code broadcasts that way.
    """
    parity = item.get_closest_marker("parity") is not None
    jax.config.update("jax_numpy_rank_promotion", "allow" if parity else "raise")
    if parity and (absent := missing(ORACLES)):
        pytest.skip(f"the [parity] extra is not installed: no {', '.join(absent)}")
