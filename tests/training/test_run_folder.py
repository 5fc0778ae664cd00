"""A run's folder is held by one process, and goes on as the run that it began as."""

import dataclasses
import json
import shutil
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.config import TINY
from griffin_jax.locks import InUseError
from griffin_jax.paths import OutputError
from griffin_jax.training import OptimizerConfig, TrainConfig, Windows, hold_run
from griffin_jax.training.chat import ChatRows, Conversation
from griffin_jax.training.checkpointing import RunCheckpoints
from griffin_jax.training.corpus import Corpus
from griffin_jax.training.run_folder import check_run, describe_run

CONFIG = TrainConfig(
    model=TINY,
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1),
    steps=2,
    batch_size=2,
    seq_len=16,
)


def in_thread(function, *arguments):
    """What a function raises in another thread."""
    found = []

    def call():
        try:
            function(*arguments)
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return found[0] if found else None


def test_one_run_at_a_time_and_what_it_writes_stays(tmp_path):
    first = RunCheckpoints(tmp_path / "run", CONFIG)
    half = tmp_path / "run/checkpoints/4.orbax-checkpoint-tmp"
    half.mkdir()
    error = in_thread(RunCheckpoints, tmp_path / "run", CONFIG)
    assert isinstance(error, InUseError)
    assert str(error).startswith(f"the run {tmp_path}/run is in use by process ")
    assert half.exists()
    first.close()
    assert in_thread(lambda: RunCheckpoints(tmp_path / "run", CONFIG).close()) is None
    assert not half.exists()


def test_a_run_that_cannot_begin_lets_go_of_its_folder(tmp_path):
    describe_run(tmp_path, CONFIG, None)
    other = dataclasses.replace(CONFIG, batch_size=4)
    with pytest.raises(ValueError, match="batch_size = 2, this config says 4"):
        RunCheckpoints(tmp_path, other)
    assert in_thread(lambda: RunCheckpoints(tmp_path, CONFIG).close()) is None


def test_a_folder_in_which_nothing_was_made_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZeroDivisionError), hold_run("runs/a") as folder:
        assert folder == tmp_path / "runs/a"
        assert isinstance(in_thread(hold_run("runs/a").__enter__), InUseError)
        raise ZeroDivisionError
    assert not folder.exists()
    with pytest.raises(OutputError, match=r"a\.txt is a file and no folder"):
        (tmp_path / "a.txt").touch()
        hold_run("a.txt").__enter__()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dropout": 0.1}, r"dropout = 0\.0, this config says 0\.1: resume_with_changes=true"),
        ({"optimizer": 2e-3}, r"optimizer\.learning_rate = 0\.001, this config says 0\.002"),
        ({"z_loss": 1e-4}, r"z_loss = 0\.0, this config says 0\.0001"),
        ({"data": "new"}, r"data = old, this config says new: resume_with_changes=true"),
    ],
)
def test_a_run_goes_on_with_changes_only_if_they_are_meant(tmp_path, capsys, change, message):
    describe_run(tmp_path, CONFIG, "old")
    fields = {name: value for name, value in change.items() if name != "data"}
    if "optimizer" in fields:
        fields["optimizer"] = dataclasses.replace(CONFIG.optimizer, learning_rate=2e-3)
    config, data = dataclasses.replace(CONFIG, **fields), change.get("data", "old")
    before = (tmp_path / "run.json").read_text()
    with pytest.raises(ValueError, match=message):
        check_run(tmp_path, config, data)
    assert (tmp_path / "run.json").read_text() == before and capsys.readouterr().err == ""
    config = dataclasses.replace(config, resume_with_changes=True)
    check_run(tmp_path, config, data)
    assert " so far, and is " in capsys.readouterr().err
    describe_run(tmp_path, config, data)
    check_run(tmp_path, dataclasses.replace(config, resume_with_changes=False), data)


def test_more_steps_are_said_and_what_changes_no_result_is_not(tmp_path, capsys):
    describe_run(tmp_path, CONFIG, "old")
    check_run(tmp_path, dataclasses.replace(CONFIG, remat="block", log_every=1), None)
    assert capsys.readouterr().err == ""
    check_run(tmp_path, dataclasses.replace(CONFIG, steps=5), "old")
    assert capsys.readouterr().err == "[steps was 2 so far, and is 5]\n"


def test_a_run_of_an_earlier_version_goes_on_and_a_damaged_one_is_named(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(CONFIG.identity()))
    check_run(tmp_path, CONFIG, "data")
    for text in ('{"model": ', "[]"):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(ValueError, match=r"run\.json (is not JSON|must hold a JSON object)"):
            check_run(tmp_path, CONFIG, "data")


def test_data_are_told_apart_by_their_tokens_alone():
    def windows(tokens, dtype=np.uint16, name="a"):
        return Windows(Corpus(name, np.asarray(tokens, dtype), bos_id=2), seq_len=16)

    tokens = np.arange(100_000) % 300
    changed = tokens.copy()
    changed[50_000:60_000] = 7
    found = {windows(each).fingerprint() for each in (tokens, tokens[:-1], changed)}
    assert len(found) == 3
    assert windows(tokens, np.uint32, "b").fingerprint() in found

    def rows(tokens, learned):
        return ChatRows([Conversation(tokens, learned, 1)], 16, 0, "a")

    chats = [rows([2, 5, 6], [False, True, True]), rows([2, 5, 7], [False, True, True])]
    chats.append(rows([2, 5, 6], [False, False, True]))
    assert len({chat.fingerprint() for chat in chats}) == 3


def test_a_disk_without_room_for_a_checkpoint_is_told_in_time(tmp_path, monkeypatch):
    checkpoints = RunCheckpoints(tmp_path, CONFIG)
    state = {"a": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)}
    checkpoints.check_room(state)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=3_000_000))
    with pytest.raises(
        OutputError, match=r"checkpoints cannot .*takes 4\.0 MB, and the disk has 3\.0 left"
    ):
        checkpoints.check_room(state)
    checkpoints.close()
