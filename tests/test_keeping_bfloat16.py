"""Parameters stored in bfloat16, on CPUs with and without products of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import griffin_jax
from griffin_jax import loading
from tests.checkpoints.tiny_model import CONFIG, random_params

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="these need a CPU")


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_stays_where_the_cpu_multiplies_it_and_logits_are_those_of_float32(
    tmp_path, monkeypatch, native
):
    monkeypatch.setattr(loading, "has_bfloat16", lambda: native)
    lm = griffin_jax.LanguageModel(CONFIG, random_params(CONFIG, jnp.bfloat16))
    griffin_jax.save(lm, tmp_path / "model")
    default = griffin_jax.load(tmp_path / "model")
    wide = griffin_jax.load(tmp_path / "model", dtype="float32")
    kept = jnp.bfloat16 if native else jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(default.params)} == {jnp.dtype(kept)}
    assert {leaf.dtype for leaf in jax.tree.leaves(wide.params)} == {jnp.dtype(jnp.float32)}
    assert default.dtype == wide.dtype == jnp.float32
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 11))
    ours, theirs = default.apply(tokens)[0], wide.apply(tokens)[0]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
