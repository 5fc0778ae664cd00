"""One process per job."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from griffin_jax.benchmarks.tasks import Job

_COMMAND = ["-m", "griffin_jax.benchmarks.worker"]


def run_apart(job: Job) -> Iterator[dict[str, Any]]:
    """Runs `tasks.run` in a process of its own.

    A process that dies makes a row with the status "failed" and its exit status, and the rows that
    it gave before stay.

    Raises:
      ValueError: what the job raised there, as one line.
    """
    environment = os.environ | ({"JAX_PLATFORMS": "cpu"} if job.leaves_device_alone else {})
    process = subprocess.Popen(
        [sys.executable, *_COMMAND],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        process.stdin.write(job.to_json() + "\n")
        process.stdin.close()
        for line in process.stdout:
            row = json.loads(line)
            if "error" in row and "what" not in row:
                raise ValueError(row["error"])
            yield row
        status = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        process.stdout.close()
    if status:
        reason = f"signal {-status}, as a machine without memory sends" if status < 0 else status
        yield {
            "what": job.kind,
            "model": job.model,
            "status": "failed",
            "message": f"its process ended with {reason}; its standard error says more",
        }
