"""Speculation: what drafts spare, on text that repeats itself and on text that does not."""

import dataclasses
import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import griffin_jax
from griffin_jax import files, inputs
from griffin_jax.benchmarks.subject import Subject
from griffin_jax.inference import Speculation
from griffin_jax.inference.decode import row_keys, step_keys
from griffin_jax.inference.drafting import Lookup
from griffin_jax.language_model import LanguageModel

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Replay:
    """Draws given texts, whatever the logits are: each step is known by its random key.

    So a model of random weights writes what a trained one would, at its own cost.

    Attributes:
      marks: The first number of the key of each step.
      tokens: The token of each step.
    """

    marks: tuple[int, ...]
    tokens: tuple[int, ...]

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]]) -> "Replay":
        """Returns the method under which a request of seed i writes text i."""
        marks: list[int] = []
        for seed, text in enumerate(texts):
            keys = np.repeat(row_keys(seed, 1), len(text), axis=0)
            steps = np.arange(len(text), dtype=np.int32)
            marks += jax.random.key_data(step_keys(keys, steps))[:, 0].tolist()
        return cls(tuple(marks), tuple(token for text in texts for token in text))

    def draw(self, logits: jax.Array, key: jax.Array) -> jax.Array:
        """See `SamplingMethod`."""
        del logits
        marks = jnp.array(np.array(self.marks, np.uint32))
        place = jnp.argmax(marks == jax.random.key_data(key)[0])
        return jnp.array(np.array(self.tokens, np.int32))[place]


def measure(lm: LanguageModel, config: dict[str, Any]) -> Iterator[Row]:
    """Yields rows of texts that repeat what was read, do so a little and not at all, with and without
    drafts.

    The model writes them whatever it would have said. "drafts always" on the last one says what a call
    over a draft costs of which nothing is accepted. Then rows of how many tokens a call draws of longer
    texts, as the texts themselves tell.
    """
    draft = config["draft"]
    ways = {
        "plain": None,
        "drafts": Speculation(tokens=draft),
        "drafts always": Speculation(tokens=draft, always=True),
    }
    if config["draft_model"]:
        small, _ = Subject.parse(config["draft_model"], config["shapes"]).load(config["seed"])
        ways["drafts of a smaller model"] = Speculation(tokens=draft, draft=small)
    prompt, new = config["speculated"]
    texts = {name: _tokens(lm, *both) for name, both in _texts().items() if "code" in name}
    texts = {name: (before[:prompt], after[:new]) for name, (before, after) in texts.items()}
    rng = np.random.default_rng(config["seed"])
    both = rng.integers(0, lm.config.vocab_size, (2, max(prompt, new))).tolist()
    texts["random tokens"] = both[0][:prompt], both[1][:new]
    method = Replay.of([after for _, after in texts.values()])
    for seed, (text, (before, after)) in enumerate(texts.items()):
        plain = None
        for way, speculate in ways.items():
            tokens, row = _write(lm, config, speculate, before, len(after), method, seed)
            plain = plain or row["seconds_per_token"]
            same = sum(a == b for a, b in zip(tokens, after, strict=True))
            row |= {"equal_tokens": same, "times_faster": plain / row["seconds_per_token"]}
            yield {"what": "speculation", "text": text, "way": way, "draft": draft} | row
    yield from of_real_texts(draft)


def _write(lm, config, speculate, prompt, new, method, seed):
    """Returns what is written after one prompt, and how fast."""
    for _ in range(2):  # the first compiles
        engine = lm.engine(slots=1, seconds=None, burst=config["burst"], speculate=speculate)
        with engine:
            request = engine.submit(prompt, new, sampling=method, seed=seed, stop_ids=())
            engine.run()
    stats = engine.stats
    seconds = (request.ended_at - request.first_token_at) / (new - 1)
    return request.result().tokens, {
        "new_tokens": new,
        "seconds_per_token": seconds,
        "draft_calls": stats.draft_calls,
        "drafted_tokens": stats.drafted_tokens,
        "accepted_tokens": stats.accepted_tokens,
        "calls": stats.steps,
    }


def _tokens(lm, before, written):
    """Returns the tokens of both by griffin-tiny's tokenizer, as ids that the model has."""
    tokenizer = griffin_jax.load("griffin-tiny").tokenizer
    both = tokenizer.encode(before), tokenizer.encode(written, bos=False)
    return tuple([token % lm.config.vocab_size for token in tokens] for tokens in both)


def of_real_texts(draft: int) -> Iterator[Row]:
    """Yields how many tokens a call would draw of real texts, by looking up what followed before.

    Args:
      draft: Tokens of a draft.
    """
    tokenizer = griffin_jax.load("griffin-tiny").tokenizer
    for text, (before, written) in _texts().items():
        history = Lookup().history(tokenizer.encode(before), draft)
        tokens = tokenizer.encode(written, bos=False)
        calls = history.add(tokens)
        row = {"what": "real text", "text": text, "draft": draft, "new_tokens": len(tokens)}
        yield row | {"calls": calls, "tokens_per_call": len(tokens) / calls}


def _texts():
    """Texts with what is written after them."""
    code, other = inspect.getsource(files), inspect.getsource(inputs)
    edited = re.sub(r"\bpath\b", "target", code).replace("Raises:", "Errors:")
    sentences = [s.strip() for s in re.split(r"\.\s", inspect.getdoc(files) or "") if s.strip()]
    sentences += [line.strip() for line in re.findall(r'"""(.*?)[."]', other) if len(line) > 20]
    summary = " ".join(f'It says: "{sentence}." That matters.' for sentence in sentences[1::3])
    return {
        "code that is edited": (code, edited),
        "a summary with quotations": (" ".join(f"{s}." for s in sentences), summary),
        "other code": (code, other),
    }
