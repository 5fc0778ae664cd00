"""A residual attention block's step: norm, q, k and v, attention over the ring, the projection."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from griffin_jax.kernels.step_gpu import phases
from griffin_jax.kernels.step_gpu.products import (
    add_bias,
    hold,
    hold_normed,
    is_packed,
    rows_times,
)

_PROGRAMS = 2  # of a multiprocessor, which a thread's registers allow
_ROWS = 8  # of a weight in one turn
SLOTS = 32  # of the ring in one turn
_COLUMNS = 64  # of a head's values that one turn adds up
_NEVER = -1e30  # a score beyond every other


# Layers of equal shapes are traced once.
@functools.partial(jax.jit, static_argnames=("reach", "eps", "programs", "interpret"))
def attention_step(
    x,
    scale,
    layers,
    rings,
    timeline,
    rotation,
    *,
    reach,
    eps,
    programs=None,
    interpret=False,
):
    """x + out(attention(q(n), k(n), v(n))) of n = norm(x), for one token and one head of keys.

    Args:
      x: [D].
      scale: [D], of the norm.
      layers: A dict of pairs, weight and bias or None: q_proj [N H, D], k_proj and v_proj [H, D],
        o_proj [D, N H].
      rings: Keys and values, [S, H] each, as in `AttentionState`.
      timeline: The token's position and length and the state's position, int32[] each; a token of
        length 0 is padding.
      rotation: Cosines and sines of the position's angles, in x's dtype; as many as a head has
        pairs of rotated columns, which lead, first ones before second ones.
      reach: How many tokens back a query sees; None for all.
      eps: Of the norm.
      programs: How many share the work; by default as many as run at once.
      interpret: Run on any device, slowly, for tests.

    Returns:
      [D] in the dtype of x, and the rings after.
    """
    dtype, f32 = x.dtype, jnp.float32
    width, (slots, size) = x.shape[0], rings[0].shape
    heads = layers["q_proj"][0].shape[0] // size
    rows = max(16, 1 << (heads - 1).bit_length())  # what the tensor cores take
    chunks = slots // SLOTS
    position, length, start = timeline
    inputs = {
        "x": x,
        "scale": scale,
        "position": position,
        "length": length,
        "start": start,
        "cos": rotation[0],
        "sin": rotation[1],
        **layers,
    }
    def ask(inputs, buffers, program, programs):
        weights = [inputs[name] for name in ("q_proj", "k_proj", "v_proj")]
        held = hold_normed(inputs["x"], inputs["scale"], eps, is_packed(weights[0][0]))
        first = 0
        for name, (weight, bias) in zip("qkv", weights, strict=True):
            turns = weight.shape[0] // _ROWS

            def turn(i, name=name, weight=weight, bias=bias):
                rows = pl.ds(i * _ROWS, _ROWS)
                y = rows_times(weight, i * _ROWS, _ROWS, held, interpret=interpret)
                buffers[name][rows] = add_bias(y.astype(dtype), bias, rows)

            phases.each_turn(turns, program, programs, first, turn)
            first += turns

    def rotate(inputs, load):
        """(first place, size, values) of each part of a head; load(first, size) reads before."""
        half = inputs["cos"].shape[0]
        cos, sin = inputs["cos"][...], inputs["sin"][...]
        one, two = load(0, half), load(half, half)
        cos, sin = (jax.lax.broadcast_to_rank(v, one.ndim) for v in (cos, sin))
        parts = [(0, half, one * cos - two * sin), (half, half, two * cos + one * sin)]
        rest = size - 2 * half
        return [*parts, (2 * half, rest, load(2 * half, rest))] if rest else parts

    def rotated_query(inputs, buffers, head):
        def load(first, count):
            places = first + jnp.arange(count, dtype=jnp.int32)
            if head.ndim:
                places = head[:, None] * size + places[None]
                mask = jnp.broadcast_to((head < heads)[:, None], places.shape)
                return plgpu.load(buffers["q"].at[places], mask=mask, other=0.0)
            return buffers["q"][head * size + places]

        return rotate(inputs, load)

    def rotated_key(inputs, buffers):
        return rotate(inputs, lambda first, count: buffers["k"][pl.ds(first, count)])

    def attend(inputs, buffers, program, programs):
        position, start = inputs["position"][0], inputs["start"][0]
        limit = position if reach is None else jnp.minimum(position, reach)

        def turn(i):
            own = pl.ds(i * SLOTS, SLOTS)
            scores = jnp.zeros((rows, SLOTS), f32)
            for first, count, q in rotated_query(inputs, buffers, jnp.arange(rows)):
                keys = buffers["keys"][own, pl.ds(first, count)].astype(dtype)
                scores += plgpu.dot(q, keys, trans_b=True)
            scores *= size**-0.5
            slot = i * SLOTS + jnp.arange(SLOTS, dtype=jnp.int32)
            # How long ago a slot was written, 1 for the newest. A number below zero: never.
            behind = start - 1 - slot
            age = 1 + phases.divide(jnp.maximum(behind, 0), slots)[1]
            seen = (behind >= 0) & (age <= limit)
            scores = jnp.where(seen[None], scores, _NEVER)
            largest = scores.max(axis=1)
            weights = jnp.where(seen[None], jnp.exp(scores - largest[:, None]), 0.0)
            values = buffers["values"][own, :].astype(dtype)
            buffers["largest"][i, :] = largest
            buffers["sums"][i, :] = weights.sum(axis=1)
            buffers["mixed"][i, :, :] = plgpu.dot(weights.astype(dtype), values)

        phases.each_turn(chunks, program, programs, 0, turn)

    def mix(inputs, buffers, program, programs):
        some = 1 << (chunks - 1).bit_length()
        chunk = jnp.arange(some, dtype=jnp.int32)

        def turn(i):
            head, column = phases.divide(i * _COLUMNS, size)
            columns = pl.ds(column, _COLUMNS)

            def of_chunks(name, other):
                return plgpu.load(buffers[name].at[chunk, head], mask=chunk < chunks, other=other)

            # The token itself, which the ring does not hold yet.
            pairs = zip(rotated_query(inputs, buffers, head), rotated_key(inputs, buffers), strict=True)
            score = sum((q.astype(f32) * k.astype(f32)).sum() for (*_, q), (*_, k) in pairs)
            score *= size**-0.5
            largest = of_chunks("largest", _NEVER)
            most = jnp.maximum(largest.max(), score)
            shares = jnp.exp(largest - most)
            own = jnp.exp(score - most)
            total = (shares * of_chunks("sums", 0.0)).sum() + own
            column += jnp.arange(_COLUMNS, dtype=jnp.int32)
            mixed = plgpu.load(
                buffers["mixed"].at[chunk[:, None], head, column[None]],
                mask=(chunk < chunks)[:, None],
                other=0.0,
            )
            y = (mixed * shares[:, None]).sum(axis=0) + own * buffers["v"][columns].astype(f32)
            buffers["z"][pl.ds(i * _COLUMNS, _COLUMNS)] = (y / total).astype(dtype)

        phases.each_turn(heads * size // _COLUMNS, program, programs, 0, turn)

    def project(inputs, buffers, program, programs):
        weight, bias = inputs["o_proj"]
        held = hold(lambda places: buffers["z"][places].astype(f32), heads * size, is_packed(weight))

        def turn(i):
            rows = pl.ds(i * _ROWS, _ROWS)
            y = rows_times(weight, i * _ROWS, _ROWS, held, interpret=interpret)
            buffers["out"][rows] = inputs["x"][rows] + add_bias(y.astype(dtype), bias, rows)

        def write(i):
            del i
            _, slot = phases.divide(inputs["position"][0], slots)
            taken = inputs["length"][0] > 0
            value = (0, size, buffers["v"][...])
            for name, parts in ("keys", rotated_key(inputs, buffers)), ("values", [value]):
                for first, count, new in parts:
                    places = first + jnp.arange(count, dtype=jnp.int32)
                    plgpu.store(
                        buffers[name].at[slot, places],
                        new.astype(buffers[name].dtype),
                        mask=jnp.broadcast_to(taken, (count,)),
                    )

        phases.each_turn(1, program, programs, programs - 1, write)
        phases.each_turn(width // _ROWS, program, programs, 0, turn)

    def buffer(*shape, dtype=dtype):
        return jax.ShapeDtypeStruct(shape, dtype)

    after = phases.run(
        [ask, attend, mix, project],
        inputs,
        {
            "out": buffer(width),
            "q": buffer(heads * size),
            "k": buffer(size),
            "v": buffer(size),
            "z": buffer(heads * size),
            "largest": buffer(chunks, rows, dtype=f32),
            "sums": buffer(chunks, rows, dtype=f32),
            "mixed": buffer(chunks, rows, size, dtype=f32),
        },
        {"keys": rings[0], "values": rings[1]},
        name="attention_step",
        programs=programs or phases.num_programs(_PROGRAMS),
        interpret=interpret,
    )
    return after["out"], after["keys"], after["values"]
