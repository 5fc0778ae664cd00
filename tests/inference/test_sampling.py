"""Drawing a token from logits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.inference import drawing as module
from griffin_jax.inference.drawing import IN_PROMPT, Needs, choose, needs_of, settings_of
from griffin_jax.inference.sampling import SamplingConfig

DRAWS = 2000
LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.3, 0.15], np.float32)) + 3.0
_choose = jax.jit(choose, static_argnames="needs")


def settings(*configs):
    """The settings of rows, one config each."""
    return jax.tree.map(lambda *values: np.stack(values), *map(settings_of, configs))


def draw(sampling, logits=LOGITS, counts=None, count=DRAWS):
    """Tokens and log-probabilities of `count` draws from the same logits."""
    rows = np.broadcast_to(logits, (count, len(logits)))
    counts = None if counts is None else np.broadcast_to(np.int32(counts), rows.shape)
    keys = jax.random.split(jax.random.key(0), count)
    needs = needs_of(sampling)
    tokens, logprobs = _choose(rows, keys, settings(*[sampling] * count), needs, counts=counts)
    return np.asarray(tokens), np.asarray(logprobs)


def frequencies(sampling, **kwargs):
    tokens, _ = draw(sampling, **kwargs)
    return np.bincount(tokens, minlength=len(LOGITS)) / len(tokens)


def renormalized(kept, temperature=1.0):
    weights = np.where(np.isin(np.arange(len(LOGITS)), kept), np.exp(LOGITS / temperature), 0)
    return weights / weights.sum()


def test_temperature_zero_takes_the_most_likely_token():
    tokens, _ = draw(SamplingConfig(temperature=0.0, top_k=3, top_p=0.2), count=5)
    assert (tokens == 1).all()


@pytest.mark.parametrize("temperature", [1e-30, 1e-45])
def test_a_tiny_temperature_is_greedy_and_finite(temperature):
    tokens, _ = draw(SamplingConfig(temperature=temperature), count=50)
    assert (tokens == 1).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_at_the_temperature(temperature):
    expected = renormalized(range(5), temperature)
    found = frequencies(SamplingConfig(temperature=temperature))
    assert np.abs(found - expected).max() < 4 / np.sqrt(DRAWS) / 2


@pytest.mark.parametrize(
    "filters, kept",
    [
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 1}, [1]),
        ({"top_k": 100}, range(5)),
        ({"top_p": 0.39}, [1]),
        ({"top_p": 0.6}, [1, 3]),
        ({"top_p": 0.72}, [1, 3, 4]),
        ({"top_p": 1.0}, range(5)),
        ({"min_p": 0.3}, [1, 3, 4]),
        ({"min_p": 0.0}, range(5)),
        ({"min_p": 1.0}, [1]),
        # The first two of the three that top_k leaves make up 0.7 / 0.85.
        ({"top_k": 3, "top_p": 0.8}, [1, 3]),
        ({"top_k": 4, "min_p": 0.5}, [1, 3]),
    ],
)
def test_filters_keep_exactly_these_tokens_in_their_proportions(filters, kept):
    found = frequencies(SamplingConfig(temperature=1.0, **filters))
    assert np.abs(found - renormalized(kept)).max() < 4 / np.sqrt(DRAWS) / 2
    assert set(np.flatnonzero(found)) == set(kept)


def test_the_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    logits = np.array([2.0, 1.5, -1.0, -1.2], np.float32)
    sampling = SamplingConfig(temperature=0.0, repetition_penalty=1.5)
    assert draw(sampling, logits, counts=[IN_PROMPT, 0, 0, 0], count=1)[0] == 1
    negative = np.array([-9.0, -9.0, -1.0, -1.2], np.float32)
    assert draw(sampling, negative, counts=[0, 0, 2, 0], count=1)[0] == 3


def test_presence_counts_once_frequency_every_time_and_the_prompt_never():
    logits = np.array([3.0, 2.5, 2.0, 1.0], np.float32)
    for counts, presence, frequency, expected in (
        ([5, 0, 0, 0], 0.4, 0.0, 0),
        ([5, 0, 0, 0], 0.6, 0.0, 1),
        ([5, 0, 0, 0], 0.0, 0.09, 0),
        ([5, 0, 0, 0], 0.0, 0.11, 1),
        ([IN_PROMPT, 0, 0, 0], 9.0, 9.0, 0),
        ([IN_PROMPT + 1, 1, 1, 0], 0.1, 0.0, 0),
        ([0, 0, 0, 1], -3.0, 0.0, 3),
    ):
        sampling = SamplingConfig(presence_penalty=presence, frequency_penalty=frequency)
        assert draw(sampling, logits, counts=counts, count=1)[0] == expected


def test_log_probabilities_are_the_models_own_whatever_the_filters():
    sampling = SamplingConfig(temperature=0.3, top_k=3, repetition_penalty=1.3)
    tokens, logprobs = draw(sampling, counts=np.ones(5), count=50)
    np.testing.assert_allclose(logprobs, np.asarray(jax.nn.log_softmax(LOGITS))[tokens], rtol=1e-5)


def test_a_rows_draw_depends_on_its_own_key_and_logits_only():
    sampling = SamplingConfig(temperature=1.0, top_p=0.9)
    logits = np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32)
    keys = jax.random.split(jax.random.key(1), 6)
    needs = needs_of(sampling)
    together, _ = choose(jnp.asarray(logits), keys, settings(*[sampling] * 6), needs)
    for i in range(6):
        one = slice(i, i + 1)
        alone, _ = choose(jnp.asarray(logits[one]), keys[one], settings(sampling), needs)
        assert alone[0] == together[i]


def test_rows_of_all_settings_draw_together_what_each_draws_alone(monkeypatch):
    monkeypatch.setattr(module, "_CANDIDATES", 8)
    monkeypatch.setattr(module, "_BLOCK", 4)
    configs = [
        SamplingConfig(),
        SamplingConfig(temperature=1.0),
        *(SamplingConfig(temperature=1.5, **values) for values in FILTERS),
        SamplingConfig(temperature=0.8, min_p=0.1, repetition_penalty=1.4),
        SamplingConfig(presence_penalty=1.0, frequency_penalty=0.3),
    ]
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(len(configs), 101)), jnp.float32)
    counts = jnp.asarray(rng.integers(0, 3, logits.shape), jnp.int32)
    keys = jax.random.split(jax.random.key(1), len(configs))
    together, _ = _choose(logits, keys, settings(*configs), Needs(True, True, True), counts=counts)
    for i, config in enumerate(configs):
        one = slice(i, i + 1)
        alone, _ = _choose(
            logits[one], keys[one], settings(config), needs_of(config), counts=counts[one]
        )
        assert alone[0] == together[i], config


FILTERS = [
    {"top_k": k, "top_p": p}
    for k in (None, 1, 3, 8, 9, 200)
    for p in (None, 0.02, 0.3, 0.9, 0.999)
    if k or p
]


@pytest.mark.parametrize("kind", ["spread", "peaked", "few values", "all alike", "infinite"])
def test_filters_without_sorting_keep_what_the_sorted_definition_keeps(monkeypatch, kind):
    monkeypatch.setattr(module, "_CANDIDATES", 8)
    monkeypatch.setattr(module, "_BLOCK", 4)
    random = np.random.default_rng(0)
    scores = {
        "spread": random.standard_normal((8, 2, 101)),
        "peaked": 6 * random.standard_normal((8, 2, 101)),
        "few values": 3.0 * random.integers(0, 4, (8, 2, 101)),
        "all alike": np.zeros((8, 2, 101)),
        "infinite": np.where(random.random((8, 2, 101)) < 0.9, -np.inf, 1.5),
    }[kind].astype(np.float32)
    scores[..., 5] = 7.0
    fast = jax.jit(module._threshold)
    definition = jax.jit(module._sorted_threshold)
    for values in FILTERS:
        both = settings(*[SamplingConfig(temperature=1.0, **values)] * 2)
        for rows in scores:
            found = fast(rows, both)
            if (values["top_k"] or 0) <= scores.shape[-1]:
                np.testing.assert_array_equal(found, definition(rows, both), str(values))
            elif values["top_p"] is None:
                assert (found == -np.inf).all()


def test_probabilities_of_a_half_are_cut_exactly_where_they_reach_top_p(monkeypatch):
    monkeypatch.setattr(module, "_CANDIDATES", 4)
    # 1/2, 1/4, 1/16 four times: every sum is exact.
    logits = np.log(np.float32([1, 1, 1, 4, 8, 1]) / 16)
    for top_p, kept in ((0.4, 1), (0.55, 2), (0.74, 2), (0.76, 6), (0.99, 6)):
        row = settings(SamplingConfig(temperature=1.0, top_p=top_p))
        filtered = module._filter(jnp.asarray(logits)[None], row)
        assert int(jnp.isfinite(filtered).sum()) == kept


def test_the_largest_scores_are_found_in_blocks(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 4)
    scores = np.random.default_rng(0).integers(0, 30, (3, 203)).astype(np.float32)
    expected = -np.sort(-scores, axis=-1)[:, :5]
    np.testing.assert_array_equal(module._ranked(jnp.asarray(scores), 5), expected)


def test_draws_are_those_of_jax_random_categorical():
    logits = np.random.default_rng(0).standard_normal((64, 300)).astype(np.float32)
    keys = jax.random.split(jax.random.key(3), 64)
    warm = SamplingConfig(temperature=1.0)
    tokens, _ = choose(jnp.asarray(logits), keys, settings(*[warm] * 64), needs_of(warm))
    expected = jax.vmap(jax.random.categorical)(keys, logits - logits.max(1, keepdims=True))
    np.testing.assert_array_equal(tokens, expected)


def test_the_first_of_equal_scores_is_the_greedy_one():
    inf, nan = np.inf, np.nan
    logits = np.float32([[0, 3, 1, 3], [5, 5, 5, 5], [-inf, -inf, -2, -inf], [0, nan, 9, nan]])
    greedy = settings(*[SamplingConfig()] * 4)
    tokens, logprobs = choose(jnp.asarray(logits), None, greedy, Needs())
    assert tokens.tolist() == [1, 0, 2, 1] == jnp.argmax(logits, axis=-1).tolist()
    assert np.isnan(logprobs[3])


def test_another_value_of_a_filter_compiles_nothing():
    program = jax.jit(chex.assert_max_traces(choose, n=1), static_argnums=3)
    keys = jax.random.split(jax.random.key(0), 1)
    for top_k, top_p in ((1, 0.5), (3, 0.9), (4, 0.1)):
        sampling = SamplingConfig(temperature=top_p, top_k=top_k, top_p=top_p)
        program(LOGITS[None], keys, settings(sampling), needs_of(sampling))


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": 0},
        {"top_k": -3},
        {"top_k": 2.5},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_p": -0.5},
        {"top_p": float("nan")},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
    ],
)
def test_values_out_of_range_are_named_in_one_line(values):
    with pytest.raises(ValueError) as caught:
        SamplingConfig(**values)
    assert next(iter(values)) in str(caught.value)
    assert "\n" not in str(caught.value)
