"""Launches of a decoding step on parts: what each device computes of its part adds up to the whole.

The launches themselves are replaced by the definitions here, of the same parts. That they equal the
definitions is shown on one device, in tests/models.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.config import preset
from griffin_jax.kernels.mosaic_gpu import backend
from griffin_jax.models import attention_rows, gated_mlp, recurrent_rows
from griffin_jax.models.attention import AttentionState, attend_and_write
from griffin_jax.models.rglru import RecurrentBlock, RecurrentState
from griffin_jax.models.state import Timeline
from griffin_jax.quantization import quantize
from tests.sharding.eight_devices.meshes import SOME, mesh_called
from tests.tiny import relative_error

ROWS, HEADS, WIDTH, HIDDEN = 8, 8, 64, 512


@pytest.fixture(params=SOME)
def mesh(request):
    return mesh_called(request.param)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape), jnp.float32)


def timeline():
    positions = jnp.asarray([0, 3, 9, 30, 1, 8, 7, 64], jnp.int32)
    return Timeline(positions[:, None], jnp.asarray([1, 1, 0, 1, 1, 1, 1, 1], jnp.int32), positions)


def equal_on(mesh, function, *arguments):
    alone = jax.jit(function)(*arguments)
    with jax.set_mesh(mesh):
        parts = jax.jit(function)(*arguments)
    for found, wanted in zip(*map(jax.tree.leaves, (parts, alone)), strict=True):
        assert relative_error(np.asarray(found), np.asarray(wanted)) <= 1e-5


def test_heads_of_attention_are_shared_out(mesh, monkeypatch):
    def definition(q, k, v, state, timeline, *, reach, interpret):
        del interpret
        assert q.shape[2] == HEADS // (mesh.shape["model"] if launched else 1)
        return attend_and_write(reach, q, k, v, state, timeline)

    launched = False
    monkeypatch.setattr(attention_rows, "_on_one_device", definition)
    q, k, v = normal(ROWS, 1, HEADS, 16), normal(ROWS, 1, 1, 16), normal(ROWS, 1, 1, 16, seed=1)
    state = AttentionState(normal(ROWS, 8, 1, 16), normal(ROWS, 8, 1, 16, seed=1))
    run = functools.partial(attention_rows.attention_rows, None, reach=8)
    alone = run(q, k, v, state, timeline())
    launched = True
    with jax.set_mesh(mesh):
        parts = jax.jit(run)(q, k, v, state, timeline())
    for found, wanted in zip(*map(jax.tree.leaves, (parts, alone)), strict=True):
        assert relative_error(np.asarray(found), np.asarray(wanted)) <= 1e-6


def layer(out, width, seed, **options):
    weight = normal(out, width, seed=seed) * width**-0.5
    return {
        "weight": quantize(np.asarray(weight), **options) if options else weight,
        "bias": normal(out, seed=seed),
    }


@pytest.mark.parametrize("double_quant", [False, True])
def test_features_of_a_gated_mlp_are_shared_out(mesh, monkeypatch, double_quant):
    def definition(x, weights, biases, *, interpret):
        del interpret
        gate, up, down = (weight.dequantize(jnp.float32) for weight in weights)
        return (jax.nn.gelu(x @ gate.T + biases[0]) * (x @ up.T + biases[1])) @ down.T

    monkeypatch.setattr(gated_mlp, "_on_one_device", definition)
    options = {"double_quant": double_quant, "quant_type": "nf4"}
    params = {
        "gate_proj": layer(HIDDEN, WIDTH, 1, **options),
        "up_proj": layer(HIDDEN, WIDTH, 2, **options),
        "down_proj": layer(WIDTH, HIDDEN, 3, **options),
    }
    with jax.numpy_rank_promotion("allow"):
        equal_on(mesh, functools.partial(gated_mlp.gated_mlp, None), params, normal(ROWS, 1, 64))


@pytest.mark.parametrize("options", [{}, {"quant_type": "nf4"}], ids=["arrays", "nf4"])
def test_channels_of_a_recurrent_block_are_shared_out(mesh, monkeypatch, options):
    def definition(params, x, state, timeline, *, interpret):
        del interpret
        heads, size = params["rg_lru"]["a_gate"]["bias"].shape
        shape = {"width": WIDTH, "recurrence_width": heads * size, "num_heads": heads}
        block = RecurrentBlock(preset("tiny").replace(**shape), kernel="reference")
        out = {"weight": params["linear_out"]["weight"], "bias": jnp.zeros(WIDTH)}
        return block.apply({"params": params | {"linear_out": out}}, x, state, timeline)

    monkeypatch.setattr(recurrent_rows, "_on_one_device", definition)
    size = HIDDEN // HEADS
    gate = {"weight": normal(HEADS, size, size) * size**-0.5, "bias": normal(HEADS, size)}
    params = {
        "linear_x": layer(HIDDEN, WIDTH, 1, **options),
        "linear_y": layer(HIDDEN, WIDTH, 2, **options),
        "linear_out": layer(WIDTH, HIDDEN, 3, **options),
        "conv_1d": {"weight": normal(4, HIDDEN), "bias": normal(HIDDEN)},
        "rg_lru": {"a_gate": gate, "input_gate": gate, "a_param": normal(HIDDEN) - 4},
    }
    state = RecurrentState(normal(ROWS, HIDDEN), normal(ROWS, 3, HIDDEN))
    arguments = params, normal(ROWS, 1, WIDTH), state, timeline()
    equal_on(mesh, functools.partial(recurrent_rows.recurrent_rows, None), *arguments)


def test_parts_that_the_launches_do_not_serve_are_told(monkeypatch):
    monkeypatch.setattr(backend, "missing", lambda: None)
    half = jnp.bfloat16
    q, k = jnp.zeros((8, 1, 8, 128), half), jnp.zeros((8, 1, 1, 128), half)
    state = AttentionState(jnp.zeros((8, 64, 1, 128), half), jnp.zeros((8, 64, 1, 128), half))
    options = {"quant_type": "nf4"}
    params = {
        "gate_proj": layer(1024, 256, 1, **options),
        "up_proj": layer(1024, 256, 2, **options),
        "down_proj": layer(256, 1024, 3, **options),
    }
    x = jnp.zeros((8, 1, 256), half)
    with jax.set_mesh(mesh_called("data 2, model 4")):
        assert attention_rows.unsupported_reason(q, k, state, timeline()) is None
        assert gated_mlp.unsupported_reason(params, x) is None
    with jax.set_mesh(mesh_called("model 8")):  # 128 features a device
        assert "gates of 128 of 128 outputs" in gated_mlp.unsupported_reason(params, x)
