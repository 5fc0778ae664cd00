"""Our logits are those of the authors' `recurrentgemma`, in prefill and in decoding."""

import numpy as np
import pytest

from tests.parity import recurrentgemma_oracle as oracle
from tests.parity.cases import CONFIGS, TIME, WINDOW, packed_positions
from tests.tiny import GRIFFIN, forward, params_of, random_tokens, relative_error

pytestmark = pytest.mark.parity

BOUND = 1e-4
every = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
seeds = pytest.mark.parametrize("seed", [0, 1, 2])


@every
@seeds
def test_prefill_of_three_windows_with_packed_documents(config, seed):
    params, tokens = params_of(config, seed), random_tokens(config, (3, TIME), seed)
    expected, _ = oracle.prefill(config, oracle.tree_of(params, config), tokens, packed_positions())
    actual, _ = forward(config)(params, tokens, positions=packed_positions())
    assert np.ptp(expected) > 1
    assert relative_error(actual, expected) <= BOUND


@every
@seeds
@pytest.mark.parametrize("prompt", [1, 5, 2 * WINDOW + 1])
def test_decoding_up_to_three_windows_after_a_prompt(config, seed, prompt):
    params, tokens = params_of(config, seed), random_tokens(config, (2, TIME), seed)
    tree, positions = oracle.tree_of(params, config), np.tile(np.arange(TIME), (2, 1))
    before, after = np.s_[:, :prompt], np.s_[:, prompt:]
    _, cache = oracle.prefill(config, tree, tokens[before], positions[before])
    expected = oracle.decode(config, tree, tokens[after], positions[after], cache)

    _, state = forward(config)(params, tokens[before])
    actual = []
    for t in range(prompt, TIME):
        logits, state = forward(config)(params, tokens[:, t : t + 1], state)
        actual.append(logits)
    assert relative_error(np.concatenate(actual, axis=1), expected) <= BOUND


@seeds
def test_decoding_goes_on_with_the_last_of_the_packed_documents(seed):
    """That document has three tokens by then: its convolution in decoding knows no documents."""
    prompt = 17
    params, tokens = params_of(GRIFFIN, seed), random_tokens(GRIFFIN, (3, TIME), seed)
    tree, positions = oracle.tree_of(params, GRIFFIN), packed_positions()
    assert list(positions[:, prompt]) == [17, 8, 3]
    before, after = np.s_[:, :prompt], np.s_[:, prompt:]
    _, cache = oracle.prefill(GRIFFIN, tree, tokens[before], positions[before])
    expected = oracle.decode(GRIFFIN, tree, tokens[after], positions[after], cache)
    _, state = forward(GRIFFIN)(params, tokens[before], positions=positions[before])
    actual, _ = forward(GRIFFIN)(params, tokens[after], state)
    assert relative_error(actual, expected) <= BOUND
