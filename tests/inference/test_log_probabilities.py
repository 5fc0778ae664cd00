"""Log-probabilities are free of what the number of rows does to the logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import griffin_jax
from griffin_jax.inference import Speculation
from griffin_jax.inference import engine as engine_module
from griffin_jax.inference.drawing import corrected, most_likely
from griffin_jax.models import Griffin
from griffin_jax.models.layers import products
from tests.inference.comparisons import PROMPTS
from tests.inference.tiny_model import language_model


class Rough(Griffin):
    """A model that takes its likeliest logits for larger than they are."""

    def logits(self, x):
        logits = super().logits(x)
        return logits + 1e-3 * (logits >= jnp.max(logits, axis=-1, keepdims=True))


@pytest.fixture(scope="module")
def lm():
    return language_model()


def test_products_have_the_same_bits_however_many_there_are():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 451)).astype(np.float32)
    rows = rng.standard_normal((16, 3, 451)).astype(np.float32)
    found = np.asarray(jax.jit(products)(x, rows))
    exact = np.einsum("bd,bkd->bk", x, rows, dtype=np.float64)
    assert np.abs(found - exact).max() < 2e-7 * np.sqrt(451) * 3
    for count in (1, 2, 5, 8):
        np.testing.assert_array_equal(jax.jit(products)(x[:count], rows[:count]), found[:count])
    np.testing.assert_array_equal(jax.jit(products)(x, rows[:, 1:2]), found[:, 1:2])


@pytest.mark.parametrize("top", [0, 4])
def test_what_is_wrong_with_named_logits_is_corrected_in_all_log_probabilities(top):
    rng = np.random.default_rng(1)
    true = 3 * rng.standard_normal((20, 50)).astype(np.float32)
    token = rng.integers(0, 50, 20)
    token[:10] = np.argmax(true[:10], axis=1)  # which the list holds, too
    named = np.argsort(true, axis=1)[:, ::-1][:, : top or 1]
    rough = true.copy()
    for row in range(20):
        several = sorted({token[row], *named[row]})
        rough[row, several] += 1e-3 * rng.uniform(-1, 1, len(several))
    likely = most_likely(rough, top) if top else ()
    before = jnp.take_along_axis(jax.nn.log_softmax(rough), token[:, None], axis=1)[:, 0]
    found = corrected(lambda t: jnp.take_along_axis(true, t, axis=1), rough, token, before, *likely)
    expected = np.asarray(jax.nn.log_softmax(true))
    row = np.arange(20)
    assert np.abs(before - expected[row, token]).max() > 1e-4
    assert np.abs(found[0] - expected[row, token]).max() < 5e-6
    if top:
        np.testing.assert_array_equal(found[1], likely[0])
        assert np.abs(likely[1] - expected[row[:, None], found[1]]).max() > 1e-4
        assert np.abs(found[2] - expected[row[:, None], found[1]]).max() < 5e-6


@pytest.mark.parametrize(
    "speculate",
    [
        None,
        pytest.param(Speculation(tokens=2, least=1, always=True), marks=pytest.mark.slow),
    ],
)
def test_an_engine_corrects_what_it_reports(lm, monkeypatch, speculate):
    def drawn():
        with lm.engine(slots=2, seconds=None, speculate=speculate) as engine:
            options = {"temperature": 0.7, "stop_ids": (), "logprobs": 1}
            requests = [engine.submit(p, 12, seed=3, **options) for p in PROMPTS[:2]]
            engine.run()
        return [request.result() for request in requests]

    expected = drawn()
    monkeypatch.setattr(engine_module, "Griffin", Rough)
    for one, other in zip(drawn(), expected, strict=True):
        assert one.tokens == other.tokens
        assert np.abs(np.subtract(one.logprobs, other.logprobs)).max() < 1e-5
        pairs = zip(one.top_logprobs, other.top_logprobs, strict=True)
        assert max(abs(a[0][1] - b[0][1]) for a, b in pairs) < 1e-5


def test_logits_by_themselves_are_for_float32_and_whole_weights(lm):
    x, tokens = 0.1 * jnp.ones((2, 32)), np.array([[7, 8], [9, 260]])

    def by_themselves(model, params, x):
        return model.apply({"params": params}, x, method="logits_by_themselves")

    logits = lm.model.apply({"params": lm.params}, x[:, None], method="logits")[:, 0]
    found = by_themselves(lm.model, lm.params, x)(tokens)
    np.testing.assert_allclose(found, np.take_along_axis(logits, tokens, 1), atol=1e-5)
    assert by_themselves(lm.model, lm.params, x.astype(jnp.bfloat16)) is None
    config = griffin_jax.QuantizationConfig(llm_int8_skip_modules=())
    packed = griffin_jax.quantize(lm, config).params
    assert not isinstance(packed["lm_head"]["weight"], jax.Array)
    assert by_themselves(lm.model, packed, x) is None
