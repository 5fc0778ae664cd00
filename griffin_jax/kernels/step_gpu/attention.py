"""A residual attention block's step: q, k and v, attention over parts of the ring, projection, MLP."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from griffin_jax.kernels import triton
from griffin_jax.kernels.step_gpu.block import run_block
from griffin_jax.kernels.step_gpu.launch import Phase, divide
from griffin_jax.kernels.step_gpu.products import (
    add_bias,
    bias_of,
    part,
    start_matvec,
    store,
    vector_like,
)
from griffin_jax.quantization.tensor import is_packed

_QKV = ("q_proj", "k_proj", "v_proj")
_ROWS = 8  # of a plain weight of a program
SLOTS = 32  # of the ring of a program
_COLUMNS = 64  # of a head's values that one program adds up
_NEVER = -1e30  # a score beyond every other


# Layers of equal shapes are traced once.
@functools.partial(jax.jit, static_argnames=("reach", "eps", "interpret"))
def attention_step(x, scales, layers, rings, timeline, rotation, *, reach, eps, interpret=False):
    """Runs a residual block with local attention for one token.

    With n = norm(x) and m = x + out(attention(q(n), k(n), v(n))), it is m + MLP(norm(m)). There is
    one head of keys.

    Args:
      x: [D].
      scales: The scales of both norms, [D] each.
      layers: Pairs of weight and bias or None, a dict as for `run_block`, with q_proj [N H, D],
        k_proj and v_proj [H, D] and o_proj [D, N H].
      rings: Keys and values, [S, H] each, as in `AttentionState`.
      timeline: The token's position and length and the state's position, int32[] each; a token of
        length 0 is padding.
      rotation: Cosines and sines of the position's angles, in x's dtype; as many as a head has
        pairs of rotated columns, which lead, first ones before second ones.
      reach: How many tokens back a query sees; None for all.
      eps: The epsilon of the norms.
      interpret: Run on any device, slowly, for tests.

    Returns:
      [D] in the dtype of x, and the rings after.
    """
    dtype, f32 = x.dtype, jnp.float32
    slots, size = rings[0].shape
    heads = layers["q_proj"][0].shape[0] // size
    rows = max(16, 1 << (heads - 1).bit_length())  # what the tensor cores take
    chunks = slots // SLOTS
    token = dict(zip(("position", "length", "start"), timeline, strict=True))
    token |= {"cos": rotation[0], "sin": rotation[1]}
    packed = is_packed(layers["o_proj"][0])

    def rotate(refs, load):
        """Returns (first place, size, values) of each part of a head; load(first, size) reads
        before.
        """
        half = refs["cos"].shape[0]
        cos, sin = refs["cos"][...], refs["sin"][...]
        one, two = load(0, half), load(half, half)
        cos, sin = (jax.lax.broadcast_to_rank(v, one.ndim) for v in (cos, sin))
        parts = [(0, half, one * cos - two * sin), (half, half, two * cos + one * sin)]
        rest = size - 2 * half
        return [*parts, (2 * half, rest, load(2 * half, rest))] if rest else parts

    def rotated_query(refs, head):
        def load(first, count):
            places = first + jnp.arange(count, dtype=jnp.int32)
            if head.ndim:
                places = head[:, None] * size + places[None]
                mask = jnp.broadcast_to((head < heads)[:, None], places.shape)
                return triton.load(refs["q"].at[places], mask=mask, other=0.0)
            return refs["q"][head * size + places]

        return rotate(refs, load)

    def rotated_key(refs):
        return rotate(refs, lambda first, count: refs["k"][pl.ds(first, count)])

    def attend(refs, i, wait):
        wait()
        position, start = refs["position"][0], refs["start"][0]
        limit = position if reach is None else jnp.minimum(position, reach)
        own = pl.ds(i * SLOTS, SLOTS)
        scores = jnp.zeros((rows, SLOTS), f32)
        for first, count, q in rotated_query(refs, jnp.arange(rows)):
            keys = refs["keys"][own, pl.ds(first, count)].astype(dtype)
            scores += triton.dot(q, keys, trans_b=True)
        scores *= size**-0.5
        slot = i * SLOTS + jnp.arange(SLOTS, dtype=jnp.int32)
        # How long ago a slot was written, 1 for the newest. A number below zero: never.
        behind = start - 1 - slot
        age = 1 + divide(jnp.maximum(behind, 0), slots)[1]
        seen = (behind >= 0) & (age <= limit)
        scores = jnp.where(seen[None], scores, _NEVER)
        largest = scores.max(axis=1)
        weights = jnp.where(seen[None], jnp.exp(scores - largest[:, None]), 0.0)
        values = refs["values"][own, :].astype(dtype)
        refs["largest"][i, :] = largest
        refs["sums"][i, :] = weights.sum(axis=1)
        refs["mixed"][i, :, :] = triton.dot(weights.astype(dtype), values)

    def mix(refs, i, wait):
        wait()
        some = 1 << (chunks - 1).bit_length()
        chunk = jnp.arange(some, dtype=jnp.int32)
        head, column = divide(i * _COLUMNS, size)

        def of_chunks(name, other):
            return triton.load(refs[name].at[chunk, head], mask=chunk < chunks, other=other)

        # The token itself, which the ring does not hold yet.
        pairs = zip(rotated_query(refs, head), rotated_key(refs), strict=True)
        score = sum((q.astype(f32) * k.astype(f32)).sum() for (*_, q), (*_, k) in pairs)
        score *= size**-0.5
        largest = of_chunks("largest", _NEVER)
        most = jnp.maximum(largest.max(), score)
        shares = jnp.exp(largest - most)
        own = jnp.exp(score - most)
        total = (shares * of_chunks("sums", 0.0)).sum() + own
        columns = column + jnp.arange(_COLUMNS, dtype=jnp.int32)
        mixed = triton.load(
            refs["mixed"].at[chunk[:, None], head, columns[None]],
            mask=jnp.broadcast_to((chunk < chunks)[:, None], (some, _COLUMNS)),
            other=0.0,
        )
        y = (mixed * shares[:, None]).sum(axis=0) + own * refs["v"][columns].astype(f32)
        store(refs, "z", i * _COLUMNS, (y / total).astype(dtype))

    def write(refs, i, wait):
        wait()
        del i
        _, slot = divide(refs["position"][0], slots)
        taken = refs["length"][0] > 0
        value = (0, size, refs["v"][...])
        for name, parts in ("keys", rotated_key(refs)), ("values", [value]):
            for first, count, new in parts:
                places = first + jnp.arange(count, dtype=jnp.int32)
                triton.store(
                    refs[name].at[slot, places],
                    new.astype(refs[name].dtype),
                    mask=jnp.broadcast_to(taken, (count,)),
                )

    def mixing(norm):
        return [
            Phase(
                _qkv_parts(layers, norm, dtype, interpret),
                {name: layers[name] for name in _QKV},
                {name[0]: jax.ShapeDtypeStruct(layers[name][0].shape[:1], dtype) for name in _QKV},
            ),
            Phase(
                [(chunks, attend)],
                outputs={
                    "largest": jax.ShapeDtypeStruct((chunks, rows), f32),
                    "sums": jax.ShapeDtypeStruct((chunks, rows), f32),
                    "mixed": jax.ShapeDtypeStruct((chunks, rows, size), f32),
                },
            ),
            Phase(
                [(heads * size // _COLUMNS, mix)],
                outputs=vector_like("z", heads * size, dtype, packed),
            ),
        ]

    after = run_block(
        x,
        scales,
        layers,
        mixing,
        "o_proj",
        token,
        beside=[(1, write)],
        updates={"keys": rings[0], "values": rings[1]},
        together=(1, 1, 4),
        eps=eps,
        name="step_attention",
        interpret=interpret,
    )
    return after["out"], after["keys"], after["values"]


def _qkv_parts(layers, norm, dtype, interpret):
    """Returns parts for q, k and v of norm(x), not rotated yet."""

    def of(name):
        def run(refs, row, count, wait):
            rows = pl.ds(row, count)
            layer = refs[name]
            bias = bias_of(layer, rows)
            compute = start_matvec(
                [layer[0]], row, count, refs, norm.vector, norm.factor, interpret=interpret
            )
            wait()
            [y] = compute()
            refs[name[0]][rows] = add_bias(y.astype(dtype), bias)

        return part([layers[name][0]], run, _ROWS)

    return list(map(of, _QKV))
