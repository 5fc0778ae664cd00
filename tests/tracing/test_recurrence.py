"""The recurrence as attention: against the states of a trace and against loops."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax import tracing
from griffin_jax.language_model import LanguageModel
from tests.tiny import GRIFFIN, params_of, random_tokens, relative_error

TIME, HEADS, WIDTH = 14, GRIFFIN.num_heads, GRIFFIN.recurrence_width
LENGTHS = np.array([TIME, 9], np.int32)
POSITIONS = np.array([[*range(5), *range(TIME - 5)], [*range(TIME)]], np.int32)


@functools.cache
def seen():
    """Two documents in a row, and padding."""
    lm = LanguageModel(GRIFFIN, params_of(GRIFFIN))
    tokens = random_tokens(GRIFFIN, (2, TIME))
    return lm.trace(tokens, "blocks.0.rg_lru.*", lengths=LENGTHS, positions=POSITIONS)


def at(name):
    return np.asarray(seen()[f"blocks.0.rg_lru.{name}"])


def test_effective_attention_times_the_inputs_is_the_state():
    weights = np.asarray(tracing.effective_attention(at("decay")))
    assert weights.shape == (2, WIDTH, TIME, TIME)
    h = np.einsum("brts,bsr->btr", weights, at("input"))
    assert relative_error(h, at("state")) <= 1e-5
    assert not np.triu(weights, 1).any() and (np.diagonal(weights, axis1=2, axis2=3) == 1).all()
    assert not weights[0, :, 5:, :5].any()  # another document
    some = tracing.effective_attention(at("decay"), channels=[7, 2])
    np.testing.assert_array_equal(some, weights[:, [7, 2]])


def test_heads_share_their_states_among_tokens():
    weights = np.asarray(tracing.effective_attention(at("decay")), np.float64)
    parts = (weights * np.moveaxis(at("input"), 1, 2)[:, :, None]) ** 2
    expected = np.sqrt(parts.reshape(2, HEADS, -1, TIME, TIME).mean(axis=2))
    found = tracing.head_attention(at("decay"), at("input"), HEADS, share=False)
    assert relative_error(found, expected) <= 1e-5
    shares = tracing.head_attention(at("decay"), at("input"), HEADS)
    np.testing.assert_allclose(np.sum(shares, axis=-1), 1, rtol=1e-5)


def test_memory_is_as_long_as_a_constant_decay_says():
    decay = np.array([0.5, 0.9, 0.999], np.float32)
    log_decay = jnp.broadcast_to(jnp.log(decay), (2, TIME, 3)).at[1, 9:].set(-100.0)
    found = tracing.memory_length(log_decay, LENGTHS)
    np.testing.assert_allclose(found, -1 / np.log(decay.astype(np.float64)), rtol=1e-4)
    (spectrum,) = tracing.decay_spectrum({3: log_decay[..., ::-1]}, LENGTHS).values()
    np.testing.assert_allclose(spectrum, decay, rtol=1e-6)
    assert float(tracing.memory_length(jnp.zeros((1, 2, 1)))[0]) > 1e30  # it never forgets


def test_what_is_left_of_a_token_is_its_column():
    weights = np.asarray(tracing.effective_attention(at("decay")))
    left = np.asarray(tracing.kept(at("decay"), 3))
    np.testing.assert_allclose(left, np.moveaxis(weights[:, :, 3:, 3], 1, 2), rtol=1e-6, atol=1e-30)
    parts = (weights * np.moveaxis(at("input"), 1, 2)[:, :, None]) ** 2
    total = parts.sum(axis=(1, 3))
    share = tracing.share_of_state(at("decay"), at("input"), 3)
    expected = np.sqrt(parts[:, :, 3:, 3].sum(axis=1) / total[:, 3:])
    np.testing.assert_allclose(share, expected, rtol=1e-4, atol=1e-7)
    assert not np.any(np.asarray(share)[0, 2:])  # the document has ended


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda a: tracing.effective_attention(a[0]),
            r"decay must be \[batch, time, channels\], got \[",
        ),
        (lambda a: tracing.effective_attention(a, [WIDTH]), f"numbers of 0 to {WIDTH - 1}, got"),
        (lambda a: tracing.head_attention(a, a, 7), f"divide the {WIDTH} channels, got 7"),
        (lambda a: tracing.head_attention(a, a[:, 1:], 4), "must be of one shape"),
        (lambda a: tracing.kept(a, TIME), f"token must be a number of 0 to {TIME - 1}, got {TIME}"),
    ],
)
def test_wrong_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.asarray(at("decay")))
