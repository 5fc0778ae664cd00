"""Any split into calls, any batching and any packing of a text give the same result."""

import itertools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from griffin_jax.config import RECURRENTGEMMA_9B
from griffin_jax.models import Griffin, abstract_params, init_params, init_state
from tests.tiny import (
    CONFIGS,
    GRIFFIN,
    assert_same_state,
    forward,
    params_of,
    random_tokens,
    relative_error,
    rows,
)

TIME = 29  # over three windows
SIZES = (1, 6, 9)  # of calls: decoding, and chunks shorter and longer than the rings
FEW = settings(max_examples=12, deadline=None, derandomize=True)

both = pytest.mark.parametrize(
    "config",
    [
        pytest.param(config, id=name, marks=[] if name == "griffin" else pytest.mark.slow)
        for name, config in CONFIGS.items()
    ],
)


def positions_with(starts, time=TIME):
    """int32[time], positions of documents that begin at 0 and at `starts`."""
    t = np.arange(time)
    begin = np.max([np.where(t >= s, s, 0) for s in (0, *starts)], axis=0)
    return (t - begin).astype(np.int32)


def read(config, tokens, positions, lengths=None, state=None):
    """One call: logits and state."""
    if state is None:
        state = init_state(config, tokens.shape[0])
    if lengths is None:
        lengths = np.full(tokens.shape[0], tokens.shape[1])
    return forward(config)(
        params_of(config), tokens, state, positions, np.asarray(lengths, np.int32)
    )


def read_in_calls(config, tokens, positions, sizes, state=None):
    """Calls of the given sizes: the logits of all tokens, and the last state."""
    logits, begin = [np.zeros((tokens.shape[0], 0, config.vocab_size))], 0
    state = init_state(config, tokens.shape[0]) if state is None else state
    for size in sizes:
        part = np.s_[:, begin : begin + size]
        out, state = read(config, tokens[part], positions[part], state=state)
        logits.append(out)
        begin += size
    assert begin == tokens.shape[1]
    return np.concatenate(logits, axis=1), state


def read_alone(config, tokens, state=None):
    """A text of any length as the only row, without padding."""
    nines, ones = divmod(tokens.shape[0], 9)
    start = 0 if state is None else int(state.position[0])
    positions = start + np.arange(tokens.shape[0], dtype=np.int32)
    logits, state = read_in_calls(
        config, tokens[None], positions[None], [9] * nines + [1] * ones, state
    )
    return logits[0], state


@st.composite
def splits(draw):
    """Sizes of calls that add up to TIME."""
    sizes, left = [], TIME
    for size in draw(st.lists(st.sampled_from(SIZES), max_size=12)):
        if size <= left:
            sizes.append(size)
            left -= size
    return draw(st.permutations(sizes + [1] * left))


three_times_starts = st.lists(
    st.lists(st.integers(1, TIME - 1), max_size=3), min_size=3, max_size=3
)
lengths_of_three = st.lists(st.integers(0, TIME), min_size=3, max_size=3)


@both
@FEW
@given(sizes=splits(), starts=three_times_starts)
def test_any_split_into_calls_equals_the_whole(config, sizes, starts):
    tokens = random_tokens(config, (3, TIME))
    positions = np.stack([positions_with(row) for row in starts])
    whole, whole_state = read(config, tokens, positions)
    parts, parts_state = read_in_calls(config, tokens, positions, sizes)
    assert relative_error(parts, whole) <= 1e-5
    assert_same_state(parts_state, whole_state)


@both
@FEW
@given(lengths=lengths_of_three)
def test_a_row_in_a_ragged_batch_equals_the_row_alone(config, lengths):
    tokens = random_tokens(config, (3, TIME))
    logits, state = read(config, tokens, np.tile(positions_with(()), (3, 1)), lengths)
    for row, length in enumerate(lengths):
        alone, alone_state = read_alone(config, tokens[row, :length])
        assert relative_error(logits[row, :length], alone) <= 1e-5
        assert_same_state(rows(state, [row]), alone_state)


@both
@FEW
@given(lengths=lengths_of_three, seed=st.integers(1, 1000))
def test_what_stands_on_padding_changes_no_bit(config, lengths, seed):
    tokens, poison = random_tokens(config, (3, TIME)), random_tokens(config, (3, TIME), seed)
    positions = np.tile(positions_with(()), (3, 1))
    padding = np.arange(TIME) >= np.array(lengths)[:, None]
    logits, state = read(config, tokens, positions, lengths)
    poisoned, poisoned_state = read(
        config, np.where(padding, poison, tokens), np.where(padding, 0, positions), lengths
    )
    np.testing.assert_array_equal(logits[~padding], poisoned[~padding])
    assert_same_state(poisoned_state, state, bound=0)


@both
@FEW
@given(starts=three_times_starts)
def test_packed_documents_equal_separate_ones(config, starts):
    tokens = random_tokens(config, (3, TIME))
    positions = np.stack([positions_with(row) for row in starts])
    logits, state = read(config, tokens, positions)
    more = random_tokens(config, (10,), seed=1)
    for row in range(3):
        edges = sorted({0, *starts[row], TIME})
        for begin, end in itertools.pairwise(edges):
            alone, alone_state = read_alone(config, tokens[row, begin:end])
            assert relative_error(logits[row, begin:end], alone) <= 1e-5
        assert_same_state(rows(state, [row]), alone_state)
        # Nor does what the document before left in the state reach the tokens that follow.
        continued, _ = read_alone(config, more, rows(state, [row]))
        alone_continued, _ = read_alone(config, more, alone_state)
        assert relative_error(continued, alone_continued) <= 1e-5


