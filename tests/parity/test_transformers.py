"""A folder that transformers wrote gives us its logits and its greedy continuation.

Within the window and padded at the right: beyond it, a folder's weights are run with the window of
the authors' code, which is one key longer, unless told otherwise; and transformers' left padding,
chunked prefill and state reuse are known to be wrong.
"""

import numpy as np
import pytest

from griffin_jax.checkpoints import load_checkpoint
from tests.parity import transformers_oracle as oracle
from tests.tiny import forward, greedy, random_tokens, relative_error

pytestmark = pytest.mark.parity

LENGTHS = np.array([32, 17, 4], np.int32)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("recurrence_width", [32, 48])
def test_logits_and_greedy_continuation_are_the_same(tmp_path, seed, recurrence_width):
    model = oracle.write_folder(tmp_path, seed=seed, recurrence_width=recurrence_width)
    loaded = load_checkpoint(tmp_path)
    assert loaded.config.attention_window == oracle.WINDOW

    tokens = random_tokens(loaded.config, (len(LENGTHS), max(LENGTHS)), seed)
    expected = oracle.right_padded_logits(model, tokens, LENGTHS)
    actual, _ = forward(loaded.config)(loaded.params, tokens, lengths=LENGTHS)
    real = np.arange(max(LENGTHS)) < LENGTHS[:, None]
    assert np.ptp(expected) > 1
    assert relative_error(np.asarray(actual)[real], expected[real]) <= 1e-4

    prompt = tokens[0, :4]
    expected = oracle.greedy(model, prompt, 64)
    assert len(set(expected)) > 3
    assert greedy(loaded.config, loaded.params, prompt, 64) == expected.tolist()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_logits_and_greedy_continuation_are_gemmas(tmp_path, seed, kv_heads):
    model = oracle.write_gemma_folder(tmp_path, seed=seed, kv_heads=kv_heads)
    loaded = load_checkpoint(tmp_path)

    tokens = random_tokens(loaded.config, (len(LENGTHS), max(LENGTHS)), seed)
    expected = oracle.right_padded_logits(model, tokens, LENGTHS)
    actual, _ = forward(loaded.config)(loaded.params, tokens, lengths=LENGTHS)
    real = np.arange(max(LENGTHS)) < LENGTHS[:, None]
    assert np.ptp(expected) > 1
    assert relative_error(np.asarray(actual)[real], expected[real]) <= 1e-4

    prompt = tokens[0, :4]
    expected = oracle.greedy(model, prompt, 64)
    assert len(set(expected)) > 3
    actual = greedy(loaded.config, loaded.params, prompt, 64, capacity=80)
    assert actual == expected.tolist()


def test_beyond_the_window_a_full_pass_is_the_same_when_the_window_includes_the_query(tmp_path):
    model = oracle.write_folder(tmp_path, seed=0, recurrence_width=48)
    loaded = load_checkpoint(tmp_path)
    time = 2 * oracle.WINDOW
    tokens = random_tokens(loaded.config, (1, time))
    expected = oracle.right_padded_logits(model, tokens, np.array([time]))
    actual, _ = forward(loaded.config.replace(window_includes_query=True))(loaded.params, tokens)
    assert relative_error(actual, expected) <= 1e-4
