"""Each of very many requests against itself alone: python -m tests.inference.proof_of_the_engine 10000

Requests come at random moments, of random lengths, settings and seeds, with beginnings in common;
some are cancelled, slots and cached states are used again, and states are evicted all the while. Every
other 50 requests are drawn with drafts, and itself alone never is.

The first argument is how many there are. The second is "float32" or "nf4", of the tests' tiny model, or
a model as benchmarks name it, such as griffin-tiny:float32 or recurrentgemma-9b:nf4. The third is a file
that keeps what was found, from which another run goes on. It prints what differed, which must be nothing
where one kernel serves all numbers of rows, and fails if anything did. Where another kernel, or a call of
another length, rounds otherwise, it says how far two logits had to be off for the other token to be drawn.
"""

import collections
import contextlib
import json
import pathlib
import sys

import jax
import numpy as np

import griffin_jax
from griffin_jax.benchmarks.subject import Subject
from griffin_jax.inference import PrefixCache, Speculation, prefill
from griffin_jax.inference.decode import row_keys, step_keys
from griffin_jax.inference.drawing import IN_PROMPT, bias_of, choose, needs_of, settings_of
from griffin_jax.inference.row_states import fresh_row, nbytes
from griffin_jax.inference.sampling import FIELDS, SamplingConfig
from tests.inference.tiny_model import language_model

BOUND = 1e-5  # of log-probabilities
PART = 50
SETTINGS = (
    {},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
    {"temperature": 1.2, "min_p": 0.05, "repetition_penalty": 1.2},
    {"temperature": 1.0, "presence_penalty": 0.5, "frequency_penalty": 0.2},
    {"temperature": 1.0, "logit_bias": {70: 2.0}, "stop": "a"},
)
DRAFTS = Speculation(tokens=3, least=1, always=True)


def model(weights):
    """The tiny model of the tests, or one of a benchmark."""
    if ":" in weights:
        return Subject.parse(weights).load()[0]
    lm = language_model()
    return griffin_jax.quantize(lm, griffin_jax.QuantizationConfig()) if weights == "nf4" else lm


def draw_request(rng, lm, beginnings, settings):
    """The prompt and the options of a request."""
    begin = beginnings[rng.integers(len(beginnings))][: rng.integers(0, 90)]
    prompt = [*begin, *rng.integers(5, lm.config.vocab_size, rng.integers(1, 12)).tolist()]
    options = {"max_new_tokens": int(rng.integers(1, 30)), "seed": int(rng.integers(2**32))}
    chosen = dict(settings[rng.integers(len(settings))])
    if lm.tokenizer is None:
        chosen.pop("stop", None)
    return prompt, options | chosen


@contextlib.contextmanager
def engine_of(lm, slots, ahead, **options):
    """An engine; `ahead`, with few programs, which are compiled at once: a large model's take long."""
    with lm.engine(slots=slots, seconds=None, burst=4, **options) as engine:
        if ahead:
            engine.compile_ahead((1, slots), longest=min(prefill.CHUNKS), everything=True)
        yield engine


def run(lm, count, seed, settings=SETTINGS, speculate=None, ahead=False):
    """Requests that have ended, of one engine, with their prompts and options."""
    rng = np.random.default_rng(seed)
    beginnings = rng.integers(5, lm.config.vocab_size, (6, 90)).tolist()
    state = nbytes(fresh_row(lm.model, lm.params, 1))
    cache = PrefixCache(12 * state, host_bytes=12 * state, every=8, exact=False)
    found, cancelled = [], set()
    with engine_of(lm, 4, ahead, prefix_cache=cache, speculate=speculate) as engine:
        busy = True
        while len(found) < count or busy:
            for _ in range(min(rng.integers(0, 3), count - len(found))):
                prompt, options = draw_request(rng, lm, beginnings, settings)
                given = {"priority": int(rng.integers(2)), **options}
                found.append((engine.submit(prompt, **given), prompt, options))
            recent = [r for r, *_ in found[-6:] if not r.ended and r not in cancelled]
            if recent and rng.random() < 0.05:
                recent[0].cancel()
                cancelled.add(recent[0])
            busy = engine.step()
    return found, engine.stats, cache.stats


def alone(lm, prompt, options):
    """A request in a batch of its own."""
    return lm.sample([prompt], **options | {"seed": [options["seed"]]}).pop()


