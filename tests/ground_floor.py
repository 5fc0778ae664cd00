"""Scripts that use the ground floor of griffin_jax alone, which starts in no time."""

import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]
# The package without what its own __init__ imports. Signals are heard that `nohup` and shells have
# ignored by what they run in the background, and by its children.
_BARE = f"""
import signal, sys, types
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
sys.path.insert(0, {str(_ROOT)!r})
package = types.ModuleType("griffin_jax")
package.__path__ = [{str(_ROOT / "griffin_jax")!r}]
sys.modules["griffin_jax"] = package
"""


def command(script: str, *arguments: object) -> list[str]:
    """The command that runs a script with the arguments in sys.argv."""
    return [sys.executable, "-c", _BARE + script, *map(str, arguments)]


def run(script: str, *arguments: object, **options) -> subprocess.CompletedProcess:
    """Runs a script to its end; its output is text."""
    return subprocess.run(command(script, *arguments), text=True, **options)


def start(script: str, *arguments: object) -> subprocess.Popen:
    """Starts a script and returns when it has printed a line."""
    process = subprocess.Popen(
        command(script, *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    return process
