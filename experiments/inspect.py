"""Looks into a model while it reads a text.

  python -m experiments.inspect --prompt="It was a dark night" --output=runs/inspect

Writes plots and one HTML page without external files: the spectrum of decays by layer, gates over
tokens, the recurrence as attention beside local attention, the logit lens, and how long the states
hold a token. A text comes as --prompt or as a file, --text. Any field of the config is a flag:
--config.model=FOLDER --config.token=5
"""

import sys

from absl import flags

from experiments import command, outputs
from griffin_jax.text_files import TextFile
from griffin_jax.tracing import page

_CONFIG = command.define_config("inspect", "inspect.py")
_PROMPT = flags.DEFINE_string("prompt", "", "The text.")
_TEXT = flags.DEFINE_string("text", "", "A file with the text, in place of --prompt.")
_OUTPUT = flags.DEFINE_string("output", "runs/inspect", "Folder for the page and its plots.")
_DEFAULT = "It was a dark night, and the wind"


def main() -> None:
    config = _CONFIG.value
    folder = outputs.folder(_OUTPUT)
    if _PROMPT.value and _TEXT.value:
        raise ValueError("give the text as --prompt or as --text, not as both")
    text = TextFile(_TEXT.value).text() if _TEXT.value else _PROMPT.value
    if _TEXT.value and not text.strip():
        raise ValueError(f"--text={_TEXT.value} holds no text")
    if not text:
        text = _DEFAULT
        print(f"[no --prompt; reading {text!r}]", file=sys.stderr)
    lm = command.load_model(config.model, dtype=config.dtype)
    tokens = lm.tokenizer.encode(text)[: config.max_tokens]
    texts = [lm.tokenizer.decode([token]) for token in tokens]
    reading = page.read(lm, tokens, texts, config.token)
    for path in page.write(reading, folder, f"{config.model}: {text[:60]}"):
        print(path)


if __name__ == "__main__":
    command.run(main)