def differences(lm, found, gaps=None, alone=alone):
    """What is not as it is alone: the requests whose tokens differ, and the largest difference.

    Args:
      lm: The model.
      found: What `run` returns.
      gaps: Is given the `margin` where the tokens of two texts part, and the request's options.
      alone: Runs a request by itself.
    """
    differ, largest = [], 0.0
    for request, prompt, options in found:
        sample, own = request.result(), alone(lm, prompt, options)
        length = len(sample.tokens)
        cut = sample.finish_reason == "cancelled"
        same = sample.tokens == own.tokens[:length] and (cut or sample.text == own.text)
        if not same or not (cut or sample.finish_reason == own.finish_reason):
            differ.append(request.number)
            pairs = enumerate(zip(own.tokens, sample.tokens, strict=False))
            place = next((i for i, (one, other) in pairs if one != other), None)
            if gaps is not None and place is not None:
                other = sample.tokens[place]
                gaps.append((margin(lm, prompt, options, own.tokens, place, other), options))
        elif length:
            gap = np.abs(np.subtract(sample.logprobs, own.logprobs[:length]))
            largest = max(largest, float(gap.max()))
    return differ, largest


def margin(lm, prompt, options, tokens, place, other):
    """By how much two logits have to be off for another token to be drawn at a place of a text.

    The other token's logit is raised and that of the token drawn lowered, each by so much: the one
    may lack a little, or the other may be just within what top-k, top-p or min-p leaves over. It is
    0 where the definition, which reads all in one call, draws the other one anyway.
    """
    sampling = SamplingConfig(**{k: v for k, v in options.items() if k in FIELDS})
    text = [*prompt, *tokens[:place]]
    padding = [0] * (-len(text) % 128)  # one program serves most texts
    logits, _ = lm.apply([text + padding], lengths=[len(text)], last_only=True)
    size = logits.shape[1]
    counts = np.bincount(tokens[:place], minlength=size).astype(np.int32)
    counts[prompt] += IN_PROMPT
    keys = step_keys(row_keys([options["seed"]], 1), np.array([place], np.int32))
    settings = jax.tree.map(lambda x: x[None], settings_of(sampling))
    needs = needs_of(sampling)._replace(bias=True)

    def draws_other(more):
        bias = bias_of(sampling, size)
        bias[other] += more
        bias[tokens[place]] -= more
        token, _ = choose(logits, keys, settings, needs, counts=counts[None], bias=bias[None])
        return int(token[0]) == other

    low, high = 0.0, 64.0
    if draws_other(low):
        return 0.0
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (low, middle) if draws_other(middle) else (middle, high)
    return high


def part(lm, count, seed, large):
    """The counts of so many requests, as plain values."""
    speculate, gaps = DRAFTS if seed % 2 else None, [] if large else None
    found, stats, cached = run(lm, count, seed, speculate=speculate, ahead=large)
    with engine_of(lm, 1, ahead=True) if large else contextlib.nullcontext() as engine:

        def by_itself(_, prompt, options):
            return engine.submit(prompt, **options).result()

        differ, largest = differences(lm, found, gaps, by_itself if large else alone)
    counts = {"requests": len(found), "differ": len(differ), "largest": largest}
    counts |= {"hits": cached.hits, "evicted": cached.evicted, "drafted": stats.drafted_tokens}
    return counts | {"accepted": stats.accepted_tokens, **stats.ended, "gaps": gaps or []}


def main():
    """See above."""
    count, weights = int(sys.argv[1]), (sys.argv[2:] or ["float32"])[0]
    kept = pathlib.Path(sys.argv[3]) if len(sys.argv) > 3 else None
    parts = json.loads(kept.read_text()) if kept is not None and kept.exists() else {}
    if ":" not in weights:
        prefill.CHUNKS = (8, 32)
    lm = model(weights)
    # Those without drafts first, which need fewer programs.
    for seed in sorted(range(-(-count // PART)), key=lambda seed: seed % 2):
        if str(seed) not in parts:
            size = min(PART, count - seed * PART)
            parts[str(seed)] = part(lm, size, seed, large=":" in weights)
            if kept is not None:
                kept.write_text(json.dumps(parts))
        totals = collections.Counter()
        for one in parts.values():
            totals.update({k: v for k, v in one.items() if k not in ("largest", "gaps")})
        largest = max(one["largest"] for one in parts.values())
        print(dict(totals), f"largest difference {largest:.1e}", flush=True)
    if gaps := [gap for one in parts.values() for gap in one["gaps"]]:
        most, options = max(gaps, key=lambda gap: gap[0])
        print(f"texts part where logits off by {most:.1e} at most draw the other token: {options}")
    if totals["differ"] or largest > BOUND:
        sys.exit("requests differ from themselves alone")


if __name__ == "__main__":
    main()
