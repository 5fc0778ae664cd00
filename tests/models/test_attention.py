"""Rotary positions and the ring of keys."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.models import AttentionState, Timeline
from griffin_jax.models.attention import attend_and_write, rotate, write_ring


def heads(seed, time=1, size=8):
    return np.random.default_rng(seed).standard_normal((1, time, 1, size)).astype(np.float32)


def test_only_the_first_half_of_a_head_turns_in_pairs_of_its_two_quarters():
    x, position = heads(0), 5
    out = np.asarray(rotate(x, np.array([[position]]), base=10_000.0, fraction=0.5))[0, 0, 0]
    x = x[0, 0, 0]
    for i, frequency in enumerate((1.0, 10_000.0**-0.5)):  # of pair (i, i + 2)
        pair = complex(x[i], x[i + 2]) * np.exp(1j * position * frequency)
        np.testing.assert_allclose([out[i], out[i + 2]], [pair.real, pair.imag], rtol=1e-5)
    np.testing.assert_array_equal(out[4:], x[4:])


def test_position_zero_turns_nothing():
    x = heads(0)
    np.testing.assert_array_equal(rotate(x, np.zeros((1, 1), np.int32), 10_000.0, 0.5), x)


@pytest.mark.parametrize("position", [2047, 2048, 4096, 200_000, 1_000_000])
def test_far_positions_turn_as_exactly_as_near_ones(position):
    x = heads(0, size=256)
    out = np.asarray(rotate(x, np.array([[position]]), 10_000.0, 0.5))[0, 0, 0]
    angle = position * 10_000.0 ** (-np.arange(64) / 64)
    turned = (x[0, 0, 0, :64] + 1j * x[0, 0, 0, 64:128]) * np.exp(1j * angle)
    np.testing.assert_allclose(out[:64] + 1j * out[64:128], turned, atol=1e-3)


def test_scores_depend_on_the_distance_of_two_positions_alone():
    q, k = heads(1), heads(2)

    def score(at_q, at_k):
        turned = [rotate(x, np.array([[at]]), 10_000.0, 0.5) for x, at in ((q, at_q), (k, at_k))]
        return float(np.sum(np.asarray(turned[0]) * np.asarray(turned[1])))

    np.testing.assert_allclose(score(40, 37), score(3, 0), rtol=1e-4)
    assert abs(score(40, 37) - score(40, 36)) > 1e-3


@pytest.mark.parametrize(
    ("positions", "length", "start", "ring"),
    [
        ([3, 4, 5], 3, 3, [4, 5, -1, 3]),  # past the wrap
        ([3, 4, 5], 1, 3, [-1, -1, -1, 3]),  # padding is left out
        ([3, 4, 5], 0, 3, [-1, -1, -1, -1]),
        ([0, 1, 2, 3, 4, 5, 6], 7, 0, [4, 5, 6, 3]),  # only the newest fit
        ([7, 8, 0, 1], 4, 7, [0, 1, -1, -1]),  # a document that has ended is left out
        ([2, 0, 1, 9], 3, 2, [0, 1, -1, -1]),  # whatever positions stand on padding
    ],
)
def test_slot_s_holds_the_newest_position_p_with_p_mod_slots_equal_s(
    positions, length, start, ring
):
    time = len(positions)
    empty = jnp.full((1, 4, 1, 2), -1.0)
    new = jnp.broadcast_to(
        jnp.array(positions, jnp.float32).reshape(1, time, 1, 1), (1, time, 1, 2)
    )
    timeline = Timeline(
        positions=jnp.array([positions]), lengths=jnp.array([length]), start=jnp.array([start])
    )
    after = write_ring(AttentionState(keys=empty, values=empty), new, new + 100, timeline)
    np.testing.assert_array_equal(after.keys[0, :, 0, 0], ring)
    np.testing.assert_array_equal(
        after.values[0, :, 0, 0], [p + 100 if p >= 0 else p for p in ring]
    )


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="it is about the CPU's compiler")
def test_steps_in_a_loop_copy_no_ring():
    ring = (4, 16, 1, 8)

    def steps(q, state):
        def step(turn):
            i, q, state = turn
            position = jnp.full(4, i, jnp.int32)
            timeline = Timeline(position[:, None], jnp.ones(4, jnp.int32), start=position)
            k = q[:, :, :1]
            out, state = attend_and_write(16, q, k, k + 1, state, timeline)
            return i + 1, out, state

        return jax.lax.while_loop(lambda turn: turn[0] < 40, step, (0, q, state))

    state = AttentionState(keys=jnp.zeros(ring), values=jnp.zeros(ring))
    compiled = jax.jit(steps, donate_argnums=1).lower(jnp.ones((4, 1, 2, 8)), state).compile()
    loop = re.split(r"\nENTRY ", compiled.as_text())[0]
    assert "f32[4,16,1,8]" in loop
    assert not re.findall(r"= f32\[4,16,1,8\]\S* copy\(|= f32\[4,8,16\].*", loop)
