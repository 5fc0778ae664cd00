"""The evaluate and tables commands, as a user calls them, on a tiny random model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import griffin_jax
from configs import eval_quality, eval_safety
from griffin_jax.checkpoints import BUNDLED, find_folder, save_checkpoint
from griffin_jax.tokenizer import load_tokenizer
from tests.checkpoints.tiny_model import random_params
from tests.evaluation import made_up
from tests.evaluation.prompts import BENCHMARKS, needs_samples

ROOT = Path(__file__).parents[2]
# Their files are not among the samples, or they run programs outside of the sandbox.
LEFT_OUT = {"minerva_math", "agieval_en", "humaneval", "mbpp"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a tiny model with griffin-tiny's tokenizer lies in model/ and questions in data/."""
    folder = tmp_path_factory.mktemp("evaluate")
    tokenizer = load_tokenizer(find_folder(BUNDLED))
    config = griffin_jax.preset("tiny").replace(vocab_size=tokenizer.vocab_size, num_layers=1)
    save_checkpoint(folder / "model", config, random_params(config), tokenizer=tokenizer)
    made_up.write(folder / "data")
    return folder


def call(name, *flags, **environment):
    environment = os.environ | environment
    environment.pop("PERSPECTIVE_API_KEY", None)
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *flags],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def evaluate(folder, *flags, config="eval_quality", output="out", data="data"):
    return call(
        "evaluate",
        f"--config=configs/{config}.py",
        f"--config.model={folder / 'model'}",
        f"--config.data_dir={folder / data}",
        f"--output={folder / output}",
        "--config.gen_toks_cap=4",
        *flags,
    )


def results(done, folder, suite="quality", output="out", name="model"):
    assert done.returncode == 0, done.stderr
    return json.loads((folder / output / f"{suite}-{name}.json").read_text(encoding="utf-8"))


def error_of(done):
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@needs_samples
@pytest.mark.parametrize(
    "suite, module",
    [
        pytest.param("quality", eval_quality, marks=pytest.mark.slow),
        ("safety", eval_safety),
    ],
)
def test_every_row_with_samples_runs_offline(folder, suite, module):
    done = evaluate(
        folder,
        f"--config.data_dir={BENCHMARKS}",
        "--config.limit=1",
        "--config.run_generated_code=true",
        "--config.toxicity_scorer=none",
        config=f"eval_{suite}",
        output="all",
    )
    found = results(done, folder, suite, "all")
    assert [row["benchmark"] for row in found["rows"]] == [row.benchmark for row in module.ROWS]
    measures = [measure for row in found["rows"] for measure in row["measures"]]
    judged_elsewhere = {"griffin_realtoxicityprompts", "griffin_toxigen"}
    for measure in measures:
        absent = measure["task"] in LEFT_OUT | judged_elsewhere
        assert (measure["value"] is None) == absent, measure
        assert (measure["reason"] is None) != absent
    texts = folder / "all" / f"{suite}-model-texts"
    assert suite == "quality" or {path.stem for path in texts.iterdir()} >= judged_elsewhere
    assert sum(run["questions"] for run in found["runs"]) >= len(found["runs"])


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_tables_put_runs_side_by_side(folder):
    flags = (
        "--config.tasks=boolq,griffin_boolq,OpenBookQA,griffin_nq_open",
        "--config.generation_limit=1",
    )
    first = evaluate(folder, *flags, "--config.log_samples=true")
    found = results(first, folder)
    assert found["kind"] == "evaluation"
    assert (found["lm_eval"], found["seeds"]["examples"]) == ("0.4.13", 1234)
    assert len(found["fingerprint"]) == 64
    assert found["quantization"] is None
    limits = {run["task"]: run["limit"] for run in found["runs"]}
    assert {task for task, limit in limits.items() if limit == 1} == {"griffin_nq_open"}
    assert [run["questions"] for run in found["runs"] if run["task"] == "griffin_nq_open"] == [1]
    again = evaluate(folder, *flags)
    repeated = results(again, folder)
    assert repeated["rows"] == found["rows"]
    assert all(run["tokens"] > 0 for run in found["runs"])
    assert all(run["tokens"] == 0 for run in repeated["runs"])  # all answers were kept
    assert [run["requests_answered_before"] for run in repeated["runs"]] == [
        run["requests"] for run in found["runs"]
    ]
    assert found["runs"][0]["requests_answered_before"] == 0
    assert [run["requests_sha256"] for run in repeated["runs"]] == [
        run["requests_sha256"] for run in found["runs"]
    ]
    samples = folder / "out" / "quality-model-samples" / "griffin_boolq.jsonl"
    assert {"doc", "arguments", "resps"} <= json.loads(samples.read_text().splitlines()[0]).keys()

    packed = evaluate(
        folder,
        *("--config.tasks=griffin_boolq", "--config.quantization=nf4", "--config.max_length=16"),
    )
    found = results(packed, folder, name="model-nf4")
    assert found["quantization"]["bnb_4bit_quant_type"] == "nf4"
    (run,) = found["runs"]
    cut = f"{run['prompts_cut']} of {run['requests']} prompts"
    assert f"griffin_boolq: {cut} are longer than max_length 16 and lose up to" in packed.stderr
    done = call("tables", f"--results={folder / 'out'}", f"--output={folder / 'tables'}")
    assert done.returncode == 0, done.stderr
    page = (folder / "tables" / "quality.md").read_text(encoding="utf-8")
    assert page in done.stdout
    (line,) = [line for line in page.splitlines() if "griffin_boolq" in line and "|" in line]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[0] == "BoolQ" and cells[3] == "80.3"
    assert f"griffin_boolq: {cut} lost up to {run['tokens_cut_at_most']} tokens" in page
    for value, difference in (cells[4:6], cells[6:8]):
        assert float(value.split("±")[0]) - 80.3 == pytest.approx(float(difference), abs=0.11)
    assert (folder / "tables" / "quality.png").stat().st_size > 10_000


