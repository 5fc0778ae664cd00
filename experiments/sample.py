"""Writes text with a Griffin model.

  python -m experiments.sample                                     a random prompt's continuation
  python -m experiments.sample --prompt="Once upon a time"         streams text
  python -m experiments.sample --interactive                       chats; an empty line ends it
  python -m experiments.sample --prompts=FILE --output=out.jsonl   many prompts, JSON lines out

The config says which model and how to draw: --config=configs/FILE.py, and its fields one by one,
such as --config.model=FOLDER --config.temperature=0 --config.max_new_tokens=500. The default,
configs/sample.py, lists them. Text goes to standard output, everything else to standard error.
"""

import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from experiments import command

_BEGIN = time.monotonic()
_DEFAULT_PROMPT = "It was a dark night, and"
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")

_CONFIG = config_flags.DEFINE_config_file(
    "config", str(Path(__file__).parents[1] / "configs" / "sample.py"), "Model and sampling."
)
_PROMPT = flags.DEFINE_string("prompt", None, f"The text to continue; {_DEFAULT_PROMPT!r} if none.")
_PROMPTS = flags.DEFINE_string(
    "prompts", None, "A file with a prompt per line; .jsonl: a string or {'prompt': ...} per line."
)
_INTERACTIVE = flags.DEFINE_bool("interactive", False, "Chat at the keyboard.")
_OUTPUT = flags.DEFINE_string("output", None, "Where to write JSON lines; standard output if none.")


def main():
    config = _CONFIG.value
    if sum([_PROMPT.value is not None, _PROMPTS.value is not None, _INTERACTIVE.value]) > 1:
        raise ValueError("give one of --prompt, --prompts and --interactive")
    if _OUTPUT.value and not _PROMPTS.value:
        raise ValueError("--output goes with --prompts")
    prompts = None if _PROMPTS.value is None else read_prompts(Path(_PROMPTS.value))
    lm = load_model(config)
    if prompts is not None:
        write_samples(lm, config, prompts)
    elif _INTERACTIVE.value:
        interact(lm, config)
    else:
        prompt = _PROMPT.value
        if prompt is None:
            prompt = _DEFAULT_PROMPT
            note(f"no --prompt; continuing {prompt!r}")
        stream_one(lm, config, prompt)


def note(line: str) -> None:
    print(f"[{line}]", file=sys.stderr, flush=True)


def load_model(config):
    """The config's model; a random one says so."""
    import griffin_jax

    if config.model == "random":
        from griffin_jax.language_model import random_model

        note("random weights: the text is noise; --config.model=FOLDER loads a trained model")
        return random_model(griffin_jax.preset("tiny"), seed=0)
    return griffin_jax.load(config.model, dtype=config.dtype)


def sampling_options(config) -> dict:
    return {name: config[name] for name in _SAMPLING} | {
        "max_new_tokens": config.max_new_tokens,
        "seed": config.seed,
        "stop": config.stop,
    }


def as_turn(lm, config, prompt: str) -> str:
    """What the model reads for a prompt."""
    if not (prompt and config.chat):
        return prompt
    return lm.tokenizer.format_chat([{"role": "user", "content": prompt}])


def read_prompts(path: Path) -> list[str]:
    """One prompt a line.

    Raises:
      ValueError: a line is empty or, in a .jsonl file, neither a string nor has a "prompt".
    """
    prompts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        prompt = line
        if path.suffix == ".jsonl":
            try:
                value = json.loads(line)
                prompt = value["prompt"] if isinstance(value, dict) else value
            except (ValueError, KeyError):
                prompt = None
            if not isinstance(prompt, str):
                raise ValueError(f'{path} line {number}: give a JSON string or {{"prompt": "..."}}')
        if not prompt:
            raise ValueError(f"{path} line {number} is empty; give a prompt")
        prompts.append(prompt)
    if not prompts:
        raise ValueError(f"{path} is empty; give a prompt per line")
    return prompts


def show(pieces: Iterable[str]) -> None:
    """Prints pieces as they come, and how fast they came."""
    first = None
    for piece in pieces:
        first = first or time.monotonic()
        print(piece, end="", flush=True)
    print(flush=True)
    return first
