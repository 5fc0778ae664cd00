"""Writes text with a Griffin model.

  python -m experiments.sample                                     continues a line of our own
  python -m experiments.sample --prompt="It was a dark night"      streams text
  python -m experiments.sample --interactive                       chats until the end of input
  python -m experiments.sample --prompts=FILE --output=out.jsonl   many prompts, JSON lines out

The config says which model and how to draw: --config=configs/FILE.py, and its fields one by one,
such as --config.model=FOLDER --config.temperature=0 --config.max_new_tokens=500. The default,
configs/sample.py, lists them all. Text goes to standard output, the rest to standard error.
"""

import dataclasses
import io
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

from absl import flags

from experiments import command, outputs, processes

_BEGIN = time.monotonic()
_DEFAULT_PROMPT = "It was a dark night, and"

_CONFIG = command.define_config("sample", "sample.py")
_PROMPT = flags.DEFINE_string("prompt", None, f"Text to continue; {_DEFAULT_PROMPT!r} if none.")
_PROMPTS = flags.DEFINE_string(
    "prompts",
    None,
    "File with a prompt per line, - for standard input; if .jsonl, a string or {'prompt': ...} each.",
)
_INTERACTIVE = flags.DEFINE_bool("interactive", False, "Chat at the keyboard.")
_OUTPUT = flags.DEFINE_string("output", None, "File for the JSON lines; standard output if none.")
flags.adopt_module_key_flags(processes)


def main() -> None:
    from griffin_jax import SamplingConfig

    config = _CONFIG.value
    drawing = SamplingConfig(**sampling(config))
    if sum([_PROMPT.value is not None, _PROMPTS.value is not None, _INTERACTIVE.value]) > 1:
        raise ValueError("give one of --prompt, --prompts and --interactive")
    if _OUTPUT.value is not None and _PROMPTS.value is None:
        raise ValueError("--output goes with --prompts")
    if _INTERACTIVE.value and processes.several():
        raise ValueError("--interactive is for one process; give --prompt or --prompts")
    if _PROMPT.value == "":
        raise ValueError("--prompt is empty; give some text")
    if _INTERACTIVE.value:
        check_keyboard()
    prompts, output = None, None
    if _PROMPTS.value is not None:
        output = outputs.file(_OUTPUT, inputs=[_PROMPTS.value])
        if output is not None and not output.parent.is_dir():
            raise ValueError(f"--output={output}: its folder does not exist; make it first")
        prompts = read_prompts(_PROMPTS.value)

    if not config.max_new_tokens and prompts is None and not _INTERACTIVE.value:
        note("config.max_new_tokens=0: nothing is to be written")
        return
    lm = load_model(config)
    if prompts is not None:
        write_samples(lm, config, prompts, output)
    elif _INTERACTIVE.value:
        chat(lm, config)
    else:
        if _PROMPT.value is None:
            note(f"no --prompt; continuing {_DEFAULT_PROMPT!r}")
        stream(lm, config, drawing, _PROMPT.value or _DEFAULT_PROMPT)


def load_model(config):
    """Returns the config's model, with its tokenizer."""
    return command.load_model(
        config.model,
        adapter=config.adapter,
        dtype=config.dtype,
        allow_nan=config.allow_nan,
        mesh=command.mesh_of(config.mesh),
    )


def stream(lm, config, drawing, prompt: str) -> None:
    """Prints the text after one prompt as it comes."""
    text = as_read(lm, config, prompt)
    with lm.engine(slots=1) as engine:
        request = engine.submit(text, sampling=drawing, **limits(config))
        first = show(request) or time.monotonic()
    tokens = len(request.result().tokens)
    rate = max(tokens - 1, 0) / (time.monotonic() - first)
    note(f"{tokens} tokens, {rate:.1f} a second; the first after {first - _BEGIN:.1f} s in all")


def chat(lm, config) -> None:
    """Answers lines from standard input until it ends.

    A line that cannot be read and an answer that Ctrl-C stops have not taken place, and the next
    line is asked for. Ctrl-C twice at the prompt ends the command.
    """
    conversation = lm.chat()
    for message in read_messages():
        try:
            show(conversation.stream(message, **sampling(config), **limits(config)))
        except KeyboardInterrupt:
            print(flush=True)
            note("stopped; this turn has not taken place")


