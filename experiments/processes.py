"""Several processes that run one command together: `jax.distributed`, as asked for or detected."""

import glob
import importlib.util
import os
import re
import sys
import time
from collections.abc import Callable

from absl import flags

_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    None,
    "This process is one of several that run the same command: on every host of a TPU slice, or "
    "under Slurm or Open MPI. By default as detected; --nodistributed runs it alone.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where nothing tells the processes of each other."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator: how many.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator: which one, from 0.")

# Seconds after which a process that does not answer is taken for dead.
_HEARTBEAT = 60
_LAST_WORDS = 2.0
# How the libraries between processes say that one of them is not there.
_LOST = re.compile(
    r"gloo|nccl|coordination service|connection (closed|reset|refused)|barrier"
    r"|DEADLINE_EXCEEDED|UNAVAILABLE|heartbeat",
    re.IGNORECASE,
)


def start() -> None:
    """Joins the other processes if there are any; from then on the first alone prints.

    Raises:
      ValueError: the flags contradict each other, or the processes do not find each other.
      ImportError: the run is on Pathways, and `pathwaysutils` is not installed.
    """
    if "proxy" in os.environ.get("JAX_PLATFORMS", ""):
        _start_pathways()
        return
    arguments = _arguments()
    if arguments is None:
        return
    import jax

    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=_HEARTBEAT)
    except (ValueError, RuntimeError) as error:
        if _DISTRIBUTED.value is None and "defined" in str(error):
            return  # chips, but nothing that knows of a slice
        raise ValueError(
            f"the processes do not find each other ({error}); give --coordinator, --num_processes "
            "and --process_id, or --nodistributed for one process alone"
        ) from error
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, it lasts as long as the process


def end_after(error: BaseException, tell: Callable[[str], None]) -> None:
    """Ends a process whose run with others has failed, without waiting for them."""
    import jax

    who = f"process {jax.process_index()} of {jax.process_count()}"
    if _LOST.search(str(error)):
        reason = str(error).splitlines()[0][:200]
        tell(
            f"{who}: another process has ended or cannot be reached ({reason}); start all of them "
            "again, and a training run goes on from its last checkpoint"
        )
    else:
        tell(f"{who}: {error}")
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:
        # The others lose their service with this process: what they have to say comes first. What
        # the service itself may say meanwhile, at length, is about the same.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        time.sleep(_LAST_WORDS)
    os._exit(1)  # the usual way out waits for processes that are not there


def several() -> bool:
    """Returns whether this process is one of several, which no backend is asked for."""
    import jax

    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Returns whether this process is alone or the first of several, which no backend is asked
    for.
    """
    import jax

    return not several() or jax.process_index() == 0


def _arguments() -> dict | None:
    """For `jax.distributed.initialize`; None for a process alone."""
    named = {
        "coordinator_address": _COORDINATOR.value or os.environ.get("JAX_COORDINATOR_ADDRESS"),
        "num_processes": _number(_NUM_PROCESSES, "JAX_NUM_PROCESSES"),
        "process_id": _number(_PROCESS_ID, "JAX_PROCESS_ID"),
    }
    if _DISTRIBUTED.value is False:
        return None
    if named["coordinator_address"] is not None:
        count, index = named["num_processes"], named["process_id"]
        if count is None or index is None or not 0 <= index < count:
            raise ValueError(
                "--coordinator goes with --num_processes=N and --process_id from 0 to N - 1 "
                f"(or JAX_NUM_PROCESSES and JAX_PROCESS_ID), got {count} and {index}"
            )
        return named | {"cluster_detection_method": "deactivate"}
    given = [flag for flag in (_NUM_PROCESSES, _PROCESS_ID) if flag.value is not None]
    if given:
        raise ValueError(f"--{given[0].name} goes with --coordinator=HOST:PORT of process 0")
    return {} if _DISTRIBUTED.value or _detected() else None


def _number(flag, variable: str) -> int | None:
    if flag.value is not None:
        return flag.value
    text = os.environ.get(variable)
    if text is None:
        return None
    if not text.isdecimal():
        raise ValueError(f"{variable} must be a whole number, got {text!r}")
    return int(text)


def _detected() -> bool:
    environ = os.environ
    if int(environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return True
    if int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return True
    if environ.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu":
        return False
    if "TPU_WORKER_HOSTNAMES" in environ:
        return "," in environ["TPU_WORKER_HOSTNAMES"]
    # A virtual machine of Google Cloud, whose metadata tell of the others.
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def _start_pathways() -> None:
    if importlib.util.find_spec("pathwaysutils") is None:
        raise ImportError("JAX_PLATFORMS=proxy is Pathways: pip install pathwaysutils")
    import pathwaysutils

    pathwaysutils.initialize()
