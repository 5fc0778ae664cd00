"""What every command does around its own work."""

import os
import platform
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

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

    Programs that JAX compiles are kept for the next run. `--verbosity=1` shows the traceback of an
    error.
    """

    def guarded(argv):
        if len(argv) > 1:
            _end(f"{argv[1]!r} is no flag; flags look like --name=value")
        from griffin_jax.compilation_cache import enable_compilation_cache

        enable_compilation_cache()
        if not logging.level_debug():
            logging.set_verbosity(logging.WARNING)
        try:
            main()
        except (ValueError, OSError, ImportError) as error:
            if logging.level_debug():
                raise
            _end(error)
        except KeyboardInterrupt:
            sys.exit(130)

    app.run(guarded, flags_parser=_parse_flags)


def peak_memory() -> int:
    """Bytes of memory that this process has had at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


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


def _end(message):
    sys.exit("error: " + " ".join(str(message).split()))
