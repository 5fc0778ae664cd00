"""Speculation: what drafts spare, on text that repeats itself and on text that does not."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import griffin_jax
from griffin_jax import files, inputs
from griffin_jax.benchmarks.engine.offline import requests_of
from griffin_jax.benchmarks.subject import Subject
from griffin_jax.inference import Speculation
from griffin_jax.inference.drafting import Lookup
from griffin_jax.inference.speculation import History
from griffin_jax.language_model import LanguageModel

Row = dict[str, Any]


def measure(lm: LanguageModel, config: dict[str, Any]) -> Iterator[Row]:
    """Rows of one text that repeats itself and one that does not, with and without drafts.

    Greedy decoding of small models, and of those of random weights, ends in repetition; at temperature
    1 the latter repeat nothing. "drafts always" on the second says what a call over a draft costs that
    nothing is accepted of. Then what drafts spare of real texts, as their tokens tell: what a model
    that writes these texts would need.
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
    for text, temperature in (("repeats itself", 0.0), ("does not", 1.0)):
        plain = None
        for way, speculate in ways.items():
            tokens, row = _write(lm, config, speculate, temperature)
            plain = plain or (tokens, row["seconds_per_token"])
            same = sum(a == b for a, b in zip(tokens, plain[0], strict=True))
            row |= {"equal_tokens": same, "times_faster": plain[1] / row["seconds_per_token"]}
            yield {"what": "speculation", "text": text, "way": way, "draft": draft} | row
    yield from of_real_texts(draft)


def _write(lm, config, speculate, temperature):
    """What is written after one prompt, and how fast."""
    ((prompt, new),) = requests_of(lm.config.vocab_size, [config["speculated"]], config["seed"])
    for _ in range(2):  # the first compiles
        engine = lm.engine(slots=1, seconds=None, burst=config["burst"], speculate=speculate)
        with engine:
            request = engine.submit(prompt, new, temperature=temperature, stop_ids=())
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


def of_real_texts(draft: int) -> Iterator[Row]:
    """Tokens that a call would draw of real texts, by looking up what followed before.

    Args:
      draft: Tokens of a draft.
    """
    tokenizer = griffin_jax.load("griffin-tiny").tokenizer
    for text, (before, written) in _texts().items():
        history = History(Lookup(), tokenizer.encode(before), draft)
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
