"""Studies at their smallest: every config's, stopped and gone on with, and what is written of them."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from experiments import config_files, schemas
from griffin_jax.fields import check_values
from griffin_jax.models import Griffin
from griffin_jax.studies import TASKS, Study, carry_out, report
from griffin_jax.studies.accuracy import accuracy
from griffin_jax.studies.study import changes_in_words
from tests.tiny import GRIFFIN, params_of

NAMES = sorted(path.stem.removeprefix("study_") for path in config_files.CONFIGS.glob("study_*.py"))
TRAINED = [name for name in NAMES if name != "memory"]


def tiny(name):
    values = config_files.read(config_files.CONFIGS / f"study_{name}.py", "tiny")
    values = check_values(schemas.study(values), values, "config.")
    return Study(**{x: v for x, v in values.items() if x not in ("name", "kind")})


def unfinished(study, folder):
    return [run for run in study.runs() if not (folder / run.folder / "result.json").exists()]


@functools.cache
def carried_out(folder):
    """Two runs of a model of one layer, the first of which was stopped in its middle."""
    study = tiny("selective_copying")
    small = {"models": {"Hawk": {"block_pattern": ("recurrent",)}}, "seeds": (0, 1)}
    study = dataclasses.replace(study, base=study.base | {"num_layers": 1}, **small)
    assert carry_out(study, folder, seconds=1e-3) == []
    assert (folder / next(study.runs()).folder / "checkpoints" / "1").is_dir()
    results = carry_out(study, folder)
    return study, results


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    return folder, *carried_out(folder)


def test_a_study_goes_on_where_it_was_stopped_and_keeps_what_is_done(done):
    folder, study, results = done
    assert [(x["model"], x["seed"]) for x in results] == [("Hawk", 0), ("Hawk", 1)]
    assert not unfinished(study, folder)
    for result in results:
        assert [step for step, _ in result["curve"]] == [1, 2, 4][-len(result["curve"]) :]
        assert result["tests"].keys() == {"as trained"} and result["parameters"] > 1000
    assert carry_out(study, folder, seconds=0) == results  # nothing is done again
    with pytest.raises(
        ValueError, match=r"result.json is of a run with other settings; give another"
    ):
        carry_out(dataclasses.replace(study, steps=5), folder)


def test_what_is_written_has_every_run(done, tmp_path):
    pytest.importorskip("matplotlib")
    _, study, results = done
    more = [
        x | {"tests": {"as trained": x["tests"]["as trained"], "longer": x["tests"]["as trained"]}}
        for x in results
    ]
    paths = report.write("some", study, more, tmp_path, "python -m this", total=6)
    assert [path.name for path in paths] == [
        "some-curves.png",
        "some-answers.png",
        "some.json",
        "some.md",
    ]
    text = (tmp_path / "some.md").read_text(encoding="utf-8")
    assert "2 of 6 runs are done" in text and "python -m this" in text and study.paper in text
    assert text.count("\n| Hawk") == 1
    assert json.loads((tmp_path / "some.json").read_text(encoding="utf-8"))["results"] == more


def test_the_learning_rate_of_the_lowest_loss_is_kept_and_seeds_are_spread():
    def run(rate, seed, loss):
        curve = [[10, 1.0], [20, loss]]
        tests = {"as trained": {"rows": loss}}
        return {
            "model": "a", "variant": "", "learning_rate": rate, "seed": seed, "parameters": 5,
            "heldout_loss": loss, "curve": curve, "tests": tests,
        }  # fmt: skip

    results = [
        run(1e-3, 0, 0.4),
        run(1e-3, 1, 0.6),
        run(1e-2, 0, 0.2),
        run(1e-2, 1, 0.9),
        run(1, 0, 0.1),
    ]
    ((key, runs),) = report.chosen(results).items()
    assert key == ("a", "") and {x["learning_rate"] for x in runs} == {1e-3}
    assert report.table(results, 0.5).splitlines()[2] == (
        "| a | 5 | 0.001 | 2 | 0.500 (0.400 to 0.600) | 20 / never | 50.0% (40.0% to 60.0%) |"
    )


def test_accuracy_of_rows_in_several_calls_is_that_of_one(monkeypatch):
    task = TASKS["phonebook"](length=90, letters=4, name=3, number=2)
    model = Griffin(GRIFFIN.replace(vocab_size=task.vocab_size))
    params = params_of(model.config)
    options = {"rows": 5, "batch_size": 3, "seed": 1}
    one = accuracy(model, params, task, **options)
    monkeypatch.setattr("griffin_jax.studies.accuracy._CHUNK", 45)
    several = accuracy(model, params, task, **options)
    assert one.keys() == {"tokens", "rows", "loss"}
    np.testing.assert_allclose(list(several.values()), list(one.values()), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [x for x in TRAINED if x != "selective_copying"])
def test_every_study_runs_at_its_smallest(name, tmp_path):
    study = tiny(name)
    results = carry_out(study, tmp_path)
    assert len(results) == 1 and np.isfinite(results[0]["heldout_loss"])
    if study.task != "text":
        assert list(results[0]["tests"]) == [changes_in_words(test) for test in study.tests]


@pytest.mark.parametrize("name", TRAINED)
def test_every_study_is_whole_and_says_what_the_paper_says(name):
    values = config_files.read(config_files.CONFIGS / f"study_{name}.py")
    values = check_values(schemas.study(values), values, "config.")
    study = Study(**{x: v for x, v in values.items() if x not in ("name", "kind")})
    assert values["name"] == name and study.paper and study.shorter and len(study.seeds) >= 3
    runs = list(study.runs())
    assert len({run.folder for run in runs}) == len(runs)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"task": "juggling"}, "task must be one of"),
        ({"knobs": {"lenght": 5}}, "lenght"),
        ({"knobs": {"length": 5}}, "length 5 is shorter than 16 data tokens"),
        ({"tests": ({"pairs": 5},)}, "pairs"),
        ({"models": {}}, "models and variants must name one or more"),
        ({"base": {"depth": 5}}, "unknown fields"),
        (
            {"variants": {"a": {"model": {}}}},
            r"variants\['a'\] has 'model'; it may have knobs and base",
        ),
    ],
)
def test_a_study_that_cannot_be_is_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        dataclasses.replace(tiny("selective_copying"), **changes)
    assert "\n" not in str(caught.value)
