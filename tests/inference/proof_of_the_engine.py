"""Each of very many requests against itself alone: python -m tests.inference.proof_of_the_engine 10000

Requests come at random moments, of random lengths, settings and seeds, with beginnings in common;
some are cancelled, slots and cached states are used again, and states are evicted all the while.
The first argument is how many there are, the second "float32" or "nf4". It prints what differed,
which must be nothing, and fails if anything did.
"""

import collections
import sys

import numpy as np

import griffin_jax
from griffin_jax.inference import PrefixCache, prefill
from griffin_jax.inference.row_states import fresh_row, nbytes
from tests.inference.tiny_model import CONFIG, language_model

BOUND = 1e-5  # of log-probabilities
SETTINGS = (
    {},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
    {"temperature": 1.2, "min_p": 0.05, "repetition_penalty": 1.2},
    {"temperature": 1.0, "presence_penalty": 0.5, "frequency_penalty": 0.2},
    {"temperature": 1.0, "logit_bias": {70: 2.0}, "stop": "a"},
)


def model(weights):
    """The tiny model of the tests."""
    lm = language_model()
    return griffin_jax.quantize(lm, griffin_jax.QuantizationConfig()) if weights == "nf4" else lm


def draw_request(rng, beginnings, settings):
    """The prompt and the options of a request."""
    begin = beginnings[rng.integers(len(beginnings))][: rng.integers(0, 90)]
    prompt = [*begin, *rng.integers(5, CONFIG.vocab_size, rng.integers(1, 12)).tolist()]
    options = {"max_new_tokens": int(rng.integers(1, 30)), "seed": int(rng.integers(2**32))}
    return prompt, options | settings[rng.integers(len(settings))]


def run(lm, count, seed, settings=SETTINGS):
    """Requests that have ended, of one engine, with their prompts and options."""
    rng = np.random.default_rng(seed)
    beginnings = rng.integers(5, CONFIG.vocab_size, (6, 90)).tolist()
    state = nbytes(fresh_row(lm.model, lm.params, 1))
    cache = PrefixCache(12 * state, host_bytes=12 * state, every=8, exact=False)
    found, cancelled = [], set()
    with lm.engine(slots=4, seconds=None, burst=4, prefix_cache=cache) as engine:
        busy = True
        while len(found) < count or busy:
            for _ in range(min(rng.integers(0, 3), count - len(found))):
                prompt, options = draw_request(rng, beginnings, settings)
                given = {"priority": int(rng.integers(2)), **options}
                found.append((engine.submit(prompt, **given), prompt, options))
            recent = [r for r, *_ in found[-6:] if not r.ended and r not in cancelled]
            if recent and rng.random() < 0.05:
                recent[0].cancel()
                cancelled.add(recent[0])
            busy = engine.step()
    return found, engine.stats, cache.stats


def differences(lm, found):
    """What is not as it is alone: the requests whose tokens differ, and the largest difference."""
    differ, largest = [], 0.0
    for request, prompt, options in found:
        sample = request.result()
        seed = [options["seed"]]
        (alone,) = lm.sample([prompt], **options | {"seed": seed})
        length = len(sample.tokens)
        cut = sample.finish_reason == "cancelled"
        same = sample.tokens == alone.tokens[:length] and (cut or sample.text == alone.text)
        if not same or not (cut or sample.finish_reason == alone.finish_reason):
            differ.append(request.number)
        elif length:
            gaps = np.abs(np.subtract(sample.logprobs, alone.logprobs[:length]))
            largest = max(largest, float(gaps.max()))
    return differ, largest


def main():
    """See above."""
    count, weights = int(sys.argv[1]), (sys.argv[2:] or ["float32"])[0]
    prefill.CHUNKS = (8, 32)
    lm, totals = model(weights), collections.Counter()
    largest = 0.0
    for seed in range(-(-count // 500)):
        found, stats, cached = run(lm, min(500, count - totals["requests"]), seed)
        differ, gap = differences(lm, found)
        largest = max(largest, gap)
        totals.update(requests=len(found), differ=len(differ), hits=cached.hits)
        totals.update(evicted=cached.evicted, **stats.ended)
        print(dict(totals), f"largest difference {largest:.1e}", flush=True)
    if totals["differ"] or largest > BOUND:
        sys.exit("requests differ from themselves alone")


if __name__ == "__main__":
    main()
