"""A residual attention block's step: q, k and v, attention over parts of the ring, projection."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from griffin_jax.kernels.step_gpu.launch import divide, launch
from griffin_jax.kernels.step_gpu.mlp import project_and_add
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

_ROWS = 8  # of a plain weight of a program
SLOTS = 32  # of the ring of a program
_COLUMNS = 64  # of a head's values that one program adds up
_NEVER = -1e30  # a score beyond every other


# Layers of equal shapes are traced once.
@functools.partial(jax.jit, static_argnames=("reach", "eps", "interpret"))
def attention_step(
    x, scale, layers, rings, timeline, rotation, next_scale, *, reach, eps, interpret=False
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
      next_scale: [D], of the norm behind this half.
      reach: How many tokens back a query sees; None for all.
      eps: Of the norms.
      interpret: Run on any device, slowly, for tests.

    Returns:
      [D] in the dtype of x with what enters `mlp_step`, and the rings after.
    """
    dtype, f32 = x.dtype, jnp.float32
    slots, size = rings[0].shape
    heads = layers["q_proj"][0].shape[0] // size
    rows = max(16, 1 << (heads - 1).bit_length())  # what the tensor cores take
    chunks = slots // SLOTS
    position, length, start = timeline
    turn = {"cos": rotation[0], "sin": rotation[1]}
    asked = _ask(x, scale, layers, eps, interpret)

    def rotate(inputs, load):
        """(first place, size, values) of each part of a head; load(first, size) reads before."""
        half = inputs["cos"].shape[0]
        cos, sin = inputs["cos"][...], inputs["sin"][...]
        one, two = load(0, half), load(half, half)
        cos, sin = (jax.lax.broadcast_to_rank(v, one.ndim) for v in (cos, sin))
        parts = [(0, half, one * cos - two * sin), (half, half, two * cos + one * sin)]
        rest = size - 2 * half
        return [*parts, (2 * half, rest, load(2 * half, rest))] if rest else parts

    def rotated_query(inputs, head):
        def load(first, count):
            places = first + jnp.arange(count, dtype=jnp.int32)
            if head.ndim:
                places = head[:, None] * size + places[None]
                mask = jnp.broadcast_to((head < heads)[:, None], places.shape)
                return plgpu.load(inputs["q"].at[places], mask=mask, other=0.0)
            return inputs["q"][head * size + places]

        return rotate(inputs, load)

    def rotated_key(inputs):
        return rotate(inputs, lambda first, count: inputs["k"][pl.ds(first, count)])

    def attend(inputs, buffers, i):
        position, start = inputs["position"][0], inputs["start"][0]
        limit = position if reach is None else jnp.minimum(position, reach)
        own = pl.ds(i * SLOTS, SLOTS)
        scores = jnp.zeros((rows, SLOTS), f32)
        for first, count, q in rotated_query(inputs, jnp.arange(rows)):
            keys = inputs["keys"][own, pl.ds(first, count)].astype(dtype)
            scores += plgpu.dot(q, keys, trans_b=True)
        scores *= size**-0.5
        slot = i * SLOTS + jnp.arange(SLOTS, dtype=jnp.int32)
        # How long ago a slot was written, 1 for the newest. A number below zero: never.
        behind = start - 1 - slot
        age = 1 + divide(jnp.maximum(behind, 0), slots)[1]
        seen = (behind >= 0) & (age <= limit)
        scores = jnp.where(seen[None], scores, _NEVER)
        largest = scores.max(axis=1)
        weights = jnp.where(seen[None], jnp.exp(scores - largest[:, None]), 0.0)
        values = inputs["values"][own, :].astype(dtype)
        buffers["largest"][i, :] = largest
        buffers["sums"][i, :] = weights.sum(axis=1)
        buffers["mixed"][i, :, :] = plgpu.dot(weights.astype(dtype), values)

    def mix(inputs, buffers, i):
        some = 1 << (chunks - 1).bit_length()
        chunk = jnp.arange(some, dtype=jnp.int32)
        head, column = divide(i * _COLUMNS, size)

        def of_chunks(name, other):
            return plgpu.load(inputs[name].at[chunk, head], mask=chunk < chunks, other=other)

        # The token itself, which the ring does not hold yet.
        pairs = zip(rotated_query(inputs, head), rotated_key(inputs), strict=True)
        score = sum((q.astype(f32) * k.astype(f32)).sum() for (*_, q), (*_, k) in pairs)
        score *= size**-0.5
        largest = of_chunks("largest", _NEVER)
        most = jnp.maximum(largest.max(), score)
        shares = jnp.exp(largest - most)
        own = jnp.exp(score - most)
        total = (shares * of_chunks("sums", 0.0)).sum() + own
        columns = column + jnp.arange(_COLUMNS, dtype=jnp.int32)
        mixed = plgpu.load(
            inputs["mixed"].at[chunk[:, None], head, columns[None]],
            mask=jnp.broadcast_to((chunk < chunks)[:, None], (some, _COLUMNS)),
            other=0.0,
        )
        y = (mixed * shares[:, None]).sum(axis=0) + own * inputs["v"][columns].astype(f32)
        store(buffers, "z", i * _COLUMNS, (y / total).astype(dtype))

    def write(inputs, buffers, i):
        del i
        _, slot = divide(inputs["position"][0], slots)
        taken = inputs["length"][0] > 0
        value = (0, size, inputs["v"][...])
        for name, parts in ("keys", rotated_key(inputs)), ("values", [value]):
            for first, count, new in parts:
                places = first + jnp.arange(count, dtype=jnp.int32)
                plgpu.store(
                    buffers[name].at[slot, places],
                    new.astype(buffers[name].dtype),
                    mask=jnp.broadcast_to(taken, (count,)),
                )

    keys, values = rings
    attended = launch(
        [(chunks, attend)],
        {**asked, **turn, "keys": keys, "values": values, "position": position, "start": start},
        {
            "largest": jax.ShapeDtypeStruct((chunks, rows), f32),
            "sums": jax.ShapeDtypeStruct((chunks, rows), f32),
            "mixed": jax.ShapeDtypeStruct((chunks, rows, size), f32),
        },
        name="step_attend",
        interpret=interpret,
    )
    mixed = launch(
        [(heads * size // _COLUMNS, mix)],
        {**asked, **turn, **attended},
        vector_like("z", heads * size, dtype, is_packed(layers["o_proj"][0])),
        name="step_mix",
        interpret=interpret,
    )
    after = project_and_add(
        x,
        mixed,
        "z",
        layers["o_proj"],
        [(1, write)],
        {"k": asked["k"], "v": asked["v"], **turn, "position": position, "length": length},
        {"keys": keys, "values": values},
        next_scale,
        name="step_attention_out",
        interpret=interpret,
    )
    return (after["out"], after["entering"]), after["keys"], after["values"]


def _ask(x, scale, layers, eps, interpret):
    """q, k and v of norm(x), not rotated yet."""
    dtype = x.dtype
    names = ("q_proj", "k_proj", "v_proj")
    read = entering(x, scale, is_packed(layers["q_proj"][0]), interpret=interpret)
    count, launched = options([layers["q_proj"][0]], _ROWS)

    def part(name):
        def run(inputs, buffers, i):
            layer, rows = inputs[name], pl.ds(i * count, count)
            bias = bias_of(layer, rows)
            [y] = products(
                [layer[0]], rows.start, count, inputs, "x", norm(inputs, eps), interpret=interpret
            )
            buffers[name[0]][rows] = add_bias(y.astype(dtype), bias)

        return layers[name][0].shape[0] // count, run

    return launch(
        list(map(part, names)),
        {**read, **{name: layers[name] for name in names}},
        {name[0]: jax.ShapeDtypeStruct(layers[name][0].shape[:1], dtype) for name in names},
        name="step_ask",
        interpret=interpret,
        **launched,
    )
