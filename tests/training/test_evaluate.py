"""Losses of whole documents."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.config import GriffinConfig
from griffin_jax.inference import head_blocks
from griffin_jax.models import Griffin, init_params
from griffin_jax.training import evaluate
from griffin_jax.training.evaluate import (
    bits_per_byte,
    document_divergences,
    document_losses,
    loss_by_position,
)
from tests.training.byte_tokenizer import ByteTokenizer

CONFIG = GriffinConfig(
    vocab_size=260,
    width=16,
    mlp_width=16,
    num_layers=2,
    num_heads=2,
    block_pattern=("recurrent", "attention"),
    attention_window=8,
)
PARAMS = jax.jit(functools.partial(init_params, CONFIG))(jax.random.key(0))
OPTIONS = {"dtype": "float32", "chunk": 8, "rows": 2}


def test_losses_in_chunks_and_batches_equal_those_of_one_pass():
    rng = np.random.default_rng(0)
    documents = [[2, *rng.integers(4, 260, size)] for size in (3, 30, 17)]
    losses = document_losses(CONFIG, PARAMS, documents, **OPTIONS)
    longest = np.asarray([documents[1]])
    logits, _ = jax.jit(Griffin(CONFIG).apply)({"params": PARAMS}, longest[:, :-1])
    expected = -jnp.take_along_axis(jax.nn.log_softmax(logits[0]), longest[0, 1:, None], axis=-1)[
        :, 0
    ]
    np.testing.assert_allclose(losses[1], expected, rtol=1e-4, atol=1e-4)
    alone = document_losses(CONFIG, PARAMS, [documents[2]], **OPTIONS)[0]
    np.testing.assert_allclose(losses[2], alone, rtol=1e-5, atol=1e-5)
    assert [len(loss) for loss in losses] == [3, 30, 17]


def test_divergences_in_chunks_equal_those_of_one_pass():
    documents = [[2, *np.random.default_rng(0).integers(4, 260, size)] for size in (5, 21)]
    reference = jax.tree.map(lambda x: 1.5 * x, PARAMS)
    found = document_divergences(CONFIG, reference, PARAMS, documents, **OPTIONS)[1]
    tokens = np.asarray([documents[1]])
    apply = jax.jit(Griffin(CONFIG).apply)
    expected, actual = (
        np.float64(jax.nn.log_softmax(apply({"params": params}, tokens[:, :-1])[0][0]))
        for params in (reference, PARAMS)
    )
    loss = -actual[np.arange(21), tokens[0, 1:]]
    divergence = (np.exp(expected) * (expected - actual)).sum(-1)
    assert divergence.min() > 1e-3
    np.testing.assert_allclose(found, np.stack([loss, divergence], -1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("models", [1, 2], ids=["losses", "divergences"])
def test_logits_of_a_whole_chunk_never_exist(models):
    config, rows, chunk = CONFIG.replace(vocab_size=256_000), 8, 1024
    params = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    features = jax.ShapeDtypeStruct((rows, chunk, config.width), jnp.float32)
    targets = jax.ShapeDtypeStruct((rows, chunk), jnp.int32)
    program = evaluate._measure.lower(
        Griffin(config), [params] * models, [features] * models, targets
    ).compile()
    whole = 4 * rows * chunk * config.vocab_size
    # Two arrays of logits of 1,024 rows, of the 8,192 that there are, and little else.
    assert program.memory_analysis().temp_size_in_bytes < models * 1.01 * whole / 4


def test_positions_are_taken_apart_and_put_together_again(monkeypatch):
    monkeypatch.setattr(head_blocks, "HEAD_ROWS", 8)
    sizes = []

    def double(x, y):
        sizes.append(x.shape)
        return 2 * x, y

    x, y = np.arange(66).reshape(3, 11, 2), np.arange(33).reshape(3, 11)
    found = head_blocks.map_positions(double, x, y)
    assert set(sizes) == {(3, 2, 2)}
    np.testing.assert_array_equal(found[0], 2 * x)
    np.testing.assert_array_equal(found[1], y)


def test_a_model_that_knows_nothing_needs_log2_of_the_vocabulary_per_byte():
    nothing = jax.tree.map(jnp.zeros_like, PARAMS)
    figures = bits_per_byte(CONFIG, nothing, ByteTokenizer(), ["plain", "größer"], **OPTIONS)
    np.testing.assert_allclose(figures, np.log2(260), rtol=1e-6)


def test_loss_by_position_averages_pieces_and_refuses_short_texts():
    text = "ab" * 20
    losses = loss_by_position(CONFIG, PARAMS, ByteTokenizer(), [text], [0, 4, 16], **OPTIONS)
    pieces = [[2, *(ord(c) + 4 for c in text[i : i + 16])] for i in (0, 16)]
    mean = np.mean(document_losses(CONFIG, PARAMS, pieces, **OPTIONS), axis=0)
    np.testing.assert_allclose(losses, [mean[:4].mean(), mean[4:].mean()], rtol=1e-6)
    with pytest.raises(ValueError, match="no text has 100 tokens"):
        loss_by_position(CONFIG, PARAMS, ByteTokenizer(), [text], [0, 100], **OPTIONS)


def test_unbounded_attention_with_room_for_everything_equals_one_pass():
    config = CONFIG.replace(block_pattern=("attention",), attention_window=None)
    params = jax.jit(functools.partial(init_params, config))(jax.random.key(1))
    document = [2, *np.random.default_rng(1).integers(4, 260, 20)]
    (loss,) = document_losses(config, params, [document], capacity=24, **OPTIONS)
    logits, _ = jax.jit(Griffin(config).apply)({"params": params}, np.asarray([document[:-1]]))
    expected = -jax.nn.log_softmax(logits[0])[np.arange(20), np.asarray(document[1:])]
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-4)
