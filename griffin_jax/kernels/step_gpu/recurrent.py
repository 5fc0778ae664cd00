"""A residual recurrent block's step: two branches, convolution and recurrence, projection, MLP."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from griffin_jax.kernels.rg_lru import C
from griffin_jax.kernels.step_gpu.block import run_block
from griffin_jax.kernels.step_gpu.launch import Phase, divide
from griffin_jax.kernels.step_gpu.mlp import gelu
from griffin_jax.kernels.step_gpu.products import (
    add_bias,
    bias_of,
    part,
    start_matvec,
    store,
    vector_like,
)
from griffin_jax.quantization.tensor import is_packed

CHANNELS = 16  # of a program of the recurrence
_KEPT = 128  # channels of a program that moves the convolution's state on


# Layers of equal shapes are traced once.
@functools.partial(jax.jit, static_argnames=("eps", "interpret"))
def recurrent_step(x, scales, layers, inner, state, timeline, *, eps, interpret=False):
    """Runs a residual block with the RG-LRU for one token.

    With n = norm(x) and m = x + out(gelu(y(n)) * rg_lru(conv(x(n)))), it is m + MLP(norm(m)).

    Args:
      x: [D].
      scales: The scales of both norms, [D] each.
      layers: Pairs of weight and bias, a dict as for `run_block`, with linear_y and linear_x [R, D]
        and linear_out [D, R].
      inner: A dict: pairs of weight and bias conv_1d [C, R], input_gate and a_gate
        [N, R/N (in), R/N (out)], and a_param, [R].
      state: hidden, float32[R], and conv, [C - 1, R].
      timeline: The token's position and length, int32[] each; a token of length 0 is padding.
      eps: The epsilon of the norms.
      interpret: Run on any device, slowly, for tests.

    Returns:
      [D] in the dtype of x, and hidden and conv after.
    """
    dtype = x.dtype
    hidden, conv = state
    recurrence = hidden.shape[0]
    packed = is_packed(layers["linear_out"][0])

    def mixing(norm):
        return [
            Phase(
                [_branches(layers, norm, dtype, interpret)],
                {name: layers[name] for name in ("linear_y", "linear_x")},
                {name: jax.ShapeDtypeStruct((recurrence,), dtype) for name in ("y", "u")},
            ),
            Phase(
                [(recurrence // CHANNELS, functools.partial(_recur, dtype))],
                inner,
                vector_like("z", recurrence, dtype, packed),
                {"hidden": hidden},
            ),
        ]

    after = run_block(
        x,
        scales,
        layers,
        mixing,
        "linear_out",
        dict(zip(("position", "length"), timeline, strict=True)),
        beside=[(recurrence // _KEPT, _keep)],
        updates={"conv": conv},
        together=(1, 1, 3),
        eps=eps,
        name="step_recurrent",
        interpret=interpret,
    )
    return after["out"], after["hidden"], after["conv"]


def _branches(layers, norm, dtype, interpret):
    """Computes both linear layers of norm(x): y, and u, which the convolution reads."""
    both = {"y": "linear_y", "u": "linear_x"}

    def run(refs, row, count, wait):
        rows = pl.ds(row, count)
        weights = [refs[name][0] for name in both.values()]
        biases = [bias_of(refs[name], rows) for name in both.values()]
        compute = start_matvec(
            weights, row, count, refs, norm.vector, norm.factor, interpret=interpret
        )
        wait()
        for name, y, bias in zip(both, compute(), biases, strict=True):
            refs[name][rows] = add_bias(y.astype(dtype), bias)

    return part([layers[name][0] for name in both.values()], run)


def _recur(dtype, refs, i, wait):
    """Computes convolution, gates and RG-LRU of some channels, times gelu(y)."""
    f32 = jnp.float32
    position = refs["position"][0]
    reset = position == 0
    weight, bias = refs["conv_1d"]
    taps = weight.shape[0]
    size = refs["a_gate"][0].shape[-1]
    own = pl.ds(i * CHANNELS, CHANNELS)
    head, column = divide(i * CHANNELS, size)

    def convolve(channels):
        y = bias[channels].astype(f32)
        for distance in range(taps):
            tap = taps - 1 - distance
            before = refs["conv"][tap, channels] if distance else refs["u"][channels]
            before = jnp.where(position >= distance, before.astype(dtype).astype(f32), 0.0)
            y += before * weight[tap, channels].astype(f32)
        return y.astype(dtype)

    columns = pl.ds(column, CHANNELS)
    gates = ("a_gate", "input_gate")
    # All that is read is asked for first: behind a sum over threads it would be waited for again.
    loaded = [refs[name][0][head, :, columns] for name in gates]
    biases = [refs[name][1][head, columns].astype(dtype) for name in gates]
    a_param = refs["a_param"][own].astype(f32)
    before = refs["hidden"][own]
    wait()
    y = refs["y"][own].astype(f32)
    own_block = convolve(own).astype(f32)
    block = convolve(pl.ds(head * size, size)).astype(f32)

    def gate(weights, bias):
        y = (weights.astype(dtype).astype(f32) * block[:, None]).sum(axis=0).astype(dtype)
        return jax.nn.sigmoid((y + bias).astype(f32))

    a_gate, input_gate = map(gate, loaded, biases)
    softplus = jnp.maximum(a_param, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(a_param)))
    log_a = -C * softplus * a_gate
    # 1 - a^2 = -expm1(2 log a); at a document's beginning the state is forgotten.
    factor = jnp.where(reset, 1.0, jnp.sqrt(-jnp.expm1(2 * log_a)))
    after = jnp.where(reset, 0.0, jnp.exp(log_a)) * before
    after += factor * own_block * input_gate
    after = jnp.where(refs["length"][0] > 0, after, before)
    refs["hidden"][own] = after
    store(refs, "z", own.start, gelu(y).astype(dtype) * after.astype(dtype))


def _keep(refs, i, wait):
    """Moves the convolution's state on by one token, when nothing reads the one before any more."""
    wait()
    conv = refs["conv"]
    own = pl.ds(i * _KEPT, _KEPT)
    rows = [conv[tap, own] for tap in range(conv.shape[0])]
    rows.append(refs["u"][own].astype(conv.dtype))
    taken = refs["length"][0] > 0
    for tap in range(conv.shape[0]):
        conv[tap, own] = jnp.where(taken, rows[tap + 1], rows[tap])
