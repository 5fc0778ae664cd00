"""A residual recurrent block's step: norm, two branches, convolution, RG-LRU, and the projection."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from griffin_jax.kernels.step_gpu import phases
from griffin_jax.kernels.step_gpu.mlp import gelu
from griffin_jax.kernels.step_gpu.products import (
    add_bias,
    hold,
    hold_normed,
    is_packed,
    rows_times,
)

_PROGRAMS = 4  # of a multiprocessor, which a thread's registers allow
_ROWS = 8  # of a weight in one turn
_CHANNELS = 8  # of the recurrence in one turn
_KEPT = 128  # channels of the convolution's state in one turn


# Layers of equal shapes are traced once.
@functools.partial(jax.jit, static_argnames=("eps", "programs", "interpret"))
def recurrent_step(x, scale, layers, state, timeline, *, eps, programs=None, interpret=False):
    """x + out(gelu(y(n)) * rg_lru(conv(x(n)))) of n = norm(x), for one token.

    Args:
      x: [D].
      scale: [D], of the norm.
      layers: A dict of pairs, weight and bias: linear_y, linear_x [R, D], linear_out [D, R],
        conv_1d [C, R], input_gate and a_gate [N, R/N (in), R/N (out)]; and a_rate, float32[R], the
        recurrence's c softplus(a_param).
      state: hidden, float32[R], and conv, [C - 1, R].
      timeline: The token's position and length, int32[] each; a token of length 0 is padding.
      eps: Of the norm.
      programs: How many share the work; by default as many as run at once.
      interpret: Run on any device, slowly, for tests.

    Returns:
      [D] in the dtype of x, and hidden and conv after.
    """
    dtype, f32 = x.dtype, jnp.float32
    width, recurrence = x.shape[0], layers["linear_x"][0].shape[0]
    taps = layers["conv_1d"][0].shape[0]
    size = layers["a_gate"][0].shape[-1]
    position, length = timeline
    inputs = {"x": x, "scale": scale, "position": position, "length": length, **layers}

    def branches(inputs, buffers, program, programs):
        weights = inputs["linear_y"], inputs["linear_x"]
        held = hold_normed(inputs["x"], inputs["scale"], eps, is_packed(weights[0][0]))
        turns = recurrence // _ROWS
        for index, (name, (weight, bias)) in enumerate(zip("yu", weights, strict=True)):

            def turn(i, name=name, weight=weight, bias=bias):
                rows = pl.ds(i * _ROWS, _ROWS)
                y = rows_times(weight, i * _ROWS, _ROWS, held, interpret=interpret)
                buffers[name][rows] = add_bias(y.astype(dtype), bias, rows)

            phases.each_turn(turns, program, programs, index * turns, turn)

    def recur(inputs, buffers, program, programs):
        position = inputs["position"][0]
        taken = inputs["length"][0] > 0
        reset = position == 0
        weight, bias = inputs["conv_1d"]

        def convolve(channels):
            y = bias[channels].astype(f32)
            for distance in range(taps):
                tap = taps - 1 - distance
                before = buffers["conv"][tap, channels] if distance else buffers["u"][channels]
                before = jnp.where(position >= distance, before.astype(f32), 0.0)
                y += before * weight[tap, channels].astype(f32)
            return y.astype(dtype)

        def turn(i):
            own = pl.ds(i * _CHANNELS, _CHANNELS)
            head, column = phases.divide(i * _CHANNELS, size)
            block = convolve(pl.ds(head * size, size)).astype(f32)

            def gate(name):
                weight, bias = inputs[name]
                columns = pl.ds(column, _CHANNELS)
                tile = weight[head, :, columns].astype(dtype).astype(f32)
                y = (tile * block[:, None]).sum(axis=0).astype(dtype)
                return jax.nn.sigmoid((y + bias[head, columns].astype(dtype)).astype(f32))

            log_a = -inputs["a_rate"][own] * gate("a_gate")
            entering = convolve(own).astype(f32) * gate("input_gate")
            before = buffers["hidden"][own]
            # 1 - a^2 = -expm1(2 log a); at a document's beginning the state is forgotten.
            factor = jnp.where(reset, 1.0, jnp.sqrt(-jnp.expm1(2 * log_a)))
            after = jnp.where(reset, 0.0, jnp.exp(log_a)) * before + factor * entering
            after = jnp.where(taken, after, before)
            buffers["hidden"][own] = after
            y = gelu(buffers["y"][own].astype(f32)).astype(dtype)
            buffers["z"][own] = y * after.astype(dtype)

        phases.each_turn(recurrence // _CHANNELS, program, programs, 0, turn)

    def project(inputs, buffers, program, programs):
        weight, bias = inputs["linear_out"]

        def turn(i):
            rows = pl.ds(i * _ROWS, _ROWS)
            y = rows_times(weight, i * _ROWS, _ROWS, held, interpret=interpret)
            buffers["out"][rows] = inputs["x"][rows] + add_bias(y.astype(dtype), bias, rows)

        def keep(i):
            own = pl.ds(i * _KEPT, _KEPT)
            rows = [buffers["conv"][tap, own] for tap in range(taps - 1)]
            rows.append(buffers["u"][own].astype(rows[0].dtype))
            for tap in range(taps - 1):
                buffers["conv"][tap, own] = jnp.where(taken, rows[tap + 1], rows[tap])

        taken = inputs["length"][0] > 0
        phases.each_turn(recurrence // _KEPT, program, programs, 0, keep)
        held = hold(lambda places: buffers["z"][places].astype(f32), recurrence, is_packed(weight))
        phases.each_turn(width // _ROWS, program, programs, 0, turn)

    def buffer(size):
        return jax.ShapeDtypeStruct((size,), dtype)

    hidden, conv = state
    after = phases.run(
        [branches, recur, project],
        inputs,
        {"out": buffer(width), **{name: buffer(recurrence) for name in "yuz"}},
        {"hidden": hidden, "conv": conv},
        name="recurrent_step",
        programs=programs or phases.num_programs(_PROGRAMS),
        interpret=interpret,
    )
    return after["out"], after["hidden"], after["conv"]
