"""Recorded answers of transformers and recurrentgemma; `record.py` says how they came about."""

import json
from pathlib import Path

import flax.traverse_util
import numpy as np
import orbax.checkpoint as ocp
import pytest

from griffin_jax.checkpoints import load_checkpoint
from griffin_jax.config import GriffinConfig
from tests.tiny import forward, greedy, relative_error

FOLDER = Path(__file__).parent
BOUND = 1e-4


@pytest.mark.parametrize(
    "name",
    [
        "transformers_32",
        pytest.param("transformers_48", marks=pytest.mark.slow),
        "transformers_gemma_1",
        pytest.param("transformers_gemma_4", marks=pytest.mark.slow),
    ],
)
def test_a_folder_of_transformers_gives_its_logits_and_its_greedy_continuation(name):
    loaded = load_checkpoint(FOLDER / name)
    expected = np.load(FOLDER / name / "expected.npz")
    tokens, lengths = expected["tokens"], expected["lengths"]
    logits, _ = forward(loaded.config)(loaded.params, tokens, lengths=lengths)
    real = np.arange(tokens.shape[1]) < lengths[:, None]
    assert relative_error(np.asarray(logits)[real], expected["logits"][real]) <= BOUND
    continuation = greedy(loaded.config, loaded.params, tokens[0, :4], 64, capacity=68)
    assert continuation == expected["continuation"].tolist()


@pytest.fixture(params=["recurrence_wider_0", "recurrence_wider_1", "recurrence_narrower_0"])
def golden(request, tmp_path):
    """Arrays, config and parameters; the latter by way of a published checkpoint's format."""
    arrays = dict(np.load(FOLDER / f"recurrentgemma_{request.param}.npz"))
    config = GriffinConfig.from_dict(json.loads(str(arrays["config"])))
    tree = {k.removeprefix("tree/"): v for k, v in arrays.items() if k.startswith("tree/")}
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).save(
        tmp_path / "model",
        ocp.args.PyTreeSave(flax.traverse_util.unflatten_dict(tree, sep="/")),
    )
    loaded = load_checkpoint(tmp_path / "model")
    # What the shapes of a tree cannot tell.
    told = loaded.config.replace(
        attention_window=config.attention_window, scale_embeddings=config.scale_embeddings
    )
    assert told.block_types == config.block_types
    assert told.replace(block_pattern=config.block_pattern) == config
    return arrays, config, loaded.params


def test_prefill_of_three_windows_of_packed_documents_is_recurrentgemmas(golden):
    arrays, config, params = golden
    logits, _ = forward(config)(params, arrays["tokens"], positions=arrays["positions"])
    assert relative_error(logits, arrays["prefill"]) <= BOUND


def test_decoding_up_to_three_windows_is_recurrentgemmas(golden):
    arrays, config, params = golden
    text, prompt = arrays["tokens"][1:2], int(arrays["prompt"])
    assert text.shape[1] >= 3 * config.attention_window
    _, state = forward(config)(params, text[:, :prompt])
    decoded = []
    for t in range(prompt, text.shape[1]):
        logits, state = forward(config)(params, text[:, t : t + 1], state)
        decoded.append(logits)
    assert relative_error(np.concatenate(decoded, axis=1), arrays["decoded"]) <= BOUND