@both
def test_rows_of_length_zero_keep_their_state_bit_for_bit(config):
    tokens = random_tokens(config, (3, TIME))
    positions = np.tile(positions_with(()), (3, 1))
    _, before = read(config, tokens, positions, [7, 29, 0])
    _, after = read(config, tokens, before.position[:, None] + positions, [0, 5, 0], before)
    assert_same_state(rows(after, [0, 2]), rows(before, [0, 2]), bound=0)
    np.testing.assert_array_equal(after.position, [7, 34, 0])


def test_rows_of_a_state_can_be_selected_and_repeated():
    tokens = random_tokens(GRIFFIN, (3, TIME))
    positions = np.tile(positions_with(()), (3, 1))
    _, state = read(GRIFFIN, tokens, positions, [12, 3, 29])
    forked = rows(state, np.array([2, 0, 0]))
    logits, _ = read(GRIFFIN, tokens, forked.position[:, None] + positions, None, forked)
    for row, source in enumerate((2, 0, 0)):
        alone, _ = read_alone(GRIFFIN, tokens[row], rows(state, [source]))
        assert relative_error(logits[row], alone) <= 1e-5


def test_state_and_positions_and_lengths_default_to_a_fresh_whole_text():
    tokens = random_tokens(GRIFFIN, (2, 6))
    logits, state = forward(GRIFFIN)(params_of(GRIFFIN), tokens)
    positions = np.tile(positions_with((), 6), (2, 1))
    explicit, explicit_state = read(GRIFFIN, tokens, positions, [6, 6])
    assert relative_error(logits, explicit) <= 1e-6
    assert_same_state(state, explicit_state, bound=1e-6)


@both
def test_the_state_keeps_its_shapes_and_types_for_any_call(config):
    for dtype in (jnp.float32, jnp.bfloat16):
        params = abstract_params(config, dtype)
        state = jax.eval_shape(lambda dtype=dtype: init_state(config, 3, dtype))
        for time in (1, 4, 40):
            tokens = jax.ShapeDtypeStruct((3, time), jnp.int32)
            logits, after = jax.eval_shape(forward(config, dtype), params, tokens, state)
            assert (logits.shape, logits.dtype) == ((3, time, config.vocab_size), jnp.float32)
            assert jax.tree.leaves(after) == jax.tree.leaves(state)


class TestUnboundedWindow:
    config = GRIFFIN.replace(attention_window=None)

    def test_equals_a_window_longer_than_the_text(self):
        tokens = random_tokens(GRIFFIN, (2, TIME))
        logits, _ = forward(self.config)(params_of(GRIFFIN), tokens)
        longer, _ = forward(GRIFFIN.replace(attention_window=40))(params_of(GRIFFIN), tokens)
        assert relative_error(logits, longer) <= 1e-5

    def test_goes_on_from_a_state_with_capacity(self):
        tokens = random_tokens(GRIFFIN, (2, TIME))
        apply, params = forward(self.config), params_of(GRIFFIN)
        whole, _ = apply(params, tokens)
        state = init_state(self.config, 2, capacity=40)
        for begin, end in ((0, 14), (14, 28), (28, 29)):
            logits, state = apply(params, tokens[:, begin:end], state)
            assert relative_error(logits, whole[:, begin:end]) <= 1e-5

    def test_needs_a_capacity_to_go_on(self):
        with pytest.raises(ValueError, match="capacity"):
            init_state(self.config, 2)
        tokens = random_tokens(GRIFFIN, (2, 6))
        _, state = jax.eval_shape(forward(self.config), params_of(GRIFFIN), tokens)
        with pytest.raises(ValueError, match="no room for keys"):
            jax.eval_shape(forward(self.config), params_of(GRIFFIN), tokens, state)


def test_bfloat16_agrees_with_float32_on_the_top_token():
    exact, rough = [], []
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params_of(GRIFFIN))
    for seed in range(6):
        tokens = random_tokens(GRIFFIN, (3, TIME), seed)
        exact.append(read(GRIFFIN, tokens, np.tile(positions_with(()), (3, 1)))[0])
        rough.append(forward(GRIFFIN, jnp.bfloat16)(half, tokens)[0])
    exact, rough = np.stack(exact), np.stack(rough)
    best, second = np.moveaxis(np.sort(exact, axis=-1)[..., :-3:-1], -1, 0)
    clear = best - second > 0.02 * np.abs(exact).max()
    assert clear.mean() > 0.75
    agrees = np.argmax(exact, axis=-1) == np.argmax(rough, axis=-1)
    assert agrees[clear].mean() >= 0.99


def test_initial_parameters_have_the_abstract_shapes_and_a_sane_scale():
    config = GRIFFIN.replace(num_layers=1)
    params = jax.jit(lambda key: init_params(config, key))(jax.random.key(0))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), abstract_params(config))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == shapes
    block = params["blocks_0"]["recurrent_block"]
    weight = block["linear_x"]["weight"]
    assert 0.8 < float(jnp.std(weight)) * config.width**0.5 < 1.2
    radius = np.exp(-jax.nn.softplus(block["rg_lru"]["a_param"]))
    assert np.all((radius >= 0.9 - 1e-3) & (radius <= 0.999 + 1e-3))


def test_the_9b_has_the_published_number_of_parameters():
    params = abstract_params(RECURRENTGEMMA_9B)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 8_579_977_216


def test_a_parameter_of_the_wrong_shape_is_named():
    params = dict(params_of(GRIFFIN), embedder={"embedding": jnp.zeros((3, 32))})
    with pytest.raises(ValueError, match=r"embedder/embedding has shape \(3, 32\).*\(64, 32\)"):
        Griffin(GRIFFIN).apply({"params": params}, jnp.zeros((1, 1), jnp.int32))
