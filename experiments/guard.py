"""Ctrl-C and failing imports, from the first import of a command on; nothing heavy is imported here.

`experiments/__init__.py` begins it where Python runs `-m experiments.NAME`, `griffin_jax.console` where
the console script does: until the command itself has Ctrl-C in hand, Ctrl-C ends the process on the
spot, and an import that fails is one line.
"""

import errno
import re
import signal
import sys
from pathlib import Path
from types import TracebackType

# A shell's convention: 128 and the signal's number.
INTERRUPTED = 130
_CONSOLE_SCRIPT = "griffin-jax"


def begin() -> None:
    """Takes Ctrl-C and failing imports in hand, where a command is being started."""
    sys.excepthook = _one_line
    # Nothing has been written yet, and modules that are interrupted half-way print tracebacks.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def take_over() -> None:
    """Makes Ctrl-C a KeyboardInterrupt again, so that what is under way can clean up."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def tell(message: object) -> None:
    """Says on standard error, in one line, what went wrong."""
    print("error: " + " ".join(as_called(str(message)).split()), file=sys.stderr)


def as_called(text: str) -> str:
    """Names commands and configs in a text the way in which this process was started.

    Texts say `python -m experiments.NAME` and `configs/NAME.py`, as one calls them in a checkout. The
    console script has `griffin-jax NAME`, and config files go by their bare names.
    """
    if Path(sys.argv[0]).stem != _CONSOLE_SCRIPT:
        return text
    text = re.sub(r"(?:python -m )?experiments\.(?=[a-z])", f"{_CONSOLE_SCRIPT} ", text)
    return re.sub(r"(?<![\w/])configs/(\w+)\.py", r"\1", text)


def describe(error: BaseException) -> str:
    """Returns what to say of an error: its message, which some of Python's own lack a subject
    for.
    """
    if isinstance(error, ModuleNotFoundError) and error.name:
        extra = _EXTRAS.get(error.name.partition(".")[0])
        if extra:
            return f"{error}: pip install 'griffin_jax[{extra}]'"
    if isinstance(error, RecursionError):
        return f"something is nested too deeply: {error}"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if (
        isinstance(error, OSError)
        and error.strerror
        and error.errno in (errno.ENOSPC, errno.EDQUOT)
    ):
        return f"standard output: {error.strerror}"  # every file that is written is named
    return str(error) or type(error).__name__


# The extra that brings a package.
_EXTRAS = {
    "grain": "train",
    "tensorboardX": "train",
    "matplotlib": "bench",
    "lm_eval": "eval",
    "datasets": "eval",
    "huggingface_hub": "hf",
    "starlette": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "llguidance": "serve",
    "tokenizers": "hf",
    "libtpu": "tpu",
    "torch": "parity",
    "transformers": "parity",
}


def _one_line(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    verbose = any(x.startswith(("--verbosity=1", "-v=1", "--v=1")) for x in sys.argv)
    if issubclass(kind, KeyboardInterrupt):
        return
    if verbose or not issubclass(kind, ImportError | OSError | ValueError):
        sys.__excepthook__(kind, error, traceback)
        return
    tell(describe(error))
