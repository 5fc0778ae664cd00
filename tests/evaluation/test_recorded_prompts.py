"""The prompts of every row with samples are the recorded ones, so a change of the harness is seen."""

import json

import pytest

from tests.evaluation import prompts

RECORD = json.loads(prompts.RECORDED.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return prompts.load(tmp_path_factory.mktemp("generations"))


def test_every_task_of_every_row_is_recorded():
    assert set(RECORD["tasks"]) == set(prompts.SHOTS)
    assert RECORD["questions"] == prompts.QUESTIONS


@prompts.needs_samples
@pytest.mark.parametrize("name", prompts.SHOTS)
def test_prompts_are_the_recorded_ones(tasks, name):
    recorded = {key: RECORD["tasks"][name][key] for key in ("requests", "sha256")}
    assert prompts.digest(name, tasks[name]) == recorded, (
        f"recorded with lm-eval {RECORD['lm_eval']}; see tests/evaluation/prompts.py"
    )


@prompts.needs_samples
def test_our_prompts_differ_from_the_stock_ones_only_where_they_should(tasks):
    """Stock and own: the same questions in the same order."""

    def contexts(name):
        task = tasks[name]
        task.set_config("num_fewshot", 0)
        task.build_all_requests(limit=5)
        return [instance.args[0] for instance in task.instances]

    assert contexts("griffin_nq_open") == contexts("nq_open")
    assert contexts("griffin_social_iqa") == contexts("social_iqa")
    stock = [text.replace("?\nAnswer:", "\nAnswer:") for text in contexts("triviaqa")]
    assert contexts("griffin_triviaqa") == stock
    assert contexts("griffin_boolq")[::4] == contexts("boolq")[::2]
    stock = [text.removesuffix(" the") for text in contexts("winogender_all")]
    assert contexts("griffin_winogender") == stock
