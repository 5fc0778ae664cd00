"""A residual recurrent block's step: two branches, convolution and recurrence, projection."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from griffin_jax.kernels.rg_lru import C
from griffin_jax.kernels.step_gpu.launch import divide, launch
from griffin_jax.kernels.step_gpu.mlp import gelu, project_and_add
from griffin_jax.kernels.step_gpu.norm import entering, norm
from griffin_jax.kernels.step_gpu.products import (
    add_bias,
    bias_of,
    is_packed,
    options,
    products,
    store,
    vector_like,
)

CHANNELS = 16  # of a program of the recurrence
_KEPT = 128  # channels of a program that moves the convolution's state on


# Layers of equal shapes are traced once.
@functools.partial(jax.jit, static_argnames=("eps", "interpret"))
def recurrent_step(x, scale, layers, a_param, state, timeline, next_scale, *, eps, interpret=False):
    """x + out(gelu(y(n)) * rg_lru(conv(x(n)))) of n = norm(x), for one token.

    Args:
      x: [D].
      scale: [D], of the norm.
      layers: A dict of pairs, weight and bias: linear_y, linear_x [R, D], linear_out [D, R],
        conv_1d [C, R], input_gate and a_gate [N, R/N (in), R/N (out)].
      a_param: [R].
      state: hidden, float32[R], and conv, [C - 1, R].
      timeline: The token's position and length, int32[] each; a token of length 0 is padding.
      next_scale: [D], of the norm behind this half.
      eps: Of the norms.
      interpret: Run on any device, slowly, for tests.

    Returns:
      [D] in the dtype of x with what enters `mlp_step`, and hidden and conv after.
    """
    dtype = x.dtype
    hidden, conv = state
    recurrence = hidden.shape[0]
    token = dict(zip(("position", "length"), timeline, strict=True))
    packed = is_packed(layers["linear_out"][0])
    branches = _branches(x, scale, layers, eps, interpret)
    inner = {name: layers[name] for name in ("conv_1d", "input_gate", "a_gate")}
    after = launch(
        [(recurrence // CHANNELS, functools.partial(_recur, dtype))],
        {**branches, **inner, **token, "a_param": a_param, "conv": conv},
        vector_like("z", recurrence, dtype, packed),
        {"hidden": hidden},
        name="step_recur",
        interpret=interpret,
    )
    hidden = after.pop("hidden")
    keep = recurrence // _KEPT, _keep
    last = project_and_add(
        x,
        after,
        "z",
        layers["linear_out"],
        [keep],
        {"u": branches["u"], "taken": token["length"]},
        {"conv": conv},
        next_scale,
        name="step_recurrent_out",
        interpret=interpret,
    )
    return (last["out"], last["entering"]), hidden, last["conv"]


def _branches(x, scale, layers, eps, interpret):
    """Both linear layers of norm(x): y, and u, which the convolution reads."""
    dtype = x.dtype
    both = {"y": layers["linear_y"], "u": layers["linear_x"]}
    size = both["y"][0].shape[0]
    read = entering(x, scale, is_packed(both["y"][0]), interpret=interpret)
    count, launched = options([weight for weight, _ in both.values()])

    def run(inputs, buffers, i):
        rows = pl.ds(i * count, count)
        weights = [inputs[name][0] for name in both]
        biases = [bias_of(inputs[name], rows) for name in both]
        found = products(
            weights, rows.start, count, inputs, "x", norm(inputs, eps), interpret=interpret
        )
        for name, y, bias in zip(both, found, biases, strict=True):
            buffers[name][rows] = add_bias(y.astype(dtype), bias)

    return launch(
        [(size // count, run)],
        {**read, **both},
        {name: jax.ShapeDtypeStruct((size,), dtype) for name in both},
        name="step_branches",
        interpret=interpret,
        **launched,
    )


def _recur(dtype, inputs, buffers, i):
    """Convolution, gates and RG-LRU of some channels, times gelu(y)."""
    f32 = jnp.float32
    position = inputs["position"][0]
    reset = position == 0
    weight, bias = inputs["conv_1d"]
    taps = weight.shape[0]
    size = inputs["a_gate"][0].shape[-1]
    own = pl.ds(i * CHANNELS, CHANNELS)
    head, column = divide(i * CHANNELS, size)

    def convolve(channels):
        y = bias[channels].astype(f32)
        for distance in range(taps):
            tap = taps - 1 - distance
            before = inputs["conv"][tap, channels] if distance else inputs["u"][channels]
            before = jnp.where(position >= distance, before.astype(dtype).astype(f32), 0.0)
            y += before * weight[tap, channels].astype(f32)
        return y.astype(dtype)

    columns = pl.ds(column, CHANNELS)
    gates = ("a_gate", "input_gate")
    # All that is read is asked for first: behind a sum over threads it would be waited for again.
    loaded = [inputs[name][0][head, :, columns] for name in gates]
    biases = [inputs[name][1][head, columns].astype(dtype) for name in gates]
    a_param = inputs["a_param"][own].astype(f32)
    before = buffers["hidden"][own]
    y = inputs["y"][own].astype(f32)
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
    after = jnp.where(inputs["length"][0] > 0, after, before)
    buffers["hidden"][own] = after
    store(buffers, "z", own.start, gelu(y).astype(dtype) * after.astype(dtype))


def _keep(inputs, buffers, i):
    """Moves the convolution's state on by one token, when nothing reads the one before any more."""
    conv = buffers["conv"]
    own = pl.ds(i * _KEPT, _KEPT)
    rows = [conv[tap, own] for tap in range(conv.shape[0])]
    rows.append(inputs["u"][own].astype(conv.dtype))
    taken = inputs["taken"][0] > 0
    for tap in range(conv.shape[0]):
        conv[tap, own] = jnp.where(taken, rows[tap + 1], rows[tap])
