"""Attention in a call that begins every row anew, as training does."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

_PROMISES: list[None] = []
Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


@contextlib.contextmanager
def one_document_a_row() -> Iterator[None]:
    """Promises that in programs traced inside of the block every row is one document from its first
    token on, so that attention need not be ready for another.
    """
    _PROMISES.append(None)
    try:
        yield
    finally:
        _PROMISES.pop()


def attend_whole_rows(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    positions: jax.Array,
    *,
    reach: int | None,
    attend: Attend,
    implementation: str = "cudnn",
) -> jax.Array:
    """Attends where most rows are one document from its first token on.

    Such a row needs no mask but the causal band, which cuDNN computes in a fraction of the time that
    a mask in memory costs. Rows with a document's border in them go through `attend`: alone where
    they are at most one in eight, with all others where they are more. Which it is, the device
    decides. The backward pass computes the attention again, so nothing but the arguments is kept.

    Args:
      q: [B, T, N, H], rotated and not yet scaled.
      k: [B, T, K, H], rotated.
      v: [B, T, K, H].
      positions: int32[B, T], each token's position in its document.
      reach: How many tokens back a query sees; None for all.
      attend: The attention of any rows, of (q, k, v, positions).
      implementation: What `jax.nn.dot_product_attention` is to use for the band.
    """
    batch, time = positions.shape
    few = batch // 8
    window = None if reach is None or reach >= time - 1 else (reach, 0)

    def whole(positions):
        return jnp.all(positions == jnp.arange(time)[None], axis=1)

    def band(q, k, v, positions):
        attend: Any = jax.nn.dot_product_attention  # whose implementations are literals
        return attend(
            q, k, v, is_causal=True, local_window_size=window, implementation=implementation
        )

    if _PROMISES:
        return band(q, k, v, positions)

    def band_but_few(q, k, v, positions):
        (index,) = jnp.nonzero(~whole(positions), size=few, fill_value=batch)
        rows = [x.at[index].get(mode="fill", fill_value=0) for x in (q, k, v, positions)]
        out = band(q, k, v, positions)
        return out.at[index].set(attend(*rows), mode="drop")

    branches = [band, band_but_few, attend] if few else [band, attend]

    def branch_of(positions):
        packed = jnp.sum(~whole(positions))
        return (packed > 0).astype(jnp.int32) + ((packed > few) if few else 0)

    @jax.custom_vjp
    def run(q, k, v, positions):
        return jax.lax.switch(branch_of(positions), branches, q, k, v, positions)

    def forward(*arguments):
        return run(*arguments), arguments

    def backward(arguments, dout):
        def pull(branch):
            def call(q, k, v, positions, dout):
                return jax.vjp(lambda *qkv: branch(*qkv, positions), q, k, v)[1](dout)

            return call

        *qkv, positions = arguments
        pulls = [pull(branch) for branch in branches]
        return *jax.lax.switch(branch_of(positions), pulls, *qkv, positions, dout), None

    run.defvjp(forward, backward)
    return run(q, k, v, positions)
