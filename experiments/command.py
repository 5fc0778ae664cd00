"""What every command does around its own work."""

import sys
from collections.abc import Callable

from absl import app, logging


def run(main: Callable[[], None]) -> None:
    """Parses flags and runs `main`; bad input ends in one line on standard error and status 1.

    Programs that JAX compiles are kept for the next run. `--verbosity=1` shows the traceback of an
    error.
    """

    def guarded(argv):
        if len(argv) > 1:
            raise app.UsageError(f"no flag: {argv[1]!r}; flags look like --name=value")
        from griffin_jax.compilation_cache import enable_compilation_cache

        enable_compilation_cache()
        try:
            main()
        except (ValueError, OSError, ImportError) as error:
            if logging.level_debug():
                raise
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit(130)

    app.run(guarded)