@pytest.mark.slow
def test_bad_input_is_one_line_before_the_model_is_loaded(folder):
    def error(*flags, **options):
        return error_of(evaluate(folder, *flags, **options))

    message = error("--config.tasks=hellaswagg")
    assert "no task 'hellaswagg' in this config (did you mean hellaswag?); there are mm" in message
    broken = made_up.write(folder / "broken")
    rows = (broken / "boolq" / "validation.jsonl").read_text().splitlines()
    rows[1] = json.dumps({k: v for k, v in json.loads(rows[1]).items() if k != "passage"})
    (broken / "boolq" / "validation.jsonl").write_text("\n".join(rows))
    message = error("--config.tasks=boolq", data="broken")
    assert "boolq/validation.jsonl, line 2" in message and "passage" in message
    assert "--config.run_generated_code=true" in error("--config.tasks=griffin_humaneval")
    message = error("--config.tasks=griffin_toxigen", config="eval_safety")
    assert "PERSPECTIVE_API_KEY is not set" in message
    assert "hellaswag/validation.jsonl: no such file" in error("--config.tasks=hellaswag")
    mesh = "--config.mesh.model=64"
    assert "devices, mesh model=64 has 64" in error("--config.tasks=hellaswag", mesh)
    assert "config.limit must be a whole number of at least 1, or None, got 0" in error(
        "--config.tasks=boolq", "--config.limit=0"
    )
    (folder / "bare").mkdir()
    assert "has no tokenizer" in error(f"--config.model={folder / 'bare'}")
    assert not (folder / "out" / "quality-bare.json").exists()


def test_tables_of_what_is_no_result_are_refused(folder):
    (folder / "other.json").write_text('{"kind": "music"}')
    message = error_of(call("tables", f"--results={folder / 'other.json'}"))
    assert "its kind is 'music', not evaluation" in message
    assert "no such file or folder" in error_of(call("tables", "--results=nowhere"))


@pytest.mark.slow
def test_the_harnesss_own_command_knows_the_model(folder):
    (folder / "yaml").mkdir()
    (folder / "yaml" / "salt.yaml").write_text(
        "task: salt\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {folder}/data/boolq/validation.jsonl}}}}\n"
        "test_split: test\n"
        "output_type: multiple_choice\n"
        "doc_to_text: '{{passage}} {{question}}?'\n"
        "doc_to_choice: ['no', 'yes']\n"
        "doc_to_target: label\n"
        "metric_list: [{metric: acc}]\n"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "griffin_jax.evaluation", "run", "--model", "griffin_jax"),
            *("--model_args", f"checkpoint={folder / 'model'}", "--tasks", "salt"),
            *("--include_path", str(folder / "yaml"), "--output_path", str(folder / "salt")),
        ],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "arrow")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "salt").rglob("results_*.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    assert 0 <= found["results"]["salt"]["acc,none"] <= 1
    assert found["config"]["model"] == "griffin_jax"
