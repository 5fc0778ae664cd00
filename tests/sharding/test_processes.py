"""Two and four processes that are one run, over the loopback device."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import griffin_jax
from experiments import processes
from griffin_jax.checkpoints import load_checkpoint
from griffin_jax.language_model import LanguageModel
from griffin_jax.training import train
from griffin_jax.training.run_log import read_metrics
from tests.checkpoints.tiny_model import assert_same_tree
from tests.sharding.worker import config, sample
from tests.tiny import params_of
from tests.training.small_run import MODEL, make_rows

ROOT = Path(__file__).parents[2]
MODEL_ON_DISK = MODEL.replace(num_heads=2)


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(count, module, *flags, **environ):
    """`count` processes of a module, the first of which is the coordinator."""
    port = free_port()
    settings = {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    }
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", module, *flags),
                *(
                    f"--coordinator=127.0.0.1:{port}",
                    f"--num_processes={count}",
                    f"--process_id={i}",
                ),
            ],
            cwd=ROOT,
            env=os.environ | settings | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]


def wait_for_step(run, step, started):
    while not any(line["step"] > step for line in read_metrics(run / "metrics.jsonl")):
        for process in started:
            assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def ends(started):
    """Status, output and last line of errors of each."""
    ended = []
    for process in started:
        out, err = process.communicate(timeout=120)
        ended.append((process.returncode, out, err.replace("\r", "\n").strip().split("\n")[-1]))
    return ended


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A run of two processes of which one is killed, gone on with by four until one is told to stop."""
    folder = tmp_path_factory.mktemp("processes")
    lm = LanguageModel(MODEL_ON_DISK, params_of(MODEL_ON_DISK))
    griffin_jax.save(lm, folder / "model")
    two = start(2, "tests.sharding.worker", FOLDER=str(folder))
    wait_for_step(folder / "run", 23, two)
    two[1].kill()
    two = ends(two)
    saved = [f.name for f in (folder / "run" / "checkpoints").iterdir() if f.name.isdigit()]
    four = start(4, "tests.sharding.worker", FOLDER=str(folder))
    wait_for_step(folder / "run", 43, four)
    four[3].send_signal(signal.SIGTERM)
    return folder, lm, two, saved, ends(four)


def facts(ended):
    return [json.loads(line) for line in ended[1].splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_several_processes_draw_and_score_as_one_and_the_first_alone_prints(story):
    _, lm, two, _, four = story
    expected = sample(lm)
    for ended, count in ((two, 2), (four, 4)):
        found = facts(ended[0])[0]
        assert found["processes"] == count and not found["whole"]
        assert found["tokens"] == expected["tokens"]
        np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-5)
        assert not any(facts(other) for other in ended[1:])


@pytest.mark.slow
def test_what_several_processes_save_loads_anywhere(story):
    folder, lm, *_ = story
    for form in ("orbax", "huggingface"):
        for count in (2, 4):
            assert_same_tree(load_checkpoint(folder / f"{form}-{count}").params, lm.params)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_in_one_clear_line_and_leaves_a_checkpoint(story):
    _, _, two, saved, _ = story
    # The service between processes may end the first one before it can end itself.
    assert two[1][0] == -signal.SIGKILL and two[0][0] in (1, -signal.SIGABRT)
    assert two[0][2].startswith("error: process 0 of 2: another process has ended")
    assert "goes on from its last checkpoint" in two[0][2]
    assert saved == ["20"]


@pytest.mark.slow
def test_one_process_told_to_stop_stops_all_after_the_same_step(story):
    folder, _, _, _, four = story
    assert [ended[0] for ended in four] == [0] * 4, [ended[2] for ended in four]
    step = facts(four[0])[-1]["step"]
    assert 43 < step < 60 and (folder / "run" / "checkpoints" / str(step)).exists()


@pytest.mark.slow
def test_a_run_of_two_then_four_then_one_process_equals_an_undisturbed_one(story, tmp_path):
    folder, *_ = story
    resumed = train(config(), folder / "run", make_rows(), make_rows())
    undisturbed = train(config(), tmp_path, make_rows(), make_rows())
    assert resumed.finished and resumed.step == 60
    norms = [
        [float(np.linalg.norm(x)) for x in jax.tree.leaves(result.params)]
        for result in (resumed, undisturbed)
    ]
    np.testing.assert_allclose(*norms, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(resumed.heldout_loss, undisturbed.heldout_loss, rtol=1e-3)


@pytest.mark.parametrize(
    ("environ", "several"),
    [
        ({}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2", "JAX_PLATFORMS": "cpu"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2", "JAX_PLATFORMS": "cpu"}, True),
    ],
)
def test_what_started_the_processes_is_recognized(environ, several, monkeypatch):
    monkeypatch.setattr(os, "environ", environ)
    assert processes._detected() is several


def test_pathways_without_its_package_is_one_clear_line(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "proxy,cpu")
    with pytest.raises(ImportError, match="JAX_PLATFORMS=proxy is Pathways: pip install pathways"):
        processes.start()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--coordinator=127.0.0.1:1",), "--coordinator goes with --num_processes=N and"),
        (("--num_processes=2",), "--num_processes goes with --coordinator=HOST:PORT"),
        (("--config.mesh.model=3",), "there are 1 devices, mesh model=3 has 3: ask for fewer"),
        (("--config.mesh.model=-1", "--config.mesh.data=5"), "needs a multiple of 5"),
    ],
)
def test_bad_input_ends_in_one_line(flags, message):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.sample", *flags],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert len(done.stderr.splitlines()) == 1
