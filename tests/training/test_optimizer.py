"""AdamW: what decays and how the learning rate goes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.config import TINY
from griffin_jax.models import abstract_params
from griffin_jax.training.optimizer import OptimizerConfig, adamw, decays, learning_rate_schedule


def test_with_no_gradient_only_linear_matrices_and_the_embedding_shrink():
    optimizer = adamw(OptimizerConfig(learning_rate=0.5, warmup_steps=0), steps=10)

    @jax.jit
    def first_update():
        params = jax.tree.map(lambda x: jnp.ones(x.shape), abstract_params(TINY))
        zero = jax.tree.map(jnp.zeros_like, params)
        return optimizer.update(zero, optimizer.init(params), params)[0]

    shrunk = set()
    for path, update in jax.tree_util.tree_leaves_with_path(first_update()):
        update = np.asarray(update)
        assert decays(path) == (update < 0).all() == (update != 0).any()
        if decays(path):
            shrunk.add("/".join(entry.key for entry in path[-2:]))
    assert shrunk == {
        "embedder/embedding",
        *(f"linear_{name}/weight" for name in ("x", "y", "out")),
        *(f"{name}_proj/weight" for name in ("q", "k", "v", "o", "gate", "up", "down")),
    }


def test_the_learning_rate_warms_up_and_ends_at_its_share():
    schedule = learning_rate_schedule(OptimizerConfig(1e-3, warmup_steps=10, final_share=0.1), 110)
    np.testing.assert_allclose(
        [schedule(step) for step in (0, 5, 10, 60, 110)],
        [0, 5e-4, 1e-3, 5.5e-4, 1e-4],
        rtol=1e-5,
        atol=1e-9,
    )


def test_a_schedule_shorter_than_its_warm_up_is_refused():
    with pytest.raises(ValueError, match="warmup_steps 100 must be less than steps 50"):
        learning_rate_schedule(OptimizerConfig(warmup_steps=100), 50)
