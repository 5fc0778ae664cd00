"""Attention of rows that mostly are one document each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.kernels.local_attention import local_attention, local_attention_reference
from griffin_jax.kernels.whole_rows import attend_whole_rows, one_document_a_row

ROWS, TIME, SLOTS = 16, 12, 8


def draw(kv_heads=1):
    generator = np.random.default_rng(0)
    shapes = [(4, 8), (kv_heads, 8), (kv_heads, 8), (4, 8)]
    return [generator.standard_normal((ROWS, TIME, *s)).astype(np.float32) for s in shapes]


def packed(rows):
    """Positions in which so many rows begin a new document on the way."""
    positions = np.tile(np.arange(TIME, dtype=np.int32), (ROWS, 1))
    for row in range(1, rows + 1):
        positions[row, row:] = np.arange(TIME - row)
    return positions


def reference(q, k, v, positions, reach):
    empty = jnp.zeros((len(q), 0, *k.shape[2:]))
    start = jnp.zeros(len(q), jnp.int32)
    return local_attention_reference(q, k, v, empty, empty, start, positions, reach=reach)


@pytest.mark.parametrize(
    ("rows", "reach", "kv_heads"),
    # Up to two rows in sixteen go apart.
    [(0, None, 1), (0, 5, 2), (1, TIME, 1), (2, 5, 2), (3, 5, 1), (11, None, 2)],
)
def test_equals_the_definition_with_gradients_however_many_rows_are_packed(rows, reach, kv_heads):
    *qkv, weights = draw(kv_heads)
    positions = packed(rows)

    def value_and_gradients(function):
        def loss(*qkv):
            out = function(*qkv, positions)
            return jnp.sum(out * weights), out

        return jax.jit(jax.value_and_grad(loss, argnums=range(3), has_aux=True))(*qkv)

    attend = functools.partial(reference, reach=reach)
    (_, out), gradients = value_and_gradients(
        lambda *a: attend_whole_rows(*a, reach=reach, attend=attend, implementation="xla")
    )
    (_, expected), expected_gradients = value_and_gradients(attend)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("time", [SLOTS - 2, TIME])
def test_a_fresh_call_does_not_look_at_the_ring(time):
    q, k, v, _ = (x[:, :time] for x in draw())
    positions = packed(3)[:, :time]
    ring = np.zeros((ROWS, SLOTS, 1, 8), np.float32)
    attend = functools.partial(local_attention, q, k, v, reach=SLOTS - 1)
    start = np.zeros(ROWS, np.int32)
    expected = attend(ring, ring, start, positions)
    np.testing.assert_allclose(
        attend(ring + 1e3, ring + 1e3, start, positions, fresh=True), expected, atol=1e-6
    )


def test_rows_that_go_on_are_refused():
    q, k, v, _ = draw()
    ring = np.zeros((ROWS, SLOTS, 1, 8), np.float32)
    with pytest.raises(ValueError, match="cudnn_rows_gpu"):
        local_attention(
            q,
            k,
            v,
            ring,
            ring,
            np.zeros(ROWS, np.int32),
            packed(0),
            reach=4,
            kernel="cudnn_rows_gpu",
        )


@pytest.mark.slow
@pytest.mark.parametrize("reach", [None, 5])
def test_rows_that_are_promised_to_be_whole_need_no_branch_and_may_be_mapped(reach):
    *qkv, weights = draw()
    several = [np.stack([x, 2 * x]) for x in qkv]

    def gradients(attend):
        def loss(*qkv):
            return jnp.sum(attend(*qkv, packed(0)) * weights)

        return jax.vmap(jax.grad(loss, argnums=range(3)))

    def refuse(*_):
        raise AssertionError("rows with a border are not to be had")

    attend = functools.partial(attend_whole_rows, reach=reach, attend=refuse, implementation="xla")
    with one_document_a_row():
        got = gradients(attend)(*several)
        assert "cond" not in str(jax.make_jaxpr(gradients(attend))(*several))
    expected = gradients(functools.partial(reference, reach=reach))(*several)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    with pytest.raises(AssertionError, match="rows with a border"):
        attend(*qkv, packed(0))  # the promise ends with its block
