"""Places of a trace equal what transformers puts out of the same weights under its output flags."""

import numpy as np
import pytest

from griffin_jax.checkpoints import load_checkpoint
from griffin_jax.language_model import LanguageModel
from tests.parity import transformers_oracle as oracle
from tests.tiny import random_tokens, relative_error

pytestmark = pytest.mark.parity

WRITERS = {
    "recurrent gemma": lambda folder: oracle.write_folder(folder, seed=0, recurrence_width=48),
    "gemma": lambda folder: oracle.write_gemma_folder(folder, seed=0, kv_heads=2),
}


@pytest.mark.parametrize("name", WRITERS)
def test_residual_streams_and_attention_weights_are_those_of_transformers(tmp_path, name):
    model = WRITERS[name](tmp_path)
    loaded = load_checkpoint(tmp_path)
    tokens = random_tokens(loaded.config, (2, 24))
    expected = oracle.outputs(model, tokens)
    trace = LanguageModel(loaded.config, loaded.params).trace(
        tokens, ("*.resid_*", "*.attention.weights", "final_norm", "*.logits")
    )
    layers = loaded.config.num_layers
    assert len(expected.hidden_states) == layers + 1
    for i, residual in enumerate(expected.hidden_states[:-1]):
        assert relative_error(trace[f"blocks.{i}.resid_pre"], residual) <= 1e-4
    for i, residual in enumerate(expected.hidden_states[1:-1]):
        assert relative_error(trace[f"blocks.{i}.resid_post"], residual) <= 1e-4
    assert relative_error(trace["final_norm"], expected.hidden_states[-1]) <= 1e-4
    assert relative_error(trace[f"blocks.{layers - 1}.logits"], expected.logits) <= 1e-4
    weights = trace.layers("*.attention.weights").values()
    assert len(weights) == len(expected.attentions) > 0
    for ours, theirs in zip(weights, expected.attentions, strict=True):
        assert np.ptp(theirs) > 0.1
        assert relative_error(ours, theirs) <= 1e-4
