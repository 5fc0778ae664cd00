"""Gradients of the recurrent block against those of the authors' code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.config import GriffinConfig
from griffin_jax.models import RecurrentState, Timeline
from griffin_jax.models.rglru import RecurrentBlock

pytestmark = pytest.mark.parity
modules = pytest.importorskip("recurrentgemma.jax.modules")

BATCH, TIME, WIDTH, RECURRENCE, HEADS = 2, 24, 16, 24, 4
# The second row begins a new document in its middle.
POSITIONS = np.stack([np.arange(TIME), np.r_[np.arange(10), np.arange(TIME - 10)]]).astype(np.int32)


def to_theirs(params):
    """Our tree of the block under their names, linear weights as [in, out]."""

    def linear(layer):
        return {"kernel": layer["weight"].T, "bias": layer["bias"]}

    def plain(layer):
        return {"w": layer["weight"], "b": layer["bias"]}

    rg_lru = params["rg_lru"]
    return {
        **{name: linear(params[name]) for name in ("linear_x", "linear_y", "linear_out")},
        "conv_1d": plain(params["conv_1d"]),
        "rg_lru": {
            "a_param": rg_lru["a_param"],
            "input_gate": plain(rg_lru["input_gate"]),
            "a_gate": plain(rg_lru["a_gate"]),
        },
    }


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 3e-2)])
def test_gradients_equal_the_authors(dtype, tolerance):
    # The output layer is drawn at 2 / num_layers.
    config = GriffinConfig(
        vocab_size=8,
        width=WIDTH,
        mlp_width=8,
        num_layers=2,
        num_heads=HEADS,
        recurrence_width=RECURRENCE,
        head_size=4,
    )
    ours = RecurrentBlock(config, dtype=jnp.dtype(dtype))
    theirs = modules.RecurrentBlock(WIDTH, HEADS, RECURRENCE, dtype=jnp.dtype(dtype))
    draw = functools.partial(jax.random.normal, shape=(BATCH, TIME, WIDTH))
    x, weights = draw(jax.random.key(0)), draw(jax.random.key(1))
    empty = RecurrentState(jnp.zeros((BATCH, RECURRENCE)), jnp.zeros((BATCH, 3, RECURRENCE)))
    full = jnp.full(BATCH, TIME)
    timeline = Timeline(jnp.asarray(POSITIONS), full, jnp.zeros(BATCH, int))
    params = jax.jit(ours.init)(jax.random.key(2), x, empty, timeline)["params"]

    def our_loss(params, x):
        out, _ = ours.apply({"params": params}, x.astype(dtype), empty, timeline)
        return jnp.sum(out.astype(jnp.float32) * weights)

    def their_loss(params, x):
        out, _ = theirs.apply(
            {"params": params}, x.astype(dtype), timeline.positions, return_cache=False
        )
        return jnp.sum(out.astype(jnp.float32) * weights)

    got_params, got_x = jax.jit(jax.grad(our_loss, argnums=(0, 1)))(params, x)
    wanted = jax.jit(jax.grad(their_loss, argnums=(0, 1)))(to_theirs(params), x)

    def compare(path, got, wanted):
        error = jnp.linalg.norm(got - wanted) / jnp.linalg.norm(wanted)
        assert error < tolerance, f"{jax.tree_util.keystr(path)}: {error}"

    jax.tree_util.tree_map_with_path(compare, (to_theirs(got_params), got_x), wanted)
