"""Our adapter against the harness's own `hf`, over the same tiny model of transformers.

GRIFFIN_PARITY_QUESTIONS says how many questions of each task are asked; 2 by default, and 0 for all.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.group import Group
from lm_eval.api.instance import Instance

import griffin_jax
from griffin_jax.evaluation.harness import GriffinLM
from griffin_jax.evaluation.local_data import local_tasks
from tests.evaluation import made_up, prompts
from tests.parity import transformers_oracle as oracle

pytestmark = pytest.mark.parity

VOCABULARY = Path(griffin_jax.__file__).parent / "assets" / "griffin-tiny"
QUESTIONS = int(os.environ.get("GRIFFIN_PARITY_QUESTIONS", "2")) or None
MADE_UP = ("griffin_boolq", "griffin_openbookqa", "griffin_bbq_ambig", "griffin_winobias_1_2")
SAMPLES = (
    *(("mmlu_anatomy", "mmlu_professional_law") if QUESTIONS else ("mmlu",)),
    *("hellaswag", "piqa", "social_iqa", "boolq"),
    *("winogrande", "commonsense_qa", "griffin_openbookqa", "arc_easy", "arc_challenge"),
    *("griffin_agieval", "crows_pairs_english", "bbq", "winogender_all", "truthfulqa_mc2"),
    *("griffin_winobias_1_2", "toxigen"),
)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Ours and the harness's own, of one folder."""
    from lm_eval.models.huggingface import HFLM

    folder = tmp_path_factory.mktemp("model")
    oracle.write_folder(folder, seed=0, recurrence_width=32, vocab_size=8192)
    # Texts are longer than the window, which transformers takes to include the query.
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"window_includes_query": True}))
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(VOCABULARY / name, folder)
    theirs = HFLM(
        str(folder),
        device="cpu",
        dtype="float32",
        # It adds up in float32 by default: 2e-4 off for PIQA's choices of 300 tokens.
        softmax_dtype="float64",
        # Left padding of transformers' model changes its texts: one at a time.
        batch_size=1,
        max_length=8192,
    )
    ours = GriffinLM(str(folder), dtype="float32", max_gen_toks=1)
    return ours, theirs


def requests_of(tasks, kind):
    found = []
    for name, item in tasks.items():
        for task in item.get_all_tasks() if isinstance(item, Group) else [item]:
            task.set_config("num_fewshot", 5 if name.startswith("mmlu") else 0)
            task.set_fewshot_seed(1234)
            task.build_all_requests(limit=QUESTIONS)
            found += [one for one in task.instances if one.request_type == kind]
    return found


@pytest.fixture(scope="module")
def choices(tmp_path_factory):
    data = made_up.write(tmp_path_factory.mktemp("data"))
    found = requests_of(local_tasks(MADE_UP, data), "loglikelihood")
    if prompts.BENCHMARKS.is_dir():
        found += requests_of(local_tasks(SAMPLES, prompts.BENCHMARKS), "loglikelihood")
    return found


def test_log_likelihoods_of_choices_are_those_of_hf(adapters, choices):
    ours, theirs = adapters
    # Continuations that are greedy throughout, where the text becomes the same tokens again.
    begins = ("The lamp", "She said nothing", "Once", "It was", "He", "When the", "I", "But")
    greedy = theirs.generate_until(ask(begins, [], max_gen_toks=3))
    pairs = zip(begins, greedy, strict=True)
    asked = [*choices, *(Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs))]
    found = ours.loglikelihood(asked, disable_tqdm=True)
    theirs.batch_size_per_gpu = 16  # padded at the right
    try:
        expected = theirs.loglikelihood(asked, disable_tqdm=True)
    finally:
        theirs.batch_size_per_gpu = 1
    difference = np.abs(np.array([p for p, _ in found]) - [p for p, _ in expected])
    print(f"{len(asked)} choices, largest difference {difference.max():.1e}")
    assert difference.max() <= 1e-4
    assert [bool(g) for _, g in found] == [bool(g) for _, g in expected]
    assert 2 <= sum(g for _, g in found) < len(asked)


def test_greedy_texts_are_those_of_hf(adapters):
    ours, theirs = adapters
    contexts = [
        "The lamp had been lit before the rain came over the hill,",
        "Question: What is a ferry?\nAnswer:",
        "“Is it far?” he asked, and the ferryman shook his head.\nThe river",
        "Q",
    ]
    whole = ours.generate_until(ask(contexts, []), disable_tqdm=True)
    assert whole == theirs.generate_until(ask(contexts, []), disable_tqdm=True)
    assert all(whole)
    stops = [whole[0][10:12], whole[1][7:9], whole[2][3]]
    cut = ours.generate_until(ask(contexts, stops), disable_tqdm=True)
    assert cut == theirs.generate_until(ask(contexts, stops), disable_tqdm=True)
    assert cut != whole


def ask(contexts, until, max_gen_toks=24):
    settings = {"until": until, "do_sample": False, "max_gen_toks": max_gen_toks}
    return [
        Instance("generate_until", {}, (text, dict(settings)), i) for i, text in enumerate(contexts)
    ]


def test_rolling_log_likelihoods_are_those_of_hf_but_for_its_second_bos(adapters):
    ours, theirs = adapters
    text = "The lamp had been lit before the rain came over the hill. " * 3
    asked = [Instance("loglikelihood_rolling", {}, (text,), 0)]
    # The harness puts BOS before the text's own; ours stands where its second one does.
    encode = theirs.tok_encode
    theirs.tok_encode = lambda string, **kwargs: encode(string, add_special_tokens=False)
    try:
        expected = theirs.loglikelihood_rolling(asked, disable_tqdm=True)
    finally:
        theirs.tok_encode = encode
    np.testing.assert_allclose(
        ours.loglikelihood_rolling(asked, disable_tqdm=True), expected, atol=2e-4
    )
