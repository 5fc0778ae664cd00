"""The RG-LRU in one pass forward and one backward on Hopper equals its definition."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.kernels import rg_lru_mosaic_gpu
from griffin_jax.kernels.mosaic_gpu import backend, rg_lru_ptx
from griffin_jax.kernels.rg_lru import rg_lru_reference
from griffin_jax.kernels.rg_lru_pallas_gpu import slope_of
from griffin_jax.kernels.time_chunks_gpu import EMPTY, NAN
from tests.kernels import ptx_threads
from tests.kernels.lowering import for_gpu
from tests.kernels.mosaic import ON_HOPPER, compiled_for_h200

NAMES = ["h", "last", "dx", "dgate_x", "dgate_a", "da_param", "dhidden"]
KERNEL: Any = rg_lru_mosaic_gpu.rg_lru  # called with arguments of any number
STEPS, CHANNELS = 128, rg_lru_ptx.CHANNELS
_STATES, _HIDDEN, _SUMS = 0, 192, 256  # words of memory


def draw(rows, time, width):
    """Arguments in which documents begin on the way, and rows end in padding."""
    random = np.random.default_rng(time)
    shape = rows, time, width
    x, gate_x, gate_a = (
        jnp.asarray(2 * random.standard_normal(shape), jnp.bfloat16) for _ in range(3)
    )
    a_param = jnp.asarray(random.uniform(-9, -3, width), jnp.float32)
    hidden = jnp.asarray(random.standard_normal((rows, width)), jnp.bfloat16).astype(jnp.float32)
    positions = np.arange(time) + 5 + np.zeros((rows, 1), np.int32)
    positions[:, time // 3 :] = np.arange(time - time // 3)
    lengths = np.array([time - 3 * (i + 1) for i in range(rows)])
    return (x, gate_x, gate_a, a_param, hidden), jnp.asarray(positions), jnp.asarray(lengths)


def with_gradients(function, arguments, positions, lengths, weights):
    """Outputs, and the gradients of their sums under weights, in float64."""

    @jax.jit
    def run(*arguments):
        outputs, pullback = jax.vjp(lambda *a: function(*a, positions, lengths), *arguments)
        return *outputs, *pullback((weights[0].astype(outputs[0].dtype), weights[1]))

    return [np.float64(x) for x in run(*arguments)]


def definition(arguments, positions, lengths, weights):
    """In float32, of the same numbers."""
    arguments = [x.astype(jnp.float32) for x in arguments]
    return with_gradients(rg_lru_reference, arguments, positions, lengths, weights)


def assert_close(got, wanted):
    for name, a, b in zip(NAMES, got, wanted, strict=True):
        assert np.linalg.norm(a - b) <= 5e-3 * np.linalg.norm(b), name
        assert np.abs(a - b).max() <= 8e-3 * np.abs(b).max(), name


def words(*arrays):
    return [np.asarray(x).reshape(-1).view(np.uint32) for x in arrays]


def chunk(code, boxes, groups, slope, positions, length, initial, *, hidden=None, last=False):
    """Runs a chunk's threads: the results in its boxes, what leaves, and sums over it."""
    parts = [*words(*boxes), np.zeros(STEPS * CHANNELS // 2, np.uint32), *words(positions)]
    parts += [np.zeros(rg_lru_ptx.ends_size(groups), np.uint32), *words(slope)]
    places = np.cumsum([0, *(4 * len(part) for part in parts)])[:-1].tolist()
    shared = np.concatenate(parts)
    # What enters, what leaves, what leaves the last chunk, what was before, and sums.
    memory = np.full(5 * CHANNELS, EMPTY & 0xFFFFFFFF, np.uint32)
    memory[:CHANNELS] = words(initial)[0]
    addresses = [4 * CHANNELS * i for i in range(3)]
    if hidden is not None:
        memory[3 * CHANNELS : 4 * CHANNELS] = words(hidden)[0]
        addresses += [4 * CHANNELS * i for i in (3, 4)]
    begin = int(positions[0, 0]) - 5
    arguments = [*places, begin, begin + length, int(last), *addresses]
    ptx_threads.run(code(groups, STEPS // groups), arguments, shared, memory, 32 * groups)
    found = [
        shared[place // 4 : place // 4 + STEPS * CHANNELS // 2].view(jnp.bfloat16)
        for place in places[: 1 if hidden is None else 3]
    ]
    found = [np.float64(x).reshape(STEPS, CHANNELS) for x in found]
    leaves = memory[CHANNELS : 3 * CHANNELS].view(np.float32).reshape(2, CHANNELS)
    assert np.isnan(leaves[1 - last]).all()
    return found, leaves[int(last)], memory[4 * CHANNELS :].view(np.float32)


@pytest.mark.parametrize("groups", [8, 16])
@pytest.mark.parametrize("begin", [0, 3 * STEPS])
def test_the_threads_of_a_chunk_work_out_the_definition(groups, begin):
    arguments, positions, lengths = draw(1, STEPS, CHANNELS)
    random = np.random.default_rng(1)
    weights = [
        jnp.asarray(random.standard_normal((1, STEPS, CHANNELS)), jnp.bfloat16),
        jnp.asarray(random.standard_normal((1, CHANNELS)), jnp.float32),
    ]
    wanted = definition(arguments, positions, lengths, weights)
    *inputs, a_param, hidden = arguments
    slope = slope_of(a_param)
    rest = slope, jnp.where(positions == 0, 0, positions + begin), int(lengths[0])
    is_first = not begin
    [h], last, _ = chunk(rg_lru_ptx.forward, inputs, groups, *rest, hidden, last=not is_first)
    # What stands before the first chunk is the state that was given.
    before = 99 + 0 * inputs[0][:, :1] if is_first else hidden[:, None]
    before = jnp.concatenate([before, jnp.asarray(h, jnp.bfloat16)[None, :-1]], axis=1)
    gradients, dhidden, dslope = chunk(
        rg_lru_ptx.backward,
        [*inputs, weights[0], before.astype(jnp.bfloat16)],
        groups, *rest, weights[1], hidden=hidden, last=is_first,
    )  # fmt: skip
    [da_param] = jax.vjp(slope_of, a_param)[1](jnp.asarray(dslope)[None])
    assert_close([h, last, *gradients, da_param, dhidden], [np.squeeze(x) for x in wanted])


def test_a_state_that_is_no_number_is_passed_on_and_is_not_taken_for_none():
    arguments, positions, _ = draw(1, STEPS, CHANNELS)
    *inputs, a_param, hidden = arguments
    positions = jnp.arange(STEPS)[None] + 5
    hidden = hidden.at[0, 5].set(jnp.nan)
    rest = slope_of(a_param), positions, STEPS, hidden
    [h], leaves, _ = chunk(rg_lru_ptx.forward, inputs, 8, *rest, last=True)
    assert np.isnan(h).any(axis=0).tolist() == [i == 5 for i in range(CHANNELS)]
    assert leaves.view(np.uint32)[5] == NAN


@pytest.mark.parametrize("length", [0, -7])
def test_a_chunk_behind_the_end_of_a_row_passes_the_state_on(length):
    arguments, positions, _ = draw(1, STEPS, CHANNELS)
    *inputs, a_param, hidden = arguments
    # Before the chunk, wherever the text began.
    rest = slope_of(a_param), positions.at[:, 1:].set(0), length, hidden
    _, leaves, _ = chunk(rg_lru_ptx.forward, inputs, 8, *rest)
    assert (leaves[0] if leaves.ndim > 1 else leaves).tolist() == hidden[0].tolist()


@pytest.mark.skipif(not ON_HOPPER, reason="takes a GPU")
@pytest.mark.parametrize(
    "shape",
    [(1, 8192, 4096), (8, 2048, 2560), (2, 1000, 4096), (3, 130, 512), (5, 8, 256)],
)
def test_one_launch_each_equals_the_definition(shape):
    arguments, positions, lengths = draw(*shape)
    keys = jax.random.split(jax.random.key(0))
    weights = (
        jax.random.normal(keys[0], shape, jnp.bfloat16),
        jax.random.normal(keys[1], arguments[-1].shape),
    )
    wanted = definition(arguments, positions, lengths, weights)
    got = with_gradients(KERNEL, arguments, positions, lengths, weights)
    assert_close(got, wanted)


def gradient(positions, lengths):
    def loss(*arguments):
        outputs = KERNEL(*arguments, positions, lengths)
        return sum(x.astype(jnp.float32).sum() for x in outputs)

    return jax.grad(loss, argnums=range(5))


@pytest.mark.parametrize("way", ["alone", "mapped", "worked out again"])
def test_there_is_one_launch_forward_and_one_backward(way):
    arguments, positions, lengths = draw(2, 203, 512)
    function = gradient(positions, lengths)
    if way == "mapped":
        *own, hidden = arguments
        function = jax.vmap(function, in_axes=(0, 0, 0, 0, None))
        arguments = (*(jnp.stack([x] * 3) for x in own), hidden)
    if way == "worked out again":
        function = jax.grad(jax.checkpoint(lambda *a: KERNEL(
            *a, positions, lengths)[1].sum()), argnums=range(5))  # fmt: skip
    assert for_gpu(function, *arguments).count("custom_call @mosaic_gpu_v2") == 2


@pytest.mark.slow
def test_the_kernels_fit_into_registers():
    reports = compiled_for_h200(
        """
from griffin_jax.kernels.mosaic_gpu import rg_lru_kernel

for rows, time, width in ((1, 8192, 4096), (3, 1000, 2560)):
    many = jax.ShapeDtypeStruct((rows, time, width), jnp.bfloat16)
    single = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    whole = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
    arguments = many, many, many, single(1, width), single(rows, width), whole(rows, time), whole(rows)
    build(rg_lru_kernel.forward, *arguments)
    build(rg_lru_kernel.backward, *arguments, many, many, single(rows, width))
"""
    )
    assert len(reports) == 4
    for report, blocks in zip(reports, (3, 2, 3, 2), strict=True):
        assert not report["spills"]
        # As many blocks of 256 threads as shared memory has room for on a multiprocessor.
        assert report["registers"] * 256 * blocks <= 65536


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((1024, 64, 64), jnp.float32, "it takes bfloat16, not float32"),
        ((1024, 64, 96), jnp.bfloat16, "width 96 is not a multiple of 64"),
        ((1024, 1, 64), jnp.bfloat16, "1 tokens are fewer than"),
        ((1, 64, 64), jnp.bfloat16, "do not fill a GPU"),
        ((1024, 64, 64), jnp.bfloat16, None),
    ],
)
def test_the_kernel_says_what_it_leaves_to_others(monkeypatch, shape, dtype, reason):
    monkeypatch.setattr(backend, "missing", lambda: None)
    found = rg_lru_mosaic_gpu.unsupported_reason(jax.ShapeDtypeStruct(shape, dtype))
    assert found is None if reason is None else reason in found
