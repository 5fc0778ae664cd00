"""What every command does around its own work."""

import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags


def define_config(default: str) -> flags.FlagHolder:
    """The flag --config, a file in configs/ unless the user names another one."""
    path = Path(__file__).parents[1] / "configs" / default
    try:
        return config_flags.DEFINE_config_file("config", str(path), "The experiment.")
    except (AttributeError, KeyError) as error:  # a field of the default that is none
        _end(f"--config: {path} has no field {error}")


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
        try:
            main()
        except (ValueError, OSError, ImportError) as error:
            if logging.level_debug():
                raise
            _end(error)
        except KeyboardInterrupt:
            sys.exit(130)

    app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(argv):
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:  # of ml_collections, not of flags
        _end(f"--config: not a config file, or it has no such field: {error}")


def _end(message):
    sys.exit("error: " + " ".join(str(message).split()))
