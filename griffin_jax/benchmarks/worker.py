"""Runs one job in this process: a line of JSON in, a line of JSON out per row.

`isolation` starts it, so that memory, its peak, and whatever may end a process are one job's own.
"""

import json
import os
import sys

from absl import logging

from griffin_jax.benchmarks import tasks
from griffin_jax.compilation_cache import enable_compilation_cache


def main() -> None:
    """Reads the job from standard input; what others print goes to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = tasks.Job.from_json(sys.stdin.readline())
    logging.set_verbosity(job.config.get("verbosity", logging.WARNING))
    enable_compilation_cache()
    try:
        for row in tasks.run(job):
            print(json.dumps(row), file=out, flush=True)
    except (ValueError, OSError, ImportError) as error:
        print(json.dumps({"error": " ".join(str(error).split())}), file=out, flush=True)


if __name__ == "__main__":
    main()
