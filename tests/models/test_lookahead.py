"""Tokens that are read before it is known how many of them count."""

import functools

import jax
import numpy as np
import pytest
from flax import linen as nn

from griffin_jax.config import GriffinConfig
from griffin_jax.models import Griffin, init_params, init_state, stack_params

WINDOW = 4
CONFIG = GriffinConfig(
    vocab_size=50,
    width=16,
    mlp_width=24,
    num_layers=2,
    num_heads=2,
    block_pattern=("recurrent", "attention"),
    recurrence_width=16,
    attention_window=WINDOW,
)
TOKENS = np.arange(20).reshape(4, 5)
LENGTHS, KEPT = np.array([5, 4, 5, 0]), np.array([2, 4, 5, 0])


def look(model, tokens, state, lengths, kept):
    """Logits and the state after `kept` tokens, in one call over all of them."""

    def run(model):
        x, advance = model.lookahead(tokens, state, lengths)
        return model.logits(x), advance(kept)

    return nn.apply(run, model)


@functools.partial(jax.jit, static_argnums=0)
def read(model, variables, tokens, state, lengths):
    return model.apply(variables, tokens, state, lengths=lengths)


@pytest.mark.parametrize(
    "pattern, stacked",
    [
        (("recurrent", "attention"), False),
        pytest.param(("lru", "cg_lru"), False, marks=pytest.mark.slow),
        (("recurrent", "attention"), True),
    ],
)
def test_the_state_takes_what_counts_and_nothing_else(pattern, stacked):
    config = CONFIG.replace(block_pattern=pattern, num_layers=2 if not stacked else 4)
    model, params = Griffin(config), init_params(config, jax.random.key(0))
    if stacked:
        params = stack_params(config, params)
    variables = {"params": params}
    # Behind the wrap of the window, so that a ring that was written too early would have lost keys.
    _, state = read(model, variables, TOKENS + 20, init_state(config, 4), np.full(4, 5))
    logits, after = jax.jit(look(model, TOKENS, state, LENGTHS, KEPT))(variables)
    expected, _ = read(model, variables, TOKENS, state, LENGTHS)
    _, state_after = read(model, variables, TOKENS, state, KEPT)
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(logits[row, :length], expected[row, :length], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after, state_after)


def test_it_multiplies_by_each_weight_once_but_for_the_gates():
    model, variables = Griffin(CONFIG), {"params": init_params(CONFIG, jax.random.key(0))}
    state = init_state(CONFIG, 4)

    def products(function):
        return str(jax.make_jaxpr(function)(variables)).count("dot_general")

    plain = products(lambda v: model.apply(v, TOKENS, state, lengths=LENGTHS))
    gates = 2 * CONFIG.block_types.count("recurrent")
    assert products(look(model, TOKENS, state, LENGTHS, KEPT)) == plain + gates
