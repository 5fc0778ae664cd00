"""A decoding step's kernels against the block that they stand for, in Pallas' interpreter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.config import ATTENTION, RECURRENT, preset
from griffin_jax.kernels.step_gpu import attention, block, recurrent
from griffin_jax.models import abstract_params, init_params, init_state, residual_step
from griffin_jax.models.blocks import ResidualBlock, block_of
from griffin_jax.models.state import Timeline
from griffin_jax.quantization import FORMATS, PACKINGS
from griffin_jax.weight import dequantized, is_weight
from tests.kernels.lowering import for_gpu

BF16 = jnp.bfloat16
CONFIG = preset("tiny").replace(
    width=512,
    mlp_width=1536,
    num_heads=8,
    num_kv_heads=1,
    head_size=64,
    recurrence_width=512,
    attention_window=96,
    num_layers=3,
)
INDEX = {RECURRENT: 0, ATTENTION: 2}
PLAIN, FOUR_BITS, EIGHT_BITS = None, "nf4-double", "int8"
LAUNCHES = {
    (RECURRENT, PLAIN): 5,
    (RECURRENT, EIGHT_BITS): 5,
    (RECURRENT, FOUR_BITS): 4,
    (ATTENTION, PLAIN): 6,
    (ATTENTION, EIGHT_BITS): 6,
    (ATTENTION, FOUR_BITS): 4,
}
ON_GPU = jax.default_backend() == "gpu"


def way(kind):
    """How the step of a kind of block goes, and the name of its mixing's parameters."""
    return block_of(kind).step, f"{kind}_block"


def with_linear(change, params):
    """The parameters with `change` of the weights of linear layers."""

    def visit(path, x):
        names = [key.key for key in path]
        linear = names[-1] == "weight" and x.ndim == 2 and "conv_1d" not in names
        return change(x) if linear else x

    return jax.tree_util.tree_map_with_path(visit, params)


def packed_as(name, params, way="pack"):
    settings = PACKINGS[name]
    form = FORMATS[settings.quant_type]
    if way == "abstract":
        return with_linear(lambda x: form.abstract(x.shape, x.dtype, settings), params)
    return with_linear(lambda x: form.pack(x, settings), params)


@functools.cache
def operands(kind, packed, start, seed=0):
    """Parameters, input, state after `start` tokens, and the same in float32."""
    key = jax.random.key(seed)
    params = init_params(CONFIG, key)[f"blocks_{INDEX[kind]}"]
    # Norms, biases and the convolution begin at zero or near it.
    params = jax.tree.map(
        lambda x: (x + 0.1 * jax.random.normal(key, x.shape)).astype(BF16), params
    )
    if packed is not PLAIN:
        params = packed_as(packed, params)
    x = jax.random.normal(key, (1, 1, CONFIG.width), BF16)
    state = init_state(CONFIG, 1, BF16).blocks[INDEX[kind]]
    if start:
        state = jax.tree.map(lambda s: jax.random.normal(key, s.shape, s.dtype), state)

    wide = jax.tree.map(
        lambda leaf: dequantized(leaf, jnp.float32), (params, x, state), is_leaf=is_weight
    )
    return (params, x, state), wide


def timeline(start, position=None, length=1):
    position = start if position is None else position
    one = jnp.ones(1, jnp.int32)
    return Timeline(position * one[None], length * one, start * one)


def reference_block(kind, dtype):
    return ResidualBlock(CONFIG, kind, dtype=dtype, param_dtype=dtype, kernel="reference")


@functools.partial(jax.jit, static_argnames=("kind", "dtype"))
def in_layers(kind, dtype, arguments, when):
    params, *rest = arguments
    return reference_block(kind, dtype).apply({"params": params}, *rest, when)


@functools.partial(jax.jit, static_argnames="kind")
def step(kind, arguments, when):
    reference = reference_block(kind, BF16).apply
    return residual_step.residual_step(
        CONFIG, *way(kind), reference, *arguments, when, interpret=not ON_GPU
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", [RECURRENT, ATTENTION])
@pytest.mark.parametrize("packed", [PLAIN, FOUR_BITS])
@pytest.mark.parametrize(
    "when",
    [
        pytest.param(timeline(0), id="first"),
        pytest.param(timeline(2), id="third"),
        pytest.param(timeline(40), id="ring in part"),
        pytest.param(timeline(1000), id="ring full"),
        pytest.param(timeline(1000, 0), id="new document"),
        pytest.param(timeline(1000, length=0), id="padding"),
    ],
)
def test_a_step_is_the_block_in_float32_up_to_rounding(kind, packed, when):
    assert_is_the_block_in_float32(kind, packed, when)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [RECURRENT, ATTENTION])
def test_a_step_with_8_bit_weights_is_the_block_in_float32_up_to_rounding(kind):
    assert_is_the_block_in_float32(kind, EIGHT_BITS, timeline(40))


