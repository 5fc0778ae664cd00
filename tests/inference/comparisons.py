"""What tests of the engine share: prompts, requests that have ended, and what they are compared with."""

import dataclasses

import jax
import numpy as np

from griffin_jax.inference import SamplingConfig
from tests.inference.tiny_model import ByteTokenizer, language_model, plain_logits

TOKENIZER = ByteTokenizer()
PROMPTS = [TOKENIZER.encode(text) for text in ("x", "a short one", "far beyond the window " * 2)]
WARM = SamplingConfig(temperature=1.0)


def ended(lm, prompts, seeds=None, contexts=None, slots=4, **options):
    """Requests that have ended, of one engine."""
    with lm.engine(slots=slots, seconds=None, fill_first=True) as engine:
        requests = [
            engine.submit(
                prompt,
                seed=0 if seeds is None else seeds[i],
                context=None if contexts is None else contexts[i],
                keep_context=True,
                **options,
            )
            for i, prompt in enumerate(prompts)
        ]
        engine.run()
    return requests


def samples(*args, **options):
    return [request.result() for request in ended(*args, **options)]


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def assert_same_samples(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        plain = [dataclasses.replace(x, logprobs=[], top_logprobs=None) for x in (one, other)]
        assert plain[0] == plain[1]
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


def assert_reads_on_like_its_text(context):
    """Logits after a context equal those over its whole text and the same probe."""
    tokens, read = context.tokens, context.read
    assert context.state.position.tolist() == [read]
    assert read <= len(tokens)
    probe = (*tokens[read:], 70, 71)[:2]  # one token at most is unread
    logits, _ = language_model().apply([probe], context.state)
    expected = plain_logits((*tokens[:read], *probe))[-2:]
    np.testing.assert_allclose(logits[0], expected, atol=1e-3)


@dataclasses.dataclass(frozen=True)
class Wrong:
    """A way of drawing that draws what is no token."""

    value: object = 0

    def draw(self, logits, key):
        return logits if self.value == "logits" else jax.numpy.int32(self.value)
