"""On a machine with a GPU: `JAX_PLATFORMS=cuda,cpu XLA_FLAGS= pytest tests/kernels/test_devices.py`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.kernels.linear_recurrence import linear_recurrence
from griffin_jax.kernels.local_attention import local_attention
from griffin_jax.kernels.rg_lru import rg_lru

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="no GPU here")


def run(function, arguments, weights):
    """Outputs, and gradients of their sum under weights, in float64."""

    def loss(*arguments):
        outputs = function(*arguments)
        weighted = jax.tree.map(lambda o, w: jnp.sum(o.astype(jnp.float32) * w), outputs, weights)
        return sum(weighted), outputs

    gradient = jax.value_and_grad(loss, argnums=range(len(arguments)), has_aux=True)
    (_, outputs), gradients = jax.jit(gradient)(*arguments)
    return [np.asarray(x, np.float64) for x in (*outputs, *gradients)]


def assert_close(got, wanted, tolerance):
    for index, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b), index


def positions_of(rows, time, packed):
    """Whole documents, but for `packed` rows."""
    positions = np.tile(np.arange(time, dtype=np.int32), (rows, 1))
    for row in range(packed):
        positions[row, 100 + row :] = np.arange(time - 100 - row)
    return jnp.asarray(positions)


@pytest.mark.parametrize(
    "shape, dtype, tolerance",
    [
        ((64, 256, 448), jnp.bfloat16, 1e-2),
        ((2, 4096, 2560), jnp.float32, 1e-4),
        ((1, 8200, 1024), jnp.bfloat16, 1e-2),
    ],
)
def test_the_fused_rg_lru_equals_the_definition(monkeypatch, shape, dtype, tolerance):
    # Else the definition would run the fused kernel's own recurrence.
    scan = functools.partial(linear_recurrence, kernel="associative")
    monkeypatch.setattr("griffin_jax.kernels.linear_recurrence.linear_recurrence", scan)
    rows, time, width = shape
    keys = jax.random.split(jax.random.key(0), 7)
    x, gate_x, gate_a = (jax.random.normal(key, shape, dtype) for key in keys[:3])
    a_param = jax.random.uniform(keys[3], (width,), minval=-7, maxval=-2)
    hidden = jax.random.normal(keys[4], (rows, width))
    positions, lengths = positions_of(rows, time, packed=1), jnp.full(rows, time - 3)
    weights = jax.random.normal(keys[5], shape), jax.random.normal(keys[6], (rows, width))
    arguments = x, gate_x, gate_a, a_param, hidden
    wanted, got = (
        run(lambda *a, k=kernel: rg_lru(*a, positions, lengths, kernel=k), arguments, weights)
        for kernel in ("reference", "pallas_gpu")
    )
    assert_close(got, wanted, tolerance)


def test_mapped_over_runs_the_fused_rg_lru_is_each_run_alone():
    runs, rows, time, width = 3, 4, 1024, 128  # one run alone fills a GPU enough to be served
    keys = jax.random.split(jax.random.key(0), 5)
    shape = (runs, rows, time, width)
    arguments = [jax.random.normal(key, shape, jnp.bfloat16) for key in keys[:3]]
    arguments.append(jax.random.uniform(keys[3], (runs, width), minval=-7, maxval=-2))
    arguments.append(jax.random.normal(keys[4], (runs, rows, width)))
    positions, lengths = positions_of(rows, time, packed=1), jnp.full(rows, time - 3)

    def one(*arguments):
        return rg_lru(*arguments, positions, lengths, kernel="pallas_gpu")

    weights = jnp.ones((rows, time, width)), jnp.ones((rows, width))
    mapped = run(jax.vmap(one), arguments, [jnp.stack([x] * runs) for x in weights])
    for i in range(runs):
        alone = run(one, [x[i] for x in arguments], weights)
        assert_close([x[i] for x in mapped], alone, 1e-5)


@pytest.mark.parametrize("shape", [(1, 8192, 4096), (3, 1000, 512), (64, 16, 32)])
def test_the_one_pass_linear_recurrence_equals_the_scan(shape):
    keys = jax.random.split(jax.random.key(0), 4)
    x, weights, noise = (jax.random.normal(key, shape) for key in keys[:3])
    arguments = x, jax.nn.sigmoid(3 + noise), jax.random.normal(keys[3], shape[::2])
    wanted, got = (
        run(lambda *a, k=kernel: (linear_recurrence(*a, kernel=k),), arguments, (weights,))
        for kernel in ("associative", "pallas_gpu")
    )
    assert_close(got, wanted, 1e-5)


@pytest.mark.parametrize("packed", [0, 1, 9])
@pytest.mark.parametrize(
    "rows, time, heads, size, slots, reach",
    [
        (16, 512, 7, 64, 256, 256),
        (16, 512, 7, 64, 0, None),
        (2, 4096, 20, 128, 1024, 1024),
        (2, 512, 10, 256, 2048, 2048),
    ],
)
def test_cudnn_attention_equals_blocks(rows, time, heads, size, slots, reach, packed):
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v = (
        jax.random.normal(key, (rows, time, n, size), jnp.bfloat16)
        for key, n in zip(keys, (heads, 1, 1), strict=False)
    )
    ring = jnp.zeros((rows, slots, 1, size), jnp.bfloat16)
    start = jnp.zeros(rows, jnp.int32)
    positions = positions_of(rows, time, packed=min(packed, rows))
    weights = (jax.random.normal(keys[3], q.shape),)

    def attend(kernel, dtype):
        def call(*qkv):
            ringed = ring.astype(dtype)
            out = local_attention(
                *qkv, ringed, ringed, start, positions, reach=reach, fresh=True, kernel=kernel
            )
            return (out,)

        return run(call, [x.astype(dtype) for x in (q, k, v)], weights)

    wanted = attend("reference", jnp.float32)
    for kernel in ("cudnn_rows_gpu", "cudnn_gpu"):
        assert_close(attend(kernel, jnp.bfloat16), wanted, 2e-2)
