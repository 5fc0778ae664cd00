"""The settings of a server: where it listens, how much it takes on, who may ask."""

import dataclasses
import os
from pathlib import Path

from griffin_jax import paths
from griffin_jax.fields import check_fields, field

KEY_VARIABLE = "GRIFFIN_API_KEY"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """The settings of a server.

    Attributes:
      host: The address to listen on; 127.0.0.1 is this machine only.
      port: The port; 0 takes a free one.
      name: What clients call the model; by default the last part of `model`.
      slots: How many texts are read and generated at once.
      waiting: How many more may wait.
      most_choices: How many texts one request may ask for: prompts times `n` or `best_of`.
      most_prompt_tokens: The longest prompt, its context included.
      most_new_tokens: The longest answer, and a chat's default.
      most_seconds: The time limit of a request, which then returns what it has.
      most_body_bytes: The largest body of a request, except files of contexts.
      body_seconds: How long a client may take to send a body.
      unread_seconds: How long a client may take nothing of its answer once the buffers on the way are
        full, until its connection is closed; where the system has such a bound, as Linux has.
      drain_seconds: How long open requests may continue after SIGTERM.
      prefix_cache_bytes: Device memory for the prefix cache; 0 turns it off.
      prefix_cache_host_bytes: Host memory for states that leave the device.
      prefix_cache_exact: Whether answers equal, bit for bit, those without the cache.
      contexts: The folder of saved contexts; by default they end with the process.
      context_bytes: Space in that folder for the contexts of one API key.
      context_device_bytes: Device memory for contexts in use.
      api_key_file: A file with one API key per line, which is read again when it changes. The
        environment's GRIFFIN_API_KEY is one, too. Without any key, everybody who reaches the port may send requests.
      allow_origins: Sites whose pages may send requests (CORS), "*" for all.
      log_text: Whether logs contain prompts and answers.
      compile_sampling: Whether the programs that are compiled before the server is ready also draw
        at temperatures and keep to filters (top_k, top_p, min_p); else those are compiled when they
        are first needed.
      compile_rows: Numbers of texts for whose programs alone the server compiles ahead, besides
        those for all slots; by default for every power of two.
    """

    host: str = field("127.0.0.1", filled=True)
    port: int = field(8000, at_least=0, at_most=65535)
    name: str | None = field(None, filled=True)
    slots: int = field(8, at_least=1)
    waiting: int = field(256, at_least=0)
    most_choices: int = field(64, at_least=1)
    most_prompt_tokens: int = field(131_072, at_least=1)
    most_new_tokens: int = field(2048, at_least=1)
    most_seconds: float = field(600.0, above=0)
    most_body_bytes: int = field(8 * 2**20, at_least=1024)
    body_seconds: float = field(30.0, above=0)
    unread_seconds: float = field(60.0, above=0, at_most=86_400)
    drain_seconds: float = field(60.0, at_least=0)
    prefix_cache_bytes: int = field(2**28, at_least=0)
    prefix_cache_host_bytes: int = field(0, at_least=0)
    prefix_cache_exact: bool = True
    contexts: str | None = field(None, filled=True)
    context_bytes: int = field(2**30, at_least=0)
    context_device_bytes: int = field(2**28, at_least=0)
    api_key_file: str | None = field(None, filled=True)
    allow_origins: tuple[str, ...] = ()
    log_text: bool = False
    compile_sampling: bool = True
    compile_rows: tuple[int, ...] = field((), at_least=1)

    def __post_init__(self):
        check_fields(self)


def read_keys(settings: ServerSettings) -> frozenset[str]:
    """Returns the API keys that are known; none where everybody may ask.

    Raises:
      ValueError: the file or the variable is empty, or a key holds what no header can.
      OSError: the file cannot be read.
    """
    keys = []
    if KEY_VARIABLE in os.environ:
        keys.append(_checked(os.environ[KEY_VARIABLE].strip(), f"the environment's {KEY_VARIABLE}"))
    if settings.api_key_file is not None:
        path = Path(paths.resolve(settings.api_key_file, "api_key_file"))
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise ValueError(f"{path}: the API key file is no UTF-8 text") from None
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise ValueError(f"{path}: the API key file is empty; put a key on each line")
        keys += [_checked(key, str(path)) for key in found]
    return frozenset(keys)


def _checked(key, where):
    if not key:
        raise ValueError(f"{where} is empty; give a key, or unset it")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ValueError(f"{where}: a key must be printable ASCII without blanks")
    return key
