"""Studies at their smallest: every config's, stopped and gone on with, and what is written of them."""

import dataclasses
import functools
import shutil
import signal
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import config_files, schemas
from griffin_jax.fields import check_values
from griffin_jax.models import Griffin, abstract_params, init_params
from griffin_jax.studies import TASKS, Study, carry_out, report, runs, together
from griffin_jax.studies.accuracy import accuracy
from griffin_jax.studies.study import changes_in_words
from griffin_jax.studies.task import draw_batch
from griffin_jax.studies.together import TRAIN, Plan, read_params, train_together
from griffin_jax.training import OptimizerConfig, TrainState, adamw, make_train_step
from griffin_jax.training.train_step import data_mesh
from tests.tiny import GRIFFIN, params_of

NAMES = sorted(path.stem.removeprefix("study_") for path in config_files.CONFIGS.glob("study_*.py"))
KINDS = {
    name: config_files.read(config_files.CONFIGS / f"study_{name}.py")["kind"] for name in NAMES
}
TRAINED = [name for name in NAMES if KINDS[name] == "trained"]


def tiny(name):
    values = config_files.read(config_files.CONFIGS / f"study_{name}.py", "tiny")
    values = check_values(schemas.study(values), values, "config.")
    return Study(**{x: v for x, v in values.items() if x not in ("name", "kind")})


@functools.cache
def carried_out(folder):
    """Two runs of a model of one layer, which are one program and were stopped in their middle."""
    study = tiny("selective_copying")
    small = {"models": {"Hawk": {"block_pattern": ("recurrent",)}}, "seeds": (0, 1)}
    study = dataclasses.replace(study, **small)
    now = [0.0]

    def told(message):
        now[0] += "begins" in message  # and then a second goes by

    with mock.patch.object(runs, "time", types.SimpleNamespace(monotonic=lambda: now[0])):
        stopped = carry_out(study, folder, seconds=1, told=told)
    assert [(x["seed"], x["stopped"], len(x["curve"])) for x in stopped] == [(0, 2, 1), (1, 2, 1)]
    assert (folder / next(study.groups()).folder / "state.npz").exists()
    results = carry_out(study, folder)
    return study, results


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    return folder, *carried_out(folder)


def test_a_study_goes_on_where_it_was_stopped_and_keeps_what_is_done(done):
    folder, study, results = done
    assert [(x["model"], x["seed"]) for x in results] == [("Hawk", 0), ("Hawk", 1)]
    for result in results:
        assert [step for step, _ in result["curve"]] == [2, 4]
        assert result["tests"].keys() == {"as trained"} and result["parameters"] > 1000
    assert carry_out(study, folder, seconds=0) == results  # nothing is done again
    with pytest.raises(
        ValueError, match=r"seed0.json is of a run with other settings; give another"
    ):
        carry_out(dataclasses.replace(study, steps=5), folder)


def test_a_damaged_result_is_named(done, tmp_path):
    folder, study, _ = done
    copied = shutil.copytree(folder, tmp_path / "copy")
    first = next(study.runs()).folder
    for text, message in (("{", "is not JSON"), ("[]", "must hold a JSON object"), ("{}", "other")):
        (copied / f"{first}.json").write_text(text)
        with pytest.raises(ValueError, match=message) as caught:
            carry_out(study, copied)
        assert f"{first}.json" in str(caught.value) and "\n" not in str(caught.value)


def test_what_runs_have_learned_is_kept_in_place_of_their_checkpoint(done):
    folder, study, _ = done
    group = next(study.groups())
    place = folder / group.folder
    assert not (place / "state.npz").exists()
    params = read_params(place, group.runs[0].model())
    like = abstract_params(group.runs[0].model())
    assert jax.tree.map(lambda x: (2, *x.shape), like) == jax.tree.map(lambda x: x.shape, params)
    with pytest.raises(FileNotFoundError, match="the runs are not done"):
        read_params(folder, group.runs[0].model())


def test_runs_that_do_not_fit_the_device_are_one_line(tmp_path, monkeypatch):
    def full(*_, **__):
        raise MemoryError("40 GB are more than 30")

    monkeypatch.setattr("griffin_jax.studies.runs.train_together", full)
    with pytest.raises(ValueError, match=r"do not fit the device .40 GB are more than 30"):
        carry_out(tiny("selective_copying"), tmp_path)


def test_parts_of_a_study_are_all_of_it_and_keep_a_models_seeds_together(tmp_path, monkeypatch):
    variants = {str(i): {} for i in range(5)}
    alone = {"seeds": (0, 1), "together": 1}
    study = dataclasses.replace(tiny("selective_copying"), variants=variants, **alone)
    done = []
    monkeypatch.setattr("griffin_jax.studies.runs._do", lambda group, *_: done.append(group.folder))
    for part in (1, 2, 3):
        carry_out(study, tmp_path, part=(part, 3))
    groups = [x.folder for x in study.groups()]
    by_model = [groups[i : i + 2] for i in range(0, 10, 2)]
    assert done == [x for i in (0, 3, 1, 4, 2) for x in by_model[i]]


