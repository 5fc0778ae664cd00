"""The harness's adapter on a mesh."""

import numpy as np
import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from griffin_jax.evaluation.harness import GriffinLM
from griffin_jax.inference import prefill
from griffin_jax.language_model import LanguageModel
from tests.inference.tiny_model import ByteTokenizer
from tests.sharding.eight_devices.meshes import CONFIG, SOME, mesh_called, on_mesh
from tests.tiny import params_of

BYTES = CONFIG.replace(vocab_size=264)
EXAMPLES = "What is a lamp? A light.\n" * 4
PAIRS = [
    (EXAMPLES + question, choice)
    for question in ("What is a spoon?", "What is the sea, and what is in it?")
    for choice in (" A", " B", " a long answer")
]
PROMPTS = [(EXAMPLES + "And?", {"until": ["\n"], "max_gen_toks": 4}), ("x", {"until": []})]


def answers(params):
    lm = GriffinLM(lm=LanguageModel(BYTES, params, ByteTokenizer()), batch_size=4, max_gen_toks=4)
    choices = lm.loglikelihood(asked("loglikelihood", PAIRS), disable_tqdm=True)
    return choices, lm.generate_until(asked("generate_until", PROMPTS), disable_tqdm=True)


def asked(kind, arguments):
    return [Instance(kind, {}, one, i) for i, one in enumerate(arguments)]


@pytest.fixture(scope="module")
def on_one_device():
    return answers(params_of(BYTES))


@pytest.mark.parametrize("name", SOME[:2])
def test_a_mesh_answers_as_one_device(name, on_one_device, monkeypatch):
    monkeypatch.setattr(prefill, "CHUNKS", (8, 32))
    choices, texts = answers(on_mesh(params_of(BYTES), mesh_called(name), BYTES))
    expected, expected_texts = on_one_device
    np.testing.assert_allclose([p for p, _ in choices], [p for p, _ in expected], rtol=1e-5)
    assert [greedy for _, greedy in choices] == [greedy for _, greedy in expected]
    assert texts == expected_texts
