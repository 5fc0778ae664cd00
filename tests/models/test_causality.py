"""What reaches what, shown by gradients: they are exactly zero where nothing may pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.config import ATTENTION
from griffin_jax.models import Griffin, init_state
from tests.tiny import CONFIGS, GRIFFIN, params_of, random_tokens

TIME = 20
# Untied, so that an embedding acts as an input only; every token of the text has its own row.
TOKENS = np.arange(TIME, dtype=np.int32)[None]


@functools.cache
def jacobian_of(config, calls):
    """The compiled Jacobian of a score of every token by the embedding, read in some calls."""
    model, params = Griffin(config), params_of(config)
    weights = np.random.default_rng(0).standard_normal((TIME, config.vocab_size))

    @jax.jit
    @jax.jacrev
    def scores(embedding, positions):
        changed = {**params, "embedder": {"embedding": embedding}}
        state, logits, begin = init_state(config, 1), [], 0
        for size in calls:
            part = slice(begin, begin + size)
            out, state = model.apply(
                {"params": changed}, TOKENS[:, part], state, positions[None, part]
            )
            logits.append(out[0])
            begin += size
        return jnp.sum(jnp.concatenate(logits) * weights, axis=-1)

    return functools.partial(scores, params["embedder"]["embedding"])


def reach(config, positions=None, calls=(TIME,)):
    """bool[T, T]: whether the logits of token t depend on the embedding of token u."""
    positions = np.arange(TIME) if positions is None else positions
    jacobian = jacobian_of(config.replace(tie_embeddings=False), calls)(positions)
    return np.any(np.asarray(jacobian)[:, :TIME] != 0, axis=-1)


T, U = np.arange(TIME)[:, None], np.arange(TIME)[None]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_token_depends_on_all_before_it_and_on_none_after_it(config):
    np.testing.assert_array_equal(reach(config), U <= T)


def test_a_packed_document_does_not_depend_on_the_one_before():
    begin = np.where(np.arange(TIME) < 7, 0, np.where(np.arange(TIME) < 18, 7, 18))
    found = reach(GRIFFIN, positions=np.arange(TIME) - begin)
    np.testing.assert_array_equal(found, (U <= T) & (begin[:, None] <= U))


in_calls = pytest.mark.parametrize(
    "calls", [(TIME,), pytest.param((6, 1, 1, 12), marks=pytest.mark.slow)], ids=str
)


class TestWindow:
    """One attention layer alone: a token sees exactly the keys that the window lets it see."""

    config = GRIFFIN.replace(num_layers=1, block_pattern=(ATTENTION,), attention_window=4)

    @in_calls
    def test_by_default_the_query_and_as_many_keys_before_it_as_the_window(self, calls):
        np.testing.assert_array_equal(reach(self.config, calls=calls), (U <= T) & (U >= T - 4))

    @in_calls
    def test_with_window_includes_query_one_key_less(self, calls):
        config = self.config.replace(window_includes_query=True)
        np.testing.assert_array_equal(reach(config, calls=calls), (U <= T) & (U > T - 4))

    def test_unbounded_sees_everything_before(self):
        config = self.config.replace(attention_window=None)
        model, params = Griffin(config), params_of(config)
        embedding = params["embedder"]["embedding"]

        def last(embedding):
            changed = {**params, "embedder": {"embedding": embedding}}
            return model.apply({"params": changed}, TOKENS, method="features")[0][0, -1].sum()

        gradient = jax.jit(jax.grad(last))(embedding)
        assert np.all(np.any(np.asarray(gradient)[:TIME] != 0, axis=-1))


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["block", "dots"])
def test_recomputing_in_the_backward_pass_changes_no_gradient(remat):
    config = GRIFFIN.replace(num_layers=2)
    tokens = random_tokens(config, (2, 4))

    def loss(params, remat):
        logits, _ = Griffin(config, remat=remat).apply({"params": params}, tokens)
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[..., 0])

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    kept, recomputed = gradient(params_of(config), "none"), gradient(params_of(config), remat)
    for (path, a), b in zip(
        jax.tree.leaves_with_path(kept), jax.tree.leaves(recomputed), strict=True
    ):
        assert np.all(np.isfinite(a)), path
        assert np.any(np.asarray(a) != 0), f"{path} has no effect"
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5 * np.abs(a).max())