def test_what_is_written_has_every_run(done, tmp_path):
    pytest.importorskip("matplotlib")
    _, study, results = done
    more = [
        x | {"tests": {"as trained": x["tests"]["as trained"], "longer": x["tests"]["as trained"]}}
        for x in results
    ]
    stopped = more[0] | {"model": "Griffin", "stopped": 2, "tests": {}}
    found = {"results": [*more, stopped], "total": 6, "command": "python -m this", "device": "d"}
    paths = report.write("some", study, found, tmp_path)
    assert [path.name for path in paths] == ["some-curves.png", "some-answers.png", "some.md"]
    text = (tmp_path / "some.md").read_text(encoding="utf-8")
    assert "2 of 6 runs are done" in text and "python -m this" in text and study.paper in text
    assert text.count("\n| Hawk") == 1 and "1 stopped at 2" in text


@functools.cache
def runs_of_a_model():
    """A model, and parameters of three runs of it."""
    task = TASKS["phonebook"](length=90, letters=4, name=3, number=2)
    model = Griffin(GRIFFIN.replace(vocab_size=task.vocab_size, num_layers=2))
    params = params_of(model.config)
    return task, model, jax.tree.map(lambda x: jnp.stack([x, 2 * x, -x]), params)


@pytest.mark.slow
def test_accuracy_of_rows_in_several_calls_is_that_of_one(monkeypatch):
    task, model, params = runs_of_a_model()
    options = {"rows": 6, "batch_size": 3, "seed": 1}
    one = accuracy(model, params, task, **options)
    monkeypatch.setattr("griffin_jax.studies.accuracy._CHUNK", 45)
    several = accuracy(model, params, task, **options)
    assert len(one) == 3 and one[0].keys() == {"tokens", "rows", "loss"} and one[0] != one[1]
    for x, y in zip(one, several, strict=True):
        np.testing.assert_allclose(list(y.values()), list(x.values()), rtol=1e-4)


@pytest.mark.slow
def test_a_run_among_others_is_the_run_alone_and_that_of_the_training_loop(tmp_path):
    """The same examples and updates, together with another run, alone, and by `make_train_step`."""
    task = TASKS["induction_heads"](vocab_size=8, length=16)
    plan = Plan(
        model=GRIFFIN.replace(vocab_size=8, num_layers=2), task=task, steps=4, batch_size=4, every=2,
        optimizer=OptimizerConfig(warmup_steps=1), dtype="float32", save_every=4, heldout_rows=8,
    )  # fmt: skip
    together = train_together(plan, [3, 4], [1e-2, 3e-3], tmp_path / "together")
    alone = train_together(plan, [4], [3e-3], tmp_path / "alone")
    np.testing.assert_allclose(np.array(together.curve[1])[:, 1:], alone.curve[1], atol=1e-5)

    optimizer = adamw(dataclasses.replace(plan.optimizer, learning_rate=3e-3), plan.steps)
    params = init_params(plan.model, jax.random.key(4))
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    step = make_train_step(Griffin(plan.model), optimizer, data_mesh(jax.devices()[:1]))
    for number in range(4):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(4), TRAIN), number)
        state, _ = step(state, None, draw_batch(task, key, 4))
    trees = together.params, alone.params, state.params
    for both, one, reference in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_allclose(both[1], one[0], atol=1e-5)
        np.testing.assert_allclose(one[0], reference, atol=1e-5)
        assert np.abs(both[0] - both[1]).max() > 0


