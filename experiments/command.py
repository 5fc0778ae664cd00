"""What every command does around its own work."""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app, flags, logging
from ml_collections import config_flags

from experiments import processes

if TYPE_CHECKING:
    import jax

_VERBOSE = flags.DEFINE_bool(
    "verbose", False, "Say on standard error which kernel serves which operation."
)
# What takes less memory, by the fields of a config.
_SMALLER = {
    "batch_size": "a smaller --config.batch_size",
    "microbatches": "more --config.microbatches",
    "remat": "--config.remat=block",
    "loss_chunks": "more --config.loss_chunks",
    "seq_len": "a shorter --config.seq_len",
    "max_length": "a shorter --config.max_length",
    "max_new_tokens": "fewer --config.max_new_tokens",
    "quantization": "--config.quantization=nf4",
    "model": "a model packed by `python -m experiments.pack`",
    "dtype": "--config.dtype=bfloat16",
    "mesh": "a --config.mesh of more devices",
    "models": "fewer or smaller --config.models",
}
# Values that take least already.
_LEAST = {"batch_size": 1, "remat": "block", "dtype": "bfloat16"}
# What a driver of NVIDIA's leaves where it has found a GPU.
_NVIDIA = (Path("/dev/nvidia0"), Path("/proc/driver/nvidia/gpus"))
# Where JAX looks for one: in a container, and in the Linux of Windows, there may be no other trace.
_SEEN_BY_JAX = (Path("/dev/nvidia0"), Path("/dev/nvidiactl"), Path("/dev/dxg"))
# How JAX begins when it cannot have a platform that JAX_PLATFORMS names.
_NO_BACKEND = "Unable to initialize backend"
flags.disclaim_key_flags()  # --help shows what is defined here with the command's own flags


def define_config(default: str) -> flags.FlagHolder:
    """The flag --config, a file in configs/ unless the user names another one."""
    path = Path(__file__).parents[1] / "configs" / default
    try:
        holder = config_flags.DEFINE_config_file("config", str(path), "The experiment.")
    except (AttributeError, KeyError) as error:  # a field of the default that is none
        _end(f"--config: {path} has no field {error}")
    flags.declare_key_flag("config")
    return holder


def run(main: Callable[[], None]) -> None:
    """Parses flags and runs `main`; bad input ends in one line on standard error and status 1.

    So does memory that runs out. Programs that JAX compiles are kept for the next run.
    `--verbosity=1` shows the traceback of an error. Where the command is one of several processes,
    it joins the others first.
    """

    def guarded(argv):
        if len(argv) > 1:
            _end(f"{argv[1]!r} is no flag; flags look like --name=value")
        from griffin_jax.compilation_cache import enable_compilation_cache
        from griffin_jax.kernels import choice

        choice.verbose = _VERBOSE.value
        enable_compilation_cache()
        if not logging.level_debug():
            logging.set_verbosity(logging.WARNING)
        try:
            processes.start()
            if hint := missing_plugin():
                print(f"[{hint}]", file=sys.stderr)
            check_platform()
            main() if logging.level_debug() else _within_memory(main)
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            if logging.level_debug():
                raise
            if processes.several():
                processes.end_after(error, _tell)
            if isinstance(error, RuntimeError) and not str(error).startswith(_NO_BACKEND):
                raise
            _end(error)
        except KeyboardInterrupt:
            sys.exit(130)

    app.run(guarded, flags_parser=_parse_flags)


def missing_plugin() -> str | None:
    """What to install where there is an NVIDIA GPU that JAX cannot use; None where all is well.

    Devices are left alone: a command may yet say how much of their memory JAX is to take.
    """
    if "cpu" in os.environ.get("JAX_PLATFORMS", "") or not any(map(Path.exists, _NVIDIA)):
        return None
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    if any("cuda" in plugin.name for plugin in plugins):
        return None
    return (
        "there is an NVIDIA GPU, and JAX runs on the CPU alone: "
        'pip install -U "jax[cuda13]" (or "jax[cuda12]" under older drivers)'
    )


def check_platform() -> None:
    """Raises ValueError where JAX_PLATFORMS asks for NVIDIA's GPUs alone and there is none.

    JAX would end in an assertion, while it says itself what it lacks of other platforms.
    """
    if os.environ.get("JAX_PLATFORMS") == "cuda" and not any(map(Path.exists, _SEEN_BY_JAX)):
        raise ValueError(
            "JAX_PLATFORMS=cuda, and there is no NVIDIA GPU here; try JAX_PLATFORMS=cpu"
        )


def check_batch(lm, config, texts: list[str]) -> None:
    """Raises ValueError where the device cannot hold a batch of these prompts."""
    import jax

    from griffin_jax.inference.fitting import too_many_rows

    if lm.mesh is not None:  # whose devices share the rows
        return
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit is None:
        return
    longest = max(len(lm.tokenizer.encode(text)) for text in texts) + config.max_new_tokens
    rows = min(config.batch_size, len(texts))
    if message := too_many_rows(lm.config, lm.params, lm.dtype, longest, limit, rows):
        raise ValueError(f"config.batch_size={config.batch_size}: {message}")


def mesh_of(sizes: Mapping[str, int]) -> "jax.sharding.Mesh | None":
    """The mesh of a config's field `mesh`; None where it is one device of one process.

    Raises:
      ValueError: the sizes do not make up the devices, or there is no such axis.
    """
    import jax

    from griffin_jax.sharding import AXES, MeshShape, make_mesh

    if unknown := sorted(set(sizes) - set(AXES)):
        raise ValueError(f"config.mesh has no axis {unknown[0]!r}; there are {', '.join(AXES)}")
    shape = MeshShape(**sizes)
    if shape == MeshShape() and jax.process_count() == 1:
        return None
    return make_mesh(**shape.sizes())


def machine() -> str:
    """The processor, and the accelerator if there is one, for reports."""
    import jax

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    cores = f"{name}, {os.cpu_count()} cores"
    device = jax.devices()[0]
    return cores if device.platform == "cpu" else f"{device.device_kind} ({cores})"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with columns lined up, the first to the left, the rest to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells):
        first, *rest = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(head), line(rule), *map(line, rows)])


def _parse_flags(argv):
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        text = str(error).strip()
        _end(text.splitlines()[-1] if "Traceback" in text else text)  # raised in a config file
    except (AttributeError, KeyError) as error:  # of ml_collections, not of flags
        _end(f"--config: not a config file, or it has no such field: {error}")


def _within_memory(main):
    from griffin_jax.benchmarks.memory import OutOfMemory, meeting_limits

    try:
        with meeting_limits():
            main()
    except OutOfMemory as error:
        raise ValueError(f"memory does not suffice ({error}); {_what_takes_less()}") from None


def _what_takes_less() -> str:
    config = flags.FLAGS["config"].value if "config" in flags.FLAGS else None
    fields = {
        field: value
        for field, value in dict(config or {}).items()
        if field not in _LEAST or value != _LEAST[field]
    }
    if fields.get("quantization"):  # on already, or what the command is about
        del fields["quantization"]
    if "max_new_tokens" not in fields:  # a shape, or a model that is trained or packed
        fields.pop("model", None)
    hints = [hint for field, hint in _SMALLER.items() if field in fields]
    if not hints:
        return "give it less at once, or a model packed by `python -m experiments.pack`"
    text = " or ".join(filter(None, [", ".join(hints[:-1]), hints[-1]]))
    return f"try {text} (--verbosity=1 shows where it ran out)"


def _tell(message):
    print("error: " + " ".join(str(message).split()), file=sys.stderr)


def _end(message):
    _tell(message)
    sys.exit(1)
