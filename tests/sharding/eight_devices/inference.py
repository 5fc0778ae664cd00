"""Sampling, scoring and conversations on a mesh."""

import re

import jax
import numpy as np
import pytest

from griffin_jax.inference import Speculation, prefill
from griffin_jax.inference.decode import draw_burst, empty_rows
from griffin_jax.inference.drawing import Needs
from griffin_jax.language_model import LanguageModel
from griffin_jax.sharding import MeshError, jit_on_mesh, mesh_function
from griffin_jax.training.evaluate import document_losses
from tests.sharding.eight_devices.meshes import (
    CONFIG,
    MESHES,
    SOME,
    collectives,
    mesh_called,
    on_mesh,
)
from tests.tiny import params_of

PROMPTS = [[2, 5, 7], [9] * 20, [3], list(range(40)), [1, 2]]
PAIRS = [([2, 3, 4], [5, 6]), (list(range(2, 40)), [7, 8, 9])]
WAYS = {
    "greedy": {},
    "drawn": {"temperature": 1.0, "seed": 3},
    "filtered": {
        "temperature": 0.7,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.01,
        "repetition_penalty": 1.2,
        "seed": 5,
    },
}
ONE = LanguageModel(CONFIG, params_of(CONFIG))


@pytest.fixture(autouse=True, scope="module")
def short_chunks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefill, "CHUNKS", (8,))
        yield


def lm_on(name):
    return LanguageModel(CONFIG, on_mesh(params_of(CONFIG), mesh_called(name)))


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *((name, "greedy") for name in MESHES if name != "sequence 8"),
        *((n, w) for n in SOME[1:] for w in ("drawn", "filtered")),
    ],
)
def test_a_mesh_draws_the_tokens_of_one_device(name, way):
    expected = ONE.sample(PROMPTS, max_new_tokens=12, **WAYS[way])
    found = lm_on(name).sample(PROMPTS, max_new_tokens=12, **WAYS[way])
    assert [s.tokens for s in found] == [s.tokens for s in expected]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SOME)
def test_a_mesh_scores_as_one_device(name):
    found, expected = lm_on(name).score(PAIRS), ONE.score(PAIRS)
    np.testing.assert_allclose(*([p for p, _ in x] for x in (found, expected)), rtol=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_a_mesh_loses_on_documents_what_one_device_does():
    documents = [list(range(2, size)) for size in (40, 7, 25)]
    options = {"dtype": "float32", "chunk": 16, "rows": 3}
    params = on_mesh(params_of(CONFIG), mesh_called("data 2, fsdp 2, model 2"))
    found = document_losses(CONFIG, params, documents, **options)
    expected = document_losses(CONFIG, params_of(CONFIG), documents, **options)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("way", "more"), [("greedy", 0), ("drawn", 1)])
def test_the_sampler_adds_one_gather_of_five_numbers_a_row_and_part(way, more):
    """And drawing adds the largest logit of each row."""
    params = on_mesh(params_of(CONFIG), mesh_called("model 8"))
    model, rows = ONE.model, 4
    program = draw_burst.lower(
        model,
        4,
        Needs(draws=way == "drawn"),
        (),
        params,
        empty_rows(model, params, rows, 64),
        np.ones(rows, bool),
        np.int32(4),
    ).compile()
    layers = 2 * CONFIG.num_layers + 1
    assert collectives(program) == {"all-reduce": layers + more, "all-gather": 1}
    (gathered,) = re.findall(r"= (\S+?)\{\S* all-gather", program.as_text())
    assert gathered == f"f32[8,{rows},5]"


def test_what_is_asked_of_xla_for_one_gpu_is_not_asked_for_several(monkeypatch):
    monkeypatch.setattr(mesh_function, "platform", lambda: "gpu")
    function = jit_on_mesh(lambda x: 2 * x, gpu_options={"no_such_option": "1"})
    assert function.on(mesh_called("model 8"), np.float32(1)) == 2
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        function.on(None, np.float32(1))


def test_a_context_goes_on_and_forks_on_a_mesh():
    runs = []
    for lm in (ONE, lm_on("data 2, fsdp 2, model 2")):
        with lm.engine(slots=4, seconds=None, fill_first=True) as engine:
            begun = [engine.submit(prompt, 5, keep_context=True) for prompt in PROMPTS[:2]]
            engine.run()
            contexts = [begun[i].context() for i in (1, 0, 1)]
            forked = [engine.submit([4 + i], context=context) for i, context in enumerate(contexts)]
            engine.run()
        runs.append([r.result().tokens for r in forked])
    assert runs[0] == runs[1]


class Odd:
    """A grammar that allows odd tokens alone."""

    def allowed(self, tokens):
        return np.arange(CONFIG.vocab_size) % 2 == 1


def test_drafts_and_grammars_give_on_a_mesh_what_they_give_on_one_device():
    runs = []
    for lm in (ONE, lm_on("data 2, model 4")):
        options = {"max_new_tokens": 12, "stop_ids": ()}
        drafts = Speculation(tokens=2, least=1, always=True)
        drafted = lm.sample([[5, 6, 5, 6, 5], *PROMPTS[:2]], speculate=drafts, **options)
        odd = lm.sample(PROMPTS[:2], grammar=Odd(), **options)
        assert all(token % 2 for sample in odd for token in sample.tokens)
        runs.append([sample.tokens for sample in (*drafted, *odd)])
    assert runs[0] == runs[1]
    plain = ONE.sample([[5, 6, 5, 6, 5], *PROMPTS[:2]], **options)
    assert runs[0][:3] == [sample.tokens for sample in plain]


def test_apply_takes_and_gives_what_one_device_does_and_refuses_odd_batches():
    lm = lm_on("data 2, model 4")
    tokens = np.arange(12).reshape(2, 6)
    expected, state = ONE.apply(tokens)
    logits, mesh_state = lm.apply(tokens)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    more, _ = lm.apply([[3], [4]], mesh_state)
    np.testing.assert_allclose(more, ONE.apply([[3], [4]], state)[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(MeshError, match=r"batch of 3 .* the next that does is 4"):
        lm.apply(np.zeros((3, 4), np.int32))
    # Under a caller's own jit the mesh is the caller's to say.
    with jax.set_mesh(lm.mesh):
        again = jax.jit(lambda params, x: LanguageModel(CONFIG, params).apply(x)[0])(
            lm.params, jax.numpy.asarray(tokens)
        )
    np.testing.assert_allclose(again, expected, rtol=1e-4, atol=1e-5)