@pytest.mark.slow
def test_the_gradient_of_a_batch_in_parts_is_that_of_the_batch(tmp_path, monkeypatch):
    plan = Plan(
        model=GRIFFIN.replace(vocab_size=8, num_layers=2),
        task=TASKS["induction_heads"](vocab_size=8, length=16), steps=2, batch_size=4, every=2,
        optimizer=OptimizerConfig(warmup_steps=1), dtype="float32", save_every=4, heldout_rows=8,
    )  # fmt: skip
    assert together.parts_of(plan) == 1  # on a CPU
    whole = train_together(plan, [0, 1], [1e-2, 3e-3], tmp_path / "whole")
    monkeypatch.setattr(together, "platform", lambda: "gpu")
    assert together.parts_of(dataclasses.replace(plan, batch_size=768)) == 6
    assert together.parts_of(plan) == 1  # fewer tokens than a part has
    monkeypatch.setattr(together, "_PART", 32)
    assert together.parts_of(plan) == 2
    parts = train_together(plan, [0, 1], [1e-2, 3e-3], tmp_path / "parts")
    for a, b in zip(*map(jax.tree.leaves, (whole.params, parts.params)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_seeds_one_after_another_share_their_programs(tmp_path, monkeypatch):
    traced = []
    losses = together.token_losses
    monkeypatch.setattr(together, "token_losses", lambda *x: traced.append(x) or losses(*x))
    study = dataclasses.replace(tiny("selective_copying"), seeds=(0, 1, 2), together=1)
    study = dataclasses.replace(study, test_rows=3)  # programs of its own
    counts = []
    results = carry_out(study, tmp_path, told=lambda text: counts.append(len(traced)))
    assert len({x["heldout_loss"] for x in results}) == 3
    assert counts[-1] == counts[2] > 0  # all was traced by the first seed's first measurement


def test_a_signal_to_stop_leaves_a_checkpoint_to_go_on_from(tmp_path):
    study = tiny("selective_copying")
    before = signal.getsignal(signal.SIGTERM)

    def told(text):
        if text.startswith("step 2"):
            signal.raise_signal(signal.SIGTERM)

    (stopped,) = carry_out(study, tmp_path, told=told)
    assert stopped["stopped"] == 2 and signal.getsignal(signal.SIGTERM) is before
    (done,) = carry_out(study, tmp_path)
    assert [step for step, _ in done["curve"]] == [2, 4] and done["curve"][0] == stopped["curve"][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", [x for x in TRAINED if x != "selective_copying"])
def test_every_study_runs_at_its_smallest(name, tmp_path):
    study = tiny(name)
    results = carry_out(study, tmp_path)
    assert len(results) == 1 and np.isfinite(results[0]["heldout_loss"])
    if study.task != "text":
        assert list(results[0]["tests"]) == [changes_in_words(test) for test in study.tests]


@pytest.mark.parametrize("name", NAMES)
def test_a_size_that_a_study_does_not_have_is_not_the_whole_study(name):
    with pytest.raises(
        ValueError, match=r"size 'tinny': there are '' .the whole study. and 'tiny'"
    ):
        config_files.read(config_files.CONFIGS / f"study_{name}.py", "tinny")


@pytest.mark.parametrize("name", TRAINED)
def test_every_study_is_whole_and_says_what_the_paper_says(name):
    values = config_files.read(config_files.CONFIGS / f"study_{name}.py")
    values = check_values(schemas.study(values), values, "config.")
    study = Study(**{x: v for x, v in values.items() if x not in ("name", "kind")})
    assert values["name"] == name and study.paper and study.shorter and len(study.seeds) >= 3
    runs = list(study.runs())
    assert len({run.folder for run in runs}) == len(runs)


def claim(*quantity):
    return {"claims": ({"says": "x", "if": ((quantity, "<", 1.0),)},)}


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
            r"variants\['a'\] has no field 'model'; there are knobs, base, run",
        ),
        ({"variants": {"a": {"run": {"rows": 5}}}}, r"variants\['a'\].run has no field 'rows'"),
        (
            {"variants": {"a": {"run": {"steps": "x"}}}},
            r"variants\['a'\].run.steps must be a whole",
        ),
        ({"variants": {"a": {"run": {"carried": 5}}}}, "carried 5 and carried_steps 0 must both"),
        ({"variants": {"a": {"run": 3}}}, r"variants\['a'\].run must be a dict, got 3"),
        ({"variants": {"a": 3}}, r"variants\['a'\] must be a dict, got 3"),
        ({"models": {"a": 3}}, r"models\['a'\] must be a dict, got 3"),
        ({"models": {3: {}}}, "models has 3 where a name belongs"),
        ({"models": {"a-b": {}, "a_b": {}}}, "2 runs would share the file a_b-.*seed0.json"),
        ({"seeds": (1, 1)}, "2 runs would share the file .*seeds must not come twice"),
        ({"seeds": (-1,)}, r"seeds\[0\] must be a whole number"),
        ({"learning_rates": (1e-3, -1.0)}, r"learning_rates\[1\] must be a number above 0"),
        ({"tests": (3,)}, r"tests\[0\] must be a dict, got 3"),
        ({"claims": (3,)}, r"claims\[0\] must be a dict, got 3"),
        (
            claim("lozz", "Hawk"),
            r"claims\[0\]: .* begins with what it is, which must be one of accu",
        ),
        (claim("loss", "Hark"), r"goes on with a model, which must be one of Griffin, got 'Hark'"),
        (claim("loss"), "goes on with a model, which must be one of Griffin, got None"),
        (claim("loss", "Griffin", "x"), r"must end with nothing more, got \('x',\)"),
        (claim("accuracy", "Griffin"), r"must end with a test, got \(\)"),
        (claim("accuracy", "Griffin", "lenght 5"), "ends with a test, which must be .*as trained"),
        (claim("loss at step", "Griffin", "x"), "ends with a step, which must be a whole number"),
        (
            claim("loss", "Griffin") | {"variants": {"a": {}, "b": {}}},
            "has a variant behind it, which must be one of a, b, got None",
        ),
        ({"optimizer": {"foo": 1}}, "optimizer has no field 'foo'"),
        ({"optimizer": {"weight_decay": "x"}}, "optimizer.weight_decay must be a number"),
        ({"optimizer": {}}, "optimizer.warmup_steps 100 must be less than steps"),
        ({"optimizer": {"learning_rate": 1e-3}}, "takes those in learning_rates"),
    ],
)
def test_a_study_that_cannot_be_is_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        dataclasses.replace(tiny("selective_copying"), **changes)
    assert "\n" not in str(caught.value)
