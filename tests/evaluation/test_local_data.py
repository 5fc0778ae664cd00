"""A folder of JSON lines in place of the Hub: what it gives, and what is said of a broken one."""

import json
import socket

import datasets
import pytest
from lm_eval.api.group import Group

from configs import eval_quality
from griffin_jax.evaluation import local_sources, run, suites
from griffin_jax.evaluation.local_data import (
    LocalDataError,
    MissingDataError,
    card_task_manager,
    local_tasks,
)
from tests.evaluation import made_up

NAMES = ("griffin_nq_open", "griffin_bbh", "griffin_social_iqa")


@pytest.fixture
def data_dir(tmp_path):
    return made_up.write(tmp_path)


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def error_of(names, folder, kind=LocalDataError, **options):
    with pytest.raises(kind) as caught:
        local_tasks(names, folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tasks_come_in_the_order_asked_for_and_no_connection_is_opened(data_dir, monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a socket was opened"))
    before = datasets.load_dataset
    loaded = local_tasks(NAMES, data_dir)
    assert tuple(loaded) == NAMES
    assert isinstance(loaded["griffin_bbh"], Group)
    assert len(loaded["griffin_bbh"].get_all_tasks()) == 27
    assert datasets.load_dataset is before


def test_stock_and_own_tasks_read_the_same_files(data_dir):
    loaded = local_tasks(["social_iqa", "griffin_social_iqa", "boolq"], data_dir)
    stock, own = loaded["social_iqa"], loaded["griffin_social_iqa"]
    assert list(stock.eval_docs) == list(own.eval_docs)
    assert stock.config.metadata["version"] == 0.0
    assert stock.dataset["train"].num_rows == 0  # no such file, and no example is asked for


def test_limit_keeps_rows_of_questions_and_all_examples(data_dir):
    task = local_tasks(["griffin_nq_open"], data_dir, limit=1)["griffin_nq_open"]
    assert len(task.eval_docs) == 1
    assert len(task.sampler.df) == 5


def test_options_reach_the_tasks(data_dir, tmp_path):
    options = {"toxicity_scorer": "none", "generations_dir": str(tmp_path / "written")}
    task = local_tasks(["griffin_toxigen"], data_dir, metadata=options)["griffin_toxigen"]
    assert task.scorer is None
    assert task.file == tmp_path / "written" / "griffin_toxigen.jsonl"


def test_a_subset_that_may_be_missing_is_left_out_with_a_word(data_dir, caplog):
    group = local_tasks(["griffin_agieval"], data_dir)["griffin_agieval"]
    assert len(group.get_all_tasks()) == 7
    assert "left out" in caplog.text and "griffin_agieval_logiqa_en" in caplog.text
    made_up.write(data_dir, {"agieval/logiqa-en/test": made_up.ROWS["agieval/lsat-ar/test"]})
    group = local_tasks(["griffin_agieval"], data_dir)["griffin_agieval"]
    assert len(group.get_all_tasks()) == 8


def test_a_missing_field_is_told_by_file_line_and_field(data_dir):
    rows = made_up.ROWS["social_iqa/validation"]
    broken = {key: value for key, value in rows[1].items() if key != "answerB"}
    path = write(data_dir / "social_iqa" / "validation.jsonl", rows[0], "", broken)
    assert error_of(NAMES, data_dir) == f"{path}, line 3: field 'answerB' is missing"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"question": "a", "answer": "b"}, "field 'answer' is a string, not a list"),
        (
            {"question": "a", "answer": ["b", 3]},
            "field 'answer[1]' is a whole number, not a string",
        ),
        ({"question": None, "answer": ["b"]}, "field 'question' is null, not a string"),
        ("[1, 2]", "no object"),
        ("{'question'}", "not JSON: Expecting property name enclosed in double quotes"),
    ],
)
def test_a_wrong_row_is_told(data_dir, row, problem):
    path = write(data_dir / "nq_open" / "validation.jsonl", row)
    assert error_of(["griffin_nq_open"], data_dir) == f"{path}, line 1: {problem}"


