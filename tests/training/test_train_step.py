"""The loss, its gradient and the update."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from griffin_jax.models import Griffin, init_params
from griffin_jax.models.blocks import drop_out
from griffin_jax.training.data import evaluation_batches
from griffin_jax.training.train_step import (
    TrainState,
    data_mesh,
    make_train_step,
    put_batch,
    token_losses,
)
from tests.training.small_run import MODEL, make_config, make_rows

MODULE = Griffin(MODEL)
PARAMS = jax.jit(functools.partial(init_params, MODEL))(jax.random.key(0))


BATCH = put_batch(next(evaluation_batches(make_rows(), 8, 1)), data_mesh())


def test_the_loss_is_the_masked_sum_of_cross_entropies():
    nll, squares = jax.jit(functools.partial(token_losses, MODULE))(PARAMS, BATCH)
    logits, _ = jax.jit(MODULE.apply)(
        {"params": PARAMS}, BATCH["inputs"], positions=BATCH["positions"]
    )
    each = optax.softmax_cross_entropy_with_integer_labels(logits, BATCH["targets"])
    assert 0 < BATCH["mask"].sum() < BATCH["mask"].size
    np.testing.assert_allclose(nll, jnp.sum(each * BATCH["mask"]), rtol=1e-5)
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    np.testing.assert_allclose(squares, jnp.sum(normalizer**2 * BATCH["mask"]), rtol=1e-5)


def test_dropout_depends_on_its_key_and_needs_one():
    dropping = Griffin(MODEL, dropout=0.3)
    loss = jax.jit(lambda key: token_losses(dropping, PARAMS, BATCH, key=key)[0])
    assert loss(None) == jax.jit(lambda: token_losses(MODULE, PARAMS, BATCH)[0])()
    assert loss(jax.random.key(0)) == loss(jax.random.key(0))
    assert len({float(loss(key)) for key in (None, *jax.random.split(jax.random.key(0)))}) == 3


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_dropout_leaves_out_its_share_and_keeps_the_mean(impl):
    key = jax.random.key(0, impl=impl)
    out = np.asarray(drop_out(jnp.ones((64, 64, 16), jnp.bfloat16), 0.25, key), np.float32)
    assert np.unique(out).tolist() == [0.0, np.float32(jnp.bfloat16(4 / 3))]
    assert np.mean(out == 0) == pytest.approx(0.25, abs=0.01)
    assert np.mean(out) == pytest.approx(1, abs=0.01)


def updated(**options):
    """Parameters after one step of plain gradient descent, and the metrics."""
    optimizer = optax.sgd(0.1)
    step = make_train_step(MODULE, optimizer, data_mesh(), z_loss=1e-2, **options)
    params = jax.tree.map(jnp.copy, PARAMS)
    state, metrics = step(TrainState(jnp.int32(0), params, optimizer.init(params)), None, BATCH)
    return state.params, metrics


def test_microbatches_and_chunks_of_the_loss_change_neither_loss_nor_update():
    params, metrics = updated()
    other_params, other_metrics = updated(microbatches=2, loss_chunks=4)
    chex.assert_trees_all_close(other_params, params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(other_metrics, metrics, rtol=1e-5)
    moved = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), params, PARAMS)
    assert all(distance > 0 for distance in jax.tree.leaves(moved))


@pytest.mark.slow
def test_the_average_follows_the_parameters_of_every_step():
    optimizer = optax.sgd(0.1)
    step = make_train_step(MODULE, optimizer, data_mesh(), ema=0.3)
    params, average = (jax.tree.map(jnp.copy, PARAMS) for _ in range(2))
    state = TrainState(jnp.int32(0), params, optimizer.init(params), average)
    expected = jax.tree.map(np.asarray, PARAMS)
    for decay in (1 / 10, 2 / 11, 3 / 12, 0.3):
        state, _ = step(state, None, BATCH)
        expected = jax.tree.map(
            lambda a, p, d=decay: d * a + (1 - d) * np.asarray(p), expected, state.params
        )
    chex.assert_trees_all_close(state.average, expected, rtol=1e-5, atol=1e-7)
    assert state.evaluated is state.average


def test_a_batch_that_does_not_divide_over_the_devices_is_refused():
    with pytest.raises(ValueError, match="batch_size 4 does not divide over 3 devices x 1"):
        make_config().check_devices(3)
    with pytest.raises(ValueError, match="4 devices x 2 microbatches; the next that does is 8"):
        make_config(microbatches=2).check_devices(4)