def check_keyboard() -> None:
    """Raises ValueError where there is no standard input."""
    if sys.stdin is None:
        raise ValueError("--interactive reads standard input, which is closed")


def read_messages() -> Iterator[str]:
    """Yields the lines of standard input that say something, until it ends."""
    check_keyboard()
    # Bytes that are no text come as lone surrogates, and a line ends at a newline alone.
    cast(io.TextIOWrapper, sys.stdin).reconfigure(errors="surrogateescape", newline="\n")
    first, interrupted = True, False
    while True:
        try:
            message = input("> ").removesuffix("\r")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print(flush=True)
            if interrupted:
                raise
            note("Ctrl-D ends the conversation, and so does Ctrl-C once more")
            interrupted = True
            continue
        if first:
            message = message.removeprefix("\ufeff")
        first = interrupted = False
        try:
            message.encode()
        except UnicodeEncodeError as error:
            encoding, place = sys.stdin.encoding.upper(), error.start + 1
            note(f"that line is not {encoding} (character {place}); give it again")
            continue
        if message.strip():
            yield message


def write_samples(lm, config, prompts: list[str], output: Path | None) -> None:
    """Writes a JSON object per prompt; with --output, the file appears when all are done."""
    begin = time.monotonic()
    texts = [as_read(lm, config, prompt) for prompt in prompts]
    command.check_batch(lm, config, texts)
    samples = lm.sample(texts, batch_size=config.batch_size, **sampling(config), **limits(config))
    from griffin_jax.files import write_text
    from griffin_jax.sharding import is_first

    seconds = time.monotonic() - begin
    # Standard output may have an encoding that lacks a character; JSON can spell it in ASCII.
    ascii = output is None and not sys.stdout.encoding.lower().startswith("utf")
    text = "".join(
        json.dumps({"prompt": prompt, **dataclasses.asdict(sample)}, ensure_ascii=ascii) + "\n"
        for prompt, sample in zip(prompts, samples, strict=True)
    )
    if not is_first():
        return
    if output is None:
        sys.stdout.write(text)
    else:
        write_text(output, text)
    tokens = sum(len(sample.tokens) for sample in samples)
    note(f"{len(samples)} prompts, {tokens} tokens, {tokens / seconds:.1f} a second")


def sampling(config) -> dict:
    """Returns the fields of `SamplingConfig` that the config has."""
    from griffin_jax.inference.sampling import FIELDS

    return {name: config[name] for name in FIELDS if name in config}


def limits(config) -> dict:
    return {name: config[name] for name in ("max_new_tokens", "seed", "stop")}


def as_read(lm, config, prompt: str) -> str:
    """Returns what the model reads for a prompt: the text itself, or a user's turn."""
    if not config.chat:
        return prompt
    return lm.tokenizer.format_chat([{"role": "user", "content": prompt}])


def read_prompts(path: str | Path) -> list[str]:
    """Returns one prompt a line; see `griffin_jax.text_files`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged or not UTF-8, or a line is empty or, in a file of JSON lines,
        neither a string nor has a "prompt".
    """
    from griffin_jax.text_files import TextFile

    file, prompts = TextFile(path, "prompts"), []
    for number, prompt in file.records() if file.json_lines else file.lines():
        if isinstance(prompt, dict):
            prompt = prompt.get("prompt")
        if not isinstance(prompt, str):
            raise file.fault('give a JSON string or {"prompt": "..."}', number)
        if not prompt:
            raise file.fault("it is empty; give a prompt", number)
        prompts.append(file.check_text(prompt, number))
    if not prompts:
        raise file.fault("it is empty; give a prompt per line")
    return prompts


def show(pieces: Iterable[str]) -> float | None:
    """Prints pieces as they come; returns when the first one came."""
    first = None
    for piece in pieces:
        first = first or time.monotonic()
        print(piece, end="", flush=True)
    print(flush=True)
    return first


def note(line: str) -> None:
    from griffin_jax.sharding import is_first

    if is_first():
        print(f"[{line}]", file=sys.stderr, flush=True)


if __name__ == "__main__":
    command.run(main)