def assert_is_the_block_in_float32(kind, packed, when):
    arguments, wide = operands(kind, packed, int(when.start[0]))
    assert residual_step.unsupported_reason(CONFIG, *way(kind), *arguments) is None
    found = step(kind, arguments, when)
    expected = in_layers(kind, jnp.float32, wide, when)
    if not int(when.lengths[0]):  # what padding makes of x means nothing
        found, expected = found[1], expected[1]
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        bound = 2**-6 * max(float(jnp.abs(b).max()), 1e-3)
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=0, atol=bound)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [RECURRENT, ATTENTION])
def test_phases_that_share_a_launch_are_those_that_have_their_own(kind, monkeypatch):
    arguments, _ = operands(kind, FOUR_BITS, 1000)
    shared = step(kind, arguments, timeline(1000))
    whole = block.run_block

    def apart(*args, together, **kwargs):
        return whole(*args, together=[1] * sum(together), **kwargs)

    for module in (recurrent, attention):
        monkeypatch.setattr(module, "run_block", apart)
    jax.clear_caches()
    own = step(kind, arguments, timeline(1000))
    jax.clear_caches()
    jax.tree.map(np.testing.assert_array_equal, shared, own)


@pytest.mark.slow
def test_the_gradient_is_that_of_the_layers():
    (params, x, state), _ = operands(RECURRENT, PLAIN, 5)
    when = timeline(5)

    def total(run):
        return lambda x: run((params, x, state), when)[0].astype(jnp.float32).sum()

    found = jax.grad(total(lambda *a: step(RECURRENT, *a)))(x)
    expected = jax.grad(total(lambda *a: in_layers(RECURRENT, BF16, *a)))(x)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "kind, change, reason",
    [
        (RECURRENT, {"x": jnp.zeros((2, 1, CONFIG.width), BF16)}, "2 rows of 1 tokens"),
        (RECURRENT, {"x": jnp.zeros((1, 1, CONFIG.width))}, "float32"),
        (RECURRENT, {"config": CONFIG.replace(width=192)}, "192"),
        (ATTENTION, {"config": CONFIG.replace(rope_fraction=0.25)}, "rotary positions of 16 of 64"),
        (ATTENTION, {"config": CONFIG.replace(rope_fraction=0.0)}, "rotary positions of 0 of 64"),
    ],
)
def test_what_is_not_served_says_why(kind, change, reason):
    (params, x, state), _ = operands(kind, PLAIN, 0)
    fused, name = way(kind)
    arguments = {"config": CONFIG, "step": fused, "name": name}
    arguments |= {"params": params, "x": x, "state": state}
    assert residual_step.unsupported_reason(**arguments) is None
    assert reason in residual_step.unsupported_reason(**(arguments | change))


@pytest.mark.parametrize(
    "kind, rope_fraction", [(RECURRENT, 0.5), (ATTENTION, 0.5), (ATTENTION, 1.0)]
)
@pytest.mark.parametrize(
    "packed", [*(pytest.param(x, marks=pytest.mark.slow) for x in (PLAIN, EIGHT_BITS)), FOUR_BITS]
)
def test_what_is_served_lowers_for_a_gpu(kind, rope_fraction, packed):
    # Triton refuses sizes that the interpreter takes.
    config = CONFIG.replace(rope_fraction=rope_fraction)
    arguments, _ = operands(kind, packed, 40)
    assert residual_step.unsupported_reason(config, *way(kind), *arguments) is None

    def run(arguments, when):
        return residual_step.residual_step(config, *way(kind), None, *arguments, when)

    launches = LAUNCHES[kind, packed]
    text = for_gpu(run, arguments, timeline(40))
    assert text.count("custom_call @__gpu$xla.gpu.triton") == launches


@pytest.mark.parametrize("kind", [RECURRENT, ATTENTION])
@pytest.mark.parametrize(
    "name, packed",
    [
        pytest.param("recurrentgemma-2b", FOUR_BITS, marks=pytest.mark.slow),
        ("recurrentgemma-9b", FOUR_BITS),
        pytest.param("recurrentgemma-9b", EIGHT_BITS, marks=pytest.mark.slow),
    ],
)
def test_published_sizes_lower_for_a_gpu(name, kind, packed):
    config = preset(name)
    index = config.block_types.index(kind)
    params = packed_as(packed, abstract_params(config, BF16)[f"blocks_{index}"], "abstract")
    x = jax.ShapeDtypeStruct((1, 1, config.width), BF16)
    state = jax.eval_shape(lambda: init_state(config, 1, BF16)).blocks[index]
    assert residual_step.unsupported_reason(config, *way(kind), params, x, state) is None

    def run(arguments, when):
        return residual_step.residual_step(config, *way(kind), None, *arguments, when)

    text = for_gpu(run, (params, x, state), timeline(40))
    assert text.count("custom_call @__gpu$xla.gpu.triton") == LAUNCHES[kind, packed]


def test_the_choice_falls_on_layers_off_a_gpu():
    (params, x, state), _ = operands(RECURRENT, PLAIN, 0)
    forced = ResidualBlock(CONFIG, RECURRENT, dtype=BF16, kernel="step_gpu")
    if not ON_GPU:
        with pytest.raises(ValueError, match="needs a GPU"):
            forced.apply({"params": params}, x, state, timeline(0))
