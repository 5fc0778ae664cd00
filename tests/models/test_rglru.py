"""The convolution of the recurrent block, against plain NumPy."""

import jax.numpy as jnp
import numpy as np

from griffin_jax.models.rglru import BlockDiagonalLinear, causal_conv
from griffin_jax.models.state import Timeline


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_the_convolution_is_causal_and_stays_in_its_document():
    x, weight, bias = normal(0, 1, 7, 2), normal(1, 4, 2), normal(2, 2)
    previous = normal(3, 1, 3, 2)
    positions = np.array([[5, 6, 0, 1, 2, 3, 4]])
    timeline = Timeline(positions=positions, lengths=np.array([7]), start=np.array([5]))
    out, kept = causal_conv(x, weight, bias, previous, timeline)
    text = np.concatenate([previous, x], axis=1)[0]
    for t in range(7):
        taps = min(4, positions[0, t] + 1)
        expected = bias + sum(weight[3 - back] * text[3 + t - back] for back in range(taps))
        np.testing.assert_allclose(out[0, t], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(kept[0], x[0, -3:])


def test_the_convolution_keeps_the_last_real_inputs():
    x, previous = normal(0, 3, 5, 2), normal(1, 3, 3, 2)
    lengths = np.array([0, 2, 5])
    timeline = Timeline(
        positions=np.tile(np.arange(4, 9), (3, 1)), lengths=lengths, start=np.full(3, 4)
    )
    _, kept = causal_conv(x, normal(2, 4, 2), normal(3, 2), previous, timeline)
    text = np.concatenate([previous, x], axis=1)
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(kept[row], text[row, length : length + 3])


def test_gate_blocks_do_not_mix_and_their_weights_are_in_by_out():
    x, weight, bias = normal(0, 1, 2, 6), normal(1, 3, 2, 2), normal(2, 3, 2)
    out = BlockDiagonalLinear(3).apply({"params": {"weight": weight, "bias": bias}}, jnp.asarray(x))
    for n in range(3):
        block = slice(2 * n, 2 * n + 2)
        np.testing.assert_allclose(out[..., block], x[..., block] @ weight[n] + bias[n], rtol=1e-5)
