"""Every path of local attention equals attention over all pairs under a mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.kernels.local_attention import local_attention, local_attention_reference


def draw(time, slots, heads=4, kv_heads=1, size=8, seed=0):
    """q, k, v, cached k and v of three rows."""
    generator = np.random.default_rng(seed)
    shapes = [(time, heads)] + [(time, kv_heads)] * 2 + [(slots, kv_heads)] * 2
    return [generator.standard_normal((3, *s, size)).astype(np.float32) for s in shapes]


def positions_of(start, time, restart):
    """Three rows that go on from `start`; the last one begins a new document at `restart`."""
    positions = start[:, None] + np.arange(time)
    if restart < time:
        positions[2, restart:] = np.arange(time - restart)
    return positions.astype(np.int32)


@pytest.mark.parametrize("kv_heads", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("time", "slots", "reach"),
    [
        (1, 8, 8),  # decoding
        (5, 8, 8),  # a chunk shorter than the ring
        (8, 8, 7),
        (9, 8, 8),  # longer: blocks, with a remainder
        (24, 8, 7),  # blocks, none left over
        (27, 8, 3),
        (6, 0, None),  # unbounded, without and with a ring
        (6, 16, None),
    ],
)
def test_equals_the_definition_with_gradients(time, slots, reach, kv_heads):
    arguments = draw(time, slots, kv_heads=kv_heads)
    # Nothing cached, less than a ring, more than one; the third row begins anew in the call.
    start = np.array([0, 3, 21] if slots else [0, 0, 0], np.int32)
    if reach is None:
        start = np.minimum(start, slots)
    positions = positions_of(start, time, restart=4)
    weights = np.random.default_rng(1).standard_normal((3, time, 4, 8)).astype(np.float32)

    def value_and_gradients(function):
        def loss(*arguments):
            out = function(*arguments, start, positions, reach=reach)
            return jnp.sum(out * weights), out

        return jax.jit(jax.value_and_grad(loss, argnums=range(5), has_aux=True))(*arguments)

    (_, out), gradients = value_and_gradients(local_attention)
    (_, expected), expected_gradients = value_and_gradients(local_attention_reference)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_keys_outside_the_reach_change_no_bit():
    q, k, v, cached_k, cached_v = draw(20, 4)
    start = np.array([0, 4, 9], np.int32)
    positions = positions_of(start, 20, restart=20)
    attend = jax.jit(lambda *a: local_attention(*a, start, positions, reach=4))
    out = attend(q, k, v, cached_k, cached_v)
    old = np.arange(20)[None, :, None, None] < 10
    poisoned = attend(
        q, np.where(old, 50, k), np.where(old, 1e6, v), np.full_like(cached_k, 9), cached_v + 1e6
    )
    np.testing.assert_array_equal(poisoned[:, 14:], out[:, 14:])
    assert np.any(np.asarray(poisoned)[:, 13] != np.asarray(out)[:, 13])


def test_a_forced_kernel_that_cannot_serve_is_refused():
    q, k, v, cached_k, cached_v = draw(1, 4)
    start = np.zeros(3, np.int32)
    with pytest.raises(ValueError, match="cudnn_gpu"):
        local_attention(
            q, k, v, cached_k, cached_v, start, start[:, None], reach=4, kernel="cudnn_gpu"
        )


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="it needs a CPU")
@pytest.mark.parametrize("reach", [pytest.param(20, marks=pytest.mark.slow), None])
def test_slots_that_no_row_has_written_are_left_out(reach):
    *new, cached_k, cached_v = draw(6, 256)

    @jax.jit
    def value_and_gradients(arguments, start, positions):
        def loss(*arguments):
            out = local_attention(*arguments, start, positions, reach=reach, kernel="written_cpu")
            return jnp.sum(out**2), out

        return jax.value_and_grad(loss, argnums=range(5), has_aux=True)(*arguments)

    def reference(*arguments):
        return local_attention_reference(*arguments, start, positions, reach=reach)

    for starts, read in [((0, 0, 0), 0), ((1, 64, 3), 64), ((65, 0, 9), 256), ((300, 255, 7), 256)]:
        start = np.minimum(starts, 256 if reach is None else 300).astype(np.int32)
        positions = positions_of(start, 6, restart=4)
        written = np.arange(256)[None, :, None, None] < read
        poisoned = [np.where(written, ring, np.nan) for ring in (cached_k, cached_v)]
        (_, out), gradients = value_and_gradients((*new, *poisoned), start, positions)
        expected, pull_back = jax.vjp(reference, *new, cached_k, cached_v)
        np.testing.assert_allclose(out, expected, atol=1e-5)
        for got, wanted in zip(gradients, pull_back(2 * expected), strict=True):
            np.testing.assert_allclose(got, wanted, atol=2e-5)
