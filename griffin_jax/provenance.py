"""Where figures come from: when, at which commit and by which command they were measured."""

import datetime
import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

_ROOT = Path(__file__).parents[1]
# Flags that name where results go, and so places of one machine.
_PLACES = ("--output", "--run", "--profile", "--cache")
# The folders of an absolute path: only its last part is told.
_ABSOLUTE = re.compile(r"(?<=[=,'\"])/(?:[^,'\"/]*/)*(?=[^,'\"/]+)")


def record(command: str, arguments: Sequence[str]) -> dict[str, str | None]:
    """Returns what files of results say of the process that makes them, as plain values for JSON.

    Args:
      command: The name of a command in experiments/.
      arguments: What it was called with. Flags that say where results go are left out, and so are the
        folders of absolute paths.

    Returns:
      "date", in UTC; "commit", None where that is not known, with a "+" where files differ from it; and
      "command". `GRIFFIN_COMMIT` names the commit of a copy that is no checkout.
    """
    kept = [_ABSOLUTE.sub("", x) for x in arguments if x.partition("=")[0] not in _PLACES]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": os.environ.get("GRIFFIN_COMMIT") or _commit(),
        "command": " ".join(["python", "-m", f"experiments.{command}", *map(_quoted, kept)]),
    }


def sentence(recorded: Mapping[str, str | None] | None) -> str:
    """Returns a sentence for a report of what `record` returned; empty where nothing was recorded."""
    if not recorded:
        return ""
    commit = f" at commit {recorded['commit']}" if recorded.get("commit") else ""
    return f"Recorded on {recorded['date']}{commit}: `{recorded['command']}`"


def _quoted(argument):
    """Returns an argument as a shell takes it, tuples of texts in double quotes."""
    double = "'" in argument and not set(argument) & set('"$`\\!')
    return f'"{argument}"' if double else shlex.quote(argument)


def _commit():
    if not (_ROOT / ".git").exists():  # not that of a repository further up
        return None

    def git(*words):
        done = subprocess.run(
            ["git", "-C", str(_ROOT), *words], capture_output=True, text=True, timeout=20
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "--short=7", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "griffin_jax")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return f"{commit}+" if commit and changed else commit or None
