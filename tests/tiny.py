"""Tiny models with nothing left at its initial zero, shared by the tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.config import ATTENTION, RECURRENT, GriffinConfig
from griffin_jax.models import Griffin, State, abstract_params, init_state

GRIFFIN = GriffinConfig(
    vocab_size=64,
    width=32,
    mlp_width=48,
    num_layers=3,
    num_heads=4,
    block_pattern=(RECURRENT, ATTENTION),
    recurrence_width=48,
    attention_window=8,
)
# Everything that a config can turn the other way.
OTHER_CHOICES = GriffinConfig(
    vocab_size=64,
    width=32,
    mlp_width=40,
    num_layers=2,
    num_heads=4,
    block_pattern=(ATTENTION, RECURRENT),
    recurrence_width=24,
    head_size=16,
    num_kv_heads=2,
    attention_window=5,
    window_includes_query=True,
    scale_embeddings=False,
    logits_soft_cap=None,
    tie_embeddings=False,
    attention_bias=True,
    projection_bias=False,
)
CONFIGS = {"griffin": GRIFFIN, "other choices": OTHER_CHOICES}


@functools.cache
def params_of(config: GriffinConfig, seed: int = 0) -> dict:
    """Random parameters of which none is zero, so that biases and norm scales count too.

    Drawn with NumPy: the same everywhere, and nothing is compiled.
    """
    generator = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "a_param":
            return jnp.asarray(generator.uniform(-6, -2, leaf.shape), leaf.dtype)
        spread = 0.1 if len(leaf.shape) == 1 else leaf.shape[-1] ** -0.5
        return jnp.asarray(spread * generator.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(config))


@functools.cache
def forward(config: GriffinConfig, dtype=jnp.float32):
    """`Griffin.apply` under `jax.jit`: (params, tokens, state, positions, lengths) -> both."""
    model = Griffin(config, dtype=dtype)

    @jax.jit
    def apply(params, tokens, state=None, positions=None, lengths=None):
        return model.apply({"params": params}, tokens, state, positions, lengths)

    return apply


def random_tokens(config: GriffinConfig, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """int32 token ids, drawn alike everywhere."""
    drawn = np.random.default_rng(seed).integers(0, config.vocab_size, shape)
    return drawn.astype(np.int32)


def relative_error(actual, expected) -> float:
    """The largest difference of two arrays over the largest value of `expected`."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    if not expected.size:
        return 0.0
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30))


def assert_same_state(actual: State, expected: State, bound: float = 1e-5):
    """What the next call can see of two states is within `bound` relatively (0: bit for bit).

    Ring slots and convolution inputs from before the document's beginning are left out.
    """
    actual, expected = jax.tree.map(np.asarray, (actual, expected))
    np.testing.assert_array_equal(actual.position, expected.position)
    for got, wanted in zip(actual.blocks, expected.blocks, strict=True):
        for name, value in vars(wanted).items():
            other, position = getattr(got, name), expected.position[:, None]
            assert other.dtype == value.dtype
            if name != "hidden":
                size = value.shape[1]
                age = size - np.arange(size) if name == "conv" else 1 + np.arange(size)
                seen = (age <= position).reshape(*value.shape[:2], *[1] * (value.ndim - 2))
                other, value = np.where(seen, other, 0), np.where(seen, value, 0)
            assert relative_error(other, value) <= bound


def rows(state: State, index) -> State:
    """Some rows of a state, in any order."""
    return jax.tree.map(lambda x: np.asarray(x)[index], state)


def greedy(
    config: GriffinConfig, params: dict, prompt: np.ndarray, num_tokens: int, capacity=None
) -> list[int]:
    """The most likely continuation of one prompt, a token a call."""
    state = None if config.attention_window else init_state(config, 1, capacity=capacity)
    logits, state = forward(config)(params, prompt[None], state)
    tokens = []
    for _ in range(num_tokens):
        tokens.append(int(np.argmax(logits[0, -1])))
        logits, state = forward(config)(params, np.array([tokens[-1:]], np.int32), state)
    return tokens
