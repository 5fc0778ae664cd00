"""The frame of every command: its config, its flags, its errors and its model."""

import difflib
import importlib.metadata
import io
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags, logging
from ml_collections import ConfigDict

from experiments import command_help, config_files, guard, processes

if TYPE_CHECKING:
    import jax

    from griffin_jax import LanguageModel

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
# How errors begin that are the machine's: JAX cannot have a platform that JAX_PLATFORMS names, or a
# process that tokenizes was taken away.
_ENDINGS = ("Unable to initialize backend", "a process that tokenizes has ended")
flags.disclaim_key_flags()  # --help shows what is defined here with the command's own flags


class Config:
    """A command's config.

    Attributes:
      command: Name of the command, a key of `schemas.COMMANDS`.
      default: Its own file in configs/.
      value: The config, checked; there once the command line has been read.
    """

    def __init__(self, command: str, default: str):
        self.command, self.default = command, default
        self._values: ConfigDict | None = None

    @property
    def value(self) -> Any:
        if self._values is None:
            raise RuntimeError("the command line has not been read yet")
        return self._values

    def load(self, choice: config_files.Choice) -> None:
        """Reads the file, and what the command line sets on top of it."""
        from experiments import schemas

        others = {k: v for k, v in schemas.COMMANDS.items() if k != self.command}
        values = config_files.load(choice, self.default, schemas.COMMANDS[self.command], others)
        self._values = ConfigDict(values)


_config: Config | None = None


def define_config(command: str, default: str) -> Config:
    """Defines the flag --config of a command: a file in configs/ unless the user names another."""
    global _config
    _config = Config(command, default)
    return _config


def run(main: Callable[[], None]) -> None:
    """Parses flags and runs `main`; bad input ends in one line on standard error and status 1.

    So do memory that runs out, a disk that is full and an output that is closed. Programs that JAX
    compiles are kept for the next run. `--verbosity=1` shows the traceback of an error. Where the
    command is one of several processes, it joins the others first.
    """

    def guarded(argv):
        from griffin_jax.compilation_cache import enable_compilation_cache
        from griffin_jax.kernels import choice

        if sys.stdout is None:
            raise ValueError("standard output is closed; send it to a file, or to /dev/null")
        if isinstance(sys.stdout, io.TextIOWrapper):  # a text may hold what its encoding lacks
            sys.stdout.reconfigure(errors="backslashreplace")
        choice.verbose = _VERBOSE.value
        enable_compilation_cache()
        if not logging.level_debug():
            logging.set_verbosity(logging.WARNING)
        processes.start()
        if hint := missing_plugin():
            print(f"[{hint}]", file=sys.stderr)
        check_platform()
        guard.take_over()  # what is heavy has been imported
        if logging.level_debug():
            main()
        else:
            _within_memory(main)
        sys.stdout.flush()  # a disk may be full

    try:
        app.run(
            lambda argv: _guard(lambda: guarded(argv)),
            flags_parser=lambda argv: _parse_flags(argv, sys.modules[main.__module__]),
        )
    except KeyboardInterrupt:  # before the command began
        sys.exit(guard.INTERRUPTED)


def _guard(work: Callable[[], None]) -> None:
    """Runs `work`; what a user can mend ends in one line."""
    try:
        work()
    except (ValueError, OSError, ImportError, RuntimeError, RecursionError) as error:
        if logging.level_debug():
            raise
        if processes.several():
            processes.end_after(error, guard.tell)
        if type(error) is RuntimeError and not str(error).startswith(_ENDINGS):
            raise
        if isinstance(error, BrokenPipeError) or _is_closed(sys.stdout):
            _let_go_of_output()
        _end(guard.describe(error))
    except KeyboardInterrupt:
        _let_go_of_output()
        sys.exit(guard.INTERRUPTED)


def _is_closed(stream) -> bool:
    return stream is None or stream.closed


