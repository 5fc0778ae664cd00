"""Logits, states and what is sent: a mesh gives what one device gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.kernels import rg_lru_pallas_gpu
from griffin_jax.kernels.rg_lru import rg_lru
from griffin_jax.language_model import LanguageModel
from griffin_jax.models import Griffin, init_state, stack_params
from griffin_jax.quantization import PACKINGS
from griffin_jax.sharding import batch_sharding, jit_on_mesh, make_mesh, tree_shardings
from tests.sharding.eight_devices.meshes import (
    CONFIG,
    MESHES,
    SOME,
    WIDE,
    collectives,
    mesh_called,
    on_mesh,
)
from tests.tiny import assert_same_state, params_of, random_tokens, relative_error

LENGTHS = np.array([32, 31, 5, 0, 1, 17, 24, 32], np.int32)
APPLIED = {}


def apply(config, dtype=jnp.float32):
    """`Griffin.apply` (params, tokens, state, lengths), under the mesh of the parameters."""
    model = Griffin(config, dtype=dtype)

    def run(params, tokens, state=None, lengths=None):
        return model.apply({"params": params}, tokens, state, lengths=lengths)

    return APPLIED.setdefault((config, jnp.dtype(dtype)), jit_on_mesh(run))


def read_and_decode(config, params, mesh=None, dtype=jnp.float32, lengths=LENGTHS):
    """Logits of a prompt and of the token after it, the states after both, and the last program."""
    first, second = random_tokens(config, (8, 32)), random_tokens(config, (8, 1), seed=1)
    state = None
    if config.attention_window is None:
        state = init_state(config, 8, dtype, capacity=64)
    if mesh is not None:
        params = on_mesh(params, mesh, config)
        first, second = (jax.device_put(x, batch_sharding(mesh, x.shape)) for x in (first, second))
        if state is not None:
            state = jax.device_put(state, tree_shardings(state, mesh))
    run = apply(config, dtype)
    logits, state = run(params, first, state, lengths)
    program = run.lower(params, second, state).compile()
    return logits, state, *program(params, second, state), program


def assert_equal(actual, expected, lengths=LENGTHS, bound=1e-5):
    (logits, state, next_logits, next_state, _) = actual
    real = np.arange(logits.shape[1])[None] < lengths[:, None]
    assert relative_error(np.asarray(logits)[real], np.asarray(expected[0])[real]) <= bound
    assert_same_state(state, expected[1], bound)
    assert relative_error(next_logits, expected[2]) <= bound
    assert_same_state(next_state, expected[3], bound)


@pytest.fixture(scope="module")
def one_device():
    return read_and_decode(CONFIG, params_of(CONFIG))


@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_gives_logits_and_states_of_one_device_and_decodes_with_few_collectives(
    name, one_device
):
    mesh = mesh_called(name)
    found = read_and_decode(CONFIG, params_of(CONFIG), mesh)
    assert_equal(found, one_device)
    logits, state, *_, program = found
    assert logits.sharding.shard_shape(logits.shape)[-1] == 128 // mesh.shape["model"]
    hidden = state.blocks[0].hidden
    assert hidden.sharding.shard_shape(hidden.shape)[-1] == 128 // mesh.shape["model"]
    sent = collectives(program)
    # Gathered weights are what `fsdp` means. For the rest: one sum for each half of a layer, and
    # one for the embedding, over "model" alone.
    if mesh.shape["fsdp"] > 1:
        assert sent.pop("all-gather") > 0
    assert sent == ({"all-reduce": 2 * CONFIG.num_layers + 1} if mesh.shape["model"] > 1 else {})


@pytest.mark.parametrize("name", SOME[1:])
def test_bfloat16_on_a_mesh_is_as_near_as_rounding_lets_it(name):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params_of(CONFIG))
    one = read_and_decode(CONFIG, params, dtype=jnp.bfloat16)
    found = read_and_decode(CONFIG, params, mesh_called(name), jnp.bfloat16)
    assert_equal(found, one, bound=2e-2)


@pytest.mark.parametrize(
    ("name", "packing", "stacked"),
    [
        *((name, "nf4", False) for name in SOME),
        (SOME[1], "nf4", True),
        (SOME[2], "nf4-double", True),
        (SOME[1], "int8", False),
        (SOME[2], "int8", True),
    ],
)
def test_packed_weights_are_cut_on_either_side_and_multiplied_where_they_lie(
    name, packing, stacked
):
    config = WIDE.replace(num_layers=5) if stacked else WIDE
    params, one = packed(config, packing)
    mesh = mesh_called(name)
    params = stack_params(config, params) if stacked else params
    found = read_and_decode(config, params, mesh)
    assert_equal(found, one)
    sent = collectives(found[-1])
    if mesh.shape["fsdp"] > 1:
        assert sent.pop("all-gather") > 0
    # The program of stacked layers has one group, and the layer that is left over.
    assert sent == {"all-reduce": 2 * (3 if stacked else 2) + 1}
    parts = on_mesh(params, mesh, config)
    layer = parts["groups"]["blocks_0"] if stacked else parts["blocks_0"]
    packed_bytes = jax.tree.leaves(layer["mlp_block"]["down_proj"]["weight"])[0]
    inputs = packed_bytes.shape[-1] // mesh.shape["model"]
    assert packed_bytes.sharding.shard_shape(packed_bytes.shape)[-1] == inputs
    assert packed_bytes.shape[-1] == (512 if packing == "int8" else 256)


PACKED = {}


def packed(config, packing):
    """Packed parameters, and what one device makes of them."""
    from griffin_jax.loading import quantize

    if (config, packing) not in PACKED:
        lm = quantize(LanguageModel(config, params_of(config)), PACKINGS[packing])
        PACKED[config, packing] = lm.params, read_and_decode(config, lm.params)
    return PACKED[config, packing]


def test_flat_four_bit_weights_are_whole_on_every_device():
    # Rows of 96 end within blocks of 64.
    config = CONFIG.replace(width=96, mlp_width=96, recurrence_width=96, head_size=12)
    params, one = packed(config, "nf4")
    mesh = mesh_called("data 2, model 4")
    assert_equal(read_and_decode(config, params, mesh), one)
    weight = on_mesh(params, mesh, config)["blocks_0"]["mlp_block"]["up_proj"]["weight"]
    assert weight.packed.ndim == 1 and weight.packed.is_fully_replicated


@pytest.mark.parametrize(
    "changes",
    [
        {"num_kv_heads": 2},
        {"num_kv_heads": 4, "attention_window": None, "tie_embeddings": False},
        # A window that reaches back over several parts of the sequence.
        {"attention_window": 21, "window_includes_query": True},
    ],
)
def test_other_kinds_of_attention_are_cut_in_time_too(changes):
    config = CONFIG.replace(**changes)
    one = read_and_decode(config, params_of(config))
    assert_equal(
        read_and_decode(config, params_of(config), mesh_called("sequence 4, model 2")), one
    )


def test_chunks_go_on_from_a_state_where_a_sequence_is_cut():
    """Three calls, across the wrap of the ring, with a document that ends in one."""
    mesh = mesh_called("sequence 8")
    tokens = random_tokens(CONFIG, (2, 48))
    lengths = [np.array([16, n], np.int32) for n in (16, 3, 0)]
    runs = []
    for where in (None, mesh):
        params = params_of(CONFIG) if where is None else on_mesh(params_of(CONFIG), where)
        state, logits = None, []
        for i, length in enumerate(lengths):
            part, state = apply(CONFIG)(params, tokens[:, 16 * i : 16 * i + 16], state, length)
            logits.append(part[0])
        runs.append((np.concatenate(logits), state))
    assert relative_error(runs[1][0], runs[0][0]) <= 1e-5
    assert_same_state(runs[1][1], runs[0][1])


@pytest.mark.parametrize("axis", ["data", "model"])
def test_the_fused_rg_lru_serves_the_parts_of_a_mesh(monkeypatch, axis):
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = [(2, 24, 64)] * 3 + [(64,), (2, 64)]
    arguments = [jax.random.normal(*x) for x in zip(keys, shapes, strict=True)]
    positions = jnp.tile(jnp.arange(5, 29), (2, 1))
    lengths = jnp.array([24, 22])
    interpreted = functools.partial(rg_lru_pallas_gpu.rg_lru, interpret=True)
    monkeypatch.setattr(rg_lru_pallas_gpu, "rg_lru", interpreted)
    monkeypatch.setattr("griffin_jax.kernels.rg_lru.choose", lambda *_: "pallas_gpu")

    @jax.jit
    def gradient(*arguments):
        def loss(*arguments):
            h, last = rg_lru(*arguments, positions, lengths)
            return jnp.sum(jnp.sin(h)) + jnp.sum(jnp.cos(last))

        return jax.grad(loss, argnums=range(5))(*arguments)

    wanted = gradient(*arguments)
    sizes = {"data": 1, "devices": jax.devices()[:2]} | {axis: 2}
    with jax.set_mesh(make_mesh(**sizes)):
        got = gradient(*arguments)
    for a, b in zip(wanted, got, strict=True):
        np.testing.assert_allclose(b, a, atol=5e-6, rtol=5e-6)