def test_a_row_beyond_the_limit_and_an_example_are_checked_too(data_dir):
    good = made_up.ROWS["nq_open/train"]
    path = write(data_dir / "nq_open" / "train.jsonl", *good, {"question": "a"})
    message = error_of(["griffin_nq_open"], data_dir, limit=1)
    assert message == f"{path}, line 6: field 'answer' is missing"


def test_values_that_a_task_has_no_use_for_are_told_before_anything_runs(data_dir):
    def error(name):
        with pytest.raises(ValueError) as caught:
            run.prepare(suites.select(eval_quality.ROWS, name), run.Options(data_dir=str(data_dir)))
        return str(caught.value)

    rows = made_up.ROWS["boolq/validation"]
    write(data_dir / "boolq" / "validation.jsonl", rows[0], rows[1] | {"label": 7})
    expected = "boolq, question 2 of its file: the right choice is 7, which is none of its 2"
    assert error("boolq") == expected
    row = {"sentence": "The _ is lit.", "option1": "lamp", "option2": "hill", "answer": "1"}
    write(data_dir / "winogrande" / "validation.jsonl", row, row | {"answer": ""})
    assert "winogrande, question 2 of its file: no prompt can be built" in error("winogrande")


def test_inner_fields_are_named_by_their_path(data_dir):
    row = {"question": "a", "answer": {"value": "b"}}
    path = write(data_dir / "triviaqa" / "validation.jsonl", row)
    message = error_of(["griffin_triviaqa"], data_dir)
    assert message == f"{path}, line 1: field 'answer.aliases' is missing"


def test_missing_files_and_folders_are_told(data_dir):
    gone = data_dir / "bbh" / "snarks" / "test.jsonl"
    gone.unlink()
    expected = f"{gone}: no such file; it stands for the data set SaylorTwift/bbh"
    assert error_of(["griffin_bbh"], data_dir, MissingDataError) == expected
    write(gone)
    assert error_of(["griffin_bbh"], data_dir) == f"{gone}: no rows"
    assert error_of(NAMES, data_dir / "no") == f"data_dir {data_dir / 'no'}: no such folder"
    gone.write_bytes(b'{"input": "\xff", "target": "x"}\n')
    assert error_of(["griffin_bbh"], data_dir).startswith(f"{gone}: not UTF-8")


def test_too_few_examples_are_told(data_dir):
    pool = data_dir / "nq_open" / "train.jsonl"
    message = error_of(["nq_open"], data_dir, num_fewshot=6)
    assert message == f"{pool}: has 5 of them, and nq_open with 6 examples needs 7 rows"
    pool.unlink()
    assert "is missing, and griffin_nq_open with 5 examples" in error_of(NAMES, data_dir)
    assert "social_iqa/train.jsonl: is missing" in error_of(
        ["social_iqa"], data_dir, num_fewshot={"social_iqa": 3}
    )
    local_tasks(["nq_open"], data_dir)  # which shows none by itself


def test_unknown_tasks_and_those_that_need_the_network_are_told(data_dir):
    assert error_of(["hellaswagg"], data_dir) == "task 'hellaswagg' is unknown"
    message = error_of(["humaneval"], data_dir, MissingDataError)
    assert message.startswith("task 'humaneval' needs the metric code_eval from the Hub")
    assert message.endswith("griffin_humaneval can")


def test_every_data_set_of_the_card_has_local_files():
    manager = card_task_manager()
    for name in ("mmlu_anatomy", "hellaswag", "winogrande", "gsm8k", "truthfulqa_mc2", "bbq"):
        config = manager.task_index[name].cfg
        assert local_sources.source_of(config["dataset_path"], config.get("dataset_name")), name
    for name in manager.all_subtasks:
        config = manager.task_index[name].cfg
        if name.startswith("griffin_") and "winobias" not in name:
            assert local_sources.source_of(config["dataset_path"], config.get("dataset_name")), name