def _let_go_of_output() -> None:
    """Keeps the interpreter from a second complaint when it flushes what nobody reads."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, it lasts as long as the process


def missing_plugin() -> str | None:
    """Returns what to install where there is an NVIDIA GPU that JAX cannot use; None where all is
    well.

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

    from griffin_jax.inference.device_memory import too_many_rows

    if lm.mesh is not None:  # whose devices share the rows
        return
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit is None:
        return
    longest = max(len(lm.tokenizer.encode(text)) for text in texts) + config.max_new_tokens
    rows = min(config.batch_size, len(texts))
    if message := too_many_rows(lm.config, lm.params, lm.dtype, longest, limit, rows):
        raise ValueError(f"config.batch_size={config.batch_size}: {message}")


def load_model(model: str, **options: Any) -> "LanguageModel":
    """Returns `griffin_jax.load` of a model that is to read text, with these options.

    Raises:
      ValueError: it has no tokenizer; or as `griffin_jax.load`.
    """
    from griffin_jax import load

    lm = load(model, **options)
    if lm.tokenizer is None:
        raise ValueError(f"{model} has no tokenizer; put its tokenizer.model there")
    return lm


def mesh_of(sizes: Mapping[str, int]) -> "jax.sharding.Mesh | None":
    """Returns the mesh of a config's field `mesh`; None where it is one device of one process.

    Raises:
      ValueError: the sizes do not make up the devices, or there is no such axis.
    """
    from griffin_jax.sharding import AXES, MeshShape, mesh_unless_one

    if unknown := sorted(set(sizes) - set(AXES)):
        raise ValueError(f"config.mesh has no axis {unknown[0]!r}; there are {', '.join(AXES)}")
    return mesh_unless_one(MeshShape(**sizes))


def machine() -> str:
    """Returns the processor, and the accelerator if there is one, for reports."""
    import jax

    from griffin_jax.host import processor

    cores = f"{processor()}, {os.cpu_count()} cores"
    device = jax.devices()[0]
    return cores if device.platform == "cpu" else f"{device.device_kind} ({cores})"


def _parse_flags(argv, module):
    rest = None

    def parse():
        nonlocal rest
        choice, words = config_files.split_arguments(argv[1:], flags.FLAGS)
        if _config is None and (choice.file or choice.fields):
            raise ValueError("this command has no --config; --help lists its flags")
        if command_help.is_asked_for(words):
            print(guard.as_called(command_help.page(module, _config)))
            sys.exit(0)
        try:
            rest = flags.FLAGS([argv[0], *words])
        except flags.UnrecognizedFlagError as error:
            raise ValueError(_of_unknown_flag(error, module)) from None
        except flags.Error as error:
            raise ValueError(str(error).strip()) from None
        if len(rest) > 1:
            raise ValueError(f"{rest[1]!r} is no flag; flags look like --name=value")
        if _config is not None:
            _config.load(choice)

    _guard(parse)
    return rest


def _of_unknown_flag(error, module):
    """Returns what to say of a flag that there is not; fields of the config are often taken for flags."""
    name = error.flagname
    fields = [] if _config is None else [x for x, _, _ in command_help.fields(_config)]
    if name in fields:
        return f"--{name} is a field of the config: write --config.{name}"
    known = {x.name: f"--{x.name}" for x in flags.FLAGS.get_key_flags_for_module(module)}
    known |= {field: f"--config.{field}" for field in fields}
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {known[near[0]]}?" if near else "--help lists what there is"
    return f"Unknown command line flag {name!r}; {hint}"


def _within_memory(main):
    from griffin_jax.benchmarks.memory import OutOfMemory, meeting_limits

    try:
        with meeting_limits():
            main()
    except OutOfMemory as error:
        raise ValueError(f"memory does not suffice ({error}); {_what_takes_less()}") from None


def _what_takes_less() -> str:
    config = None if _config is None else _config.value
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


def _end(message):
    guard.tell(message)
    sys.exit(1)
