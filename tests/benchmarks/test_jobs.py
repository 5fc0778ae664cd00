"""Every kind of benchmark on tiny shapes, and what cannot be measured."""

import importlib
import json

import jax
import pytest

from griffin_jax.benchmarks import decode, isolation, machine, memory, report, run, stacks, tasks
from griffin_jax.benchmarks.machine import Limits
from griffin_jax.benchmarks.results import line
from griffin_jax.benchmarks.stacks.griffin import GriffinStack
from griffin_jax.benchmarks.subject import Subject
from griffin_jax.inference.pool import Pool

LIMITS = Limits(bytes_per_second=1e9, flops_per_second=1e9, float32_flops_per_second=1e9)
SHAPES = {
    "small": {
        "preset": "tiny",
        "num_layers": 2,
        "block_pattern": ["recurrent", "attention"],
        "recurrence_width": 64,
    },
    "small-gemma": {
        "preset": "gemma-7b",
        "vocab_size": 64,
        "width": 32,
        "mlp_width": 64,
        "num_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 2,
        "head_size": 16,
        "recurrence_width": 32,
    },
}


@pytest.fixture(autouse=True)
def small_limits(monkeypatch):
    """The small copies and products of these configs count as limits, so that there are shares."""
    monkeypatch.setattr(machine, "_sizes", lambda platform: (2**22, 256))


def config_of(name, **changes):
    """The tiny variant of a file in configs/, of small models."""
    config = importlib.import_module(f"configs.{name}").get_config("tiny")
    values = json.loads(config.to_json_best_effort()) | {"profile": False, "shapes": SHAPES}
    return values | changes


def measured(name, **changes):
    """Its results, which must all be there."""
    results = run.measure(config_of(name, **changes))
    assert {row["status"] for row in results["rows"]} <= {"ok", "unavailable"}
    return results


@pytest.fixture
def written(tmp_path):
    """Writes the report of results and returns the page."""

    def write(results):
        page, *pictures = report.write([("results.json", results)], tmp_path)
        assert all(path.stat().st_size > 1000 for path in pictures)
        return page.read_text(), [path.name for path in pictures]

    return write


@pytest.mark.slow
def test_decoding_far_into_a_text_holds_the_same_state(written):
    results = measured("bench_decode", models=["small:nf4"], profile=True, tokens=16, prompt=31)
    rows = {
        what: [r for r in results["rows"] if r["what"] == what]
        for what in ("decode", "long prompt")
    }
    near, far = rows["decode"]
    assert (near["position"], far["position"]) == (64, 20_000)
    assert near["state_bytes"] == far["state_bytes"]
    assert near["bytes"] == far["bytes"]
    assert near["kernels"]
    (streaming,) = [row for row in results["rows"] if row["what"] == "streaming"]
    assert (streaming["tokens"], streaming["position"]) == (16, 64)
    assert 2 <= streaming["bursts"] <= 16  # the first of one token
    medians = [
        streaming[name]["median"] for name in ("whole_seconds_per_token", "seconds_per_token")
    ]
    assert streaming["cost"] == pytest.approx(1 - medians[0] / medians[1])
    assert "of throughput" in line(streaming)
    assert [row["tokens_read"] for row in rows["long prompt"]][-1] == 8192
    text, pictures = written(results)
    assert "small:nf4:bfloat16@griffin_jax" in text
    assert "Weights are random" in text
    assert "| streaming | tokens | bursts |" in text
    assert pictures == ["decode-roofline.png"]


@pytest.mark.slow
def test_latency_has_a_row_for_every_length_up_to_each_models_most(written):
    models = ["small:bfloat16", "small-gemma:bfloat16"]
    results = measured(
        "bench_latency", models=models, prompt=240, tokens=[16, 32, 48], most=[48, 32], burst=16
    )
    rows = {(r["model"], r["tokens_sampled"]): r for r in results["rows"]}
    assert set(rows) == {("small", n) for n in (16, 32, 48)} | {
        ("small-gemma", n) for n in (16, 32)
    }
    for (_, count), row in rows.items():
        assert row["seconds"]["repeats"] == (3 if count == 16 else 1)
        assert row["first_token_seconds"]["median"] > 0
    # 241 to 256 tokens, and then more: a program for each room.
    assert rows["small-gemma", 16]["compile"]["programs"] > 1
    text, pictures = written(results)
    assert "card: gemma-7b" in text
    assert pictures == ["latency.png", "cache.png"]


def test_the_warm_up_compiles_all_that_a_growing_text_needs():
    from griffin_jax.inference.decode import draw_burst

    stack = GriffinStack(Subject.parse("small-gemma:float32", SHAPES), burst=8)
    prompts = [[1] * 250]
    stack.warm(prompts, 150)
    warm = draw_burst._cache_size()
    marks = []
    stack.generate(prompts, 150, marks.append)
    assert draw_burst._cache_size() == warm
    assert marks[0] == 1
    assert marks[1:] == [*range(8, 150, 8), 150]


@pytest.fixture
def under_way(monkeypatch):
    """How many tokens of each burst there were, and how many bursts were dispatched before it came."""
    dispatched, received = [], []
    draw, fetch = Pool.draw, Pool.fetch

    def counted(self, *args):
        burst = draw(self, *args)
        if burst is not None:
            dispatched.append(burst.steps)
        return burst

    def recorded(self, burst, since):
        received.append((burst.steps, len(dispatched)))
        return fetch(self, burst, since)

    monkeypatch.setattr(Pool, "draw", counted)
    monkeypatch.setattr(Pool, "fetch", recorded)
    return received


def test_decoding_is_timed_with_the_next_burst_under_way(under_way):
    subject = Subject.parse("small:float32", SHAPES)
    stack = GriffinStack(subject, burst=4)
    row = decode.measure_decoding(subject, stack, LIMITS, 20, 13)
    assert row["tokens"] == 12
    assert row["seconds_per_token"]["repeats"] == 3
    # One alone, one to warm up, the three that are timed and the one after them.
    assert under_way == [(4, n) for n in (1, 3, 4, 5, 6, 6)]


@pytest.mark.parametrize(
    "tokens, marks, bursts",
    [
        (1, [1], [(1, 1)]),
        (3, [1, 3], [(1, 1), (2, 2)]),
        (4, [1, 4], [(1, 1), (3, 2)]),
        (15, [1, 4, 8, 12, 15], [(1, 1), (3, 2), (4, 4), (4, 5), (3, 5)]),
    ],
)
def test_a_generation_draws_its_first_token_alone(tokens, marks, bursts, under_way):
    stack = GriffinStack(Subject.parse("small:float32", SHAPES), burst=4)
    found = []
    stack.generate([[5, 6, 7]], tokens, found.append)
    assert found == marks
    assert under_way == bursts


@pytest.mark.slow
def test_throughput_ends_with_a_row_that_says_what_memory_does_not_suffice_for(
    monkeypatch, written
):
    draw = Pool.draw

    def limited(self, *args):
        if len(self.requests) > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")
        return draw(self, *args)

    monkeypatch.setattr(Pool, "draw", limited)
    config = config_of("bench_throughput", models=["small:nf4"], batch_sizes=[1, 4, 16])
    results = run.measure(config)
    first, last = results["rows"]
    assert first["tokens_per_second"] > 0
    assert first["prefill_tokens_per_second"] > 0
    assert (last["status"], last["batch_size"]) == ("out of memory", 4)
    assert "rows would fit beside the weights" in last["message"]
    text, pictures = written(results)
    assert "out of memory" in text
    assert "throughput.png" in pictures


@pytest.mark.slow
def test_every_operation_is_timed_by_every_kernel_that_serves(written):
    results = measured("bench_kernels", model="small", rows=[1], repeats=1)
    done = [row for row in results["rows"] if row["status"] == "ok"]
    operations = {row["operation"] for row in done}
    wanted = {
        "packed_matmul",
        "int8_matmul",
        "dense_matmul",
        "linear_recurrence",
        "rg_lru",
        "local_attention",
        "residual_block",
        "head",
    }
    assert wanted | {"jax.lax.associative_scan"} <= operations
    refused = [row["message"] for row in results["rows"] if row["status"] == "unavailable"]
    elsewhere = "a CPU" if jax.default_backend() == "gpu" else "a GPU"
    assert any(f"needs {elsewhere}" in message for message in refused)
    text, pictures = written(results)
    assert "| packed_matmul | kernel |" in text
    assert pictures == ["roofline.png"]


@pytest.mark.slow
def test_training_is_measured_by_the_same_command(monkeypatch, written):
    row = {"batch_size": 4, "length": 64, "document": 64, "tokens_per_second": 9.0, "mfu": 0.5}
    row |= {"remat": "dots", "loss_chunks": 1, "microbatches": 1}
    row |= {"memory_bytes": 10**9, "compile_seconds": 3.0}
    row["seconds"] = {"median": 0.1, "low": 0.1, "high": 0.2, "spread": 1.0, "repeats": 2}

    def measure(config):
        assert config["kind"] == "training"
        return [row, {"batch_size": 8, "length": 64, "error": "no room"}]

    monkeypatch.setattr("griffin_jax.benchmarks.training.measure", measure)
    results = run.measure(config_of("bench_training"))
    assert [row["status"] for row in results["rows"]] == ["ok", "out of memory"]
    text, _ = written(results)
    assert "50.0%" in text
    assert "no room" in text


@pytest.mark.slow
def test_a_job_in_a_process_of_its_own_gives_the_rows_of_one_in_this(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    config = config_of("bench_kernels", operations=["head"], model="small", rows=[1], repeats=1)
    (limits,) = isolation.run_apart(tasks.Job("limits", "", config))
    assert limits["machine"]["platform"] == "cpu"
    (row,) = isolation.run_apart(tasks.Job("kernels", "", config, limits["limits"]))
    assert (row["operation"], row["status"]) == ("head", "ok")
    with pytest.raises(ValueError, match="this config measures an accelerator"):
        list(isolation.run_apart(tasks.Job("limits", "", config | {"accelerator": True})))


def test_a_process_that_dies_is_a_row(monkeypatch):
    monkeypatch.setattr(isolation, "_COMMAND", ["-c", "import os; os.kill(os.getpid(), 9)"])
    (row,) = isolation.run_apart(tasks.Job("decode", "tiny:nf4", {}))
    assert row["status"] == "failed"
    assert "signal 9" in row["message"]


def test_a_model_larger_than_the_device_says_so_before_anything_is_made(monkeypatch):
    monkeypatch.setattr(memory, "limit_bytes", lambda: None)
    monkeypatch.setattr("griffin_jax.benchmarks.subject.available_memory", lambda: 10_000)
    results = run.measure(config_of("bench_decode", models=["small:bfloat16"]))
    (row,) = results["rows"]
    assert row["status"] == "out of memory"
    assert "its weights are 0.00 GB" in row["message"]


@pytest.mark.parametrize(
    ("model", "versions", "message"),
    [
        ("small:float32@transformers", {}, "torch is not installed: pip install griffin_jax"),
        (
            "small:float32@transformers",
            {"torch": "2.9.1+cu130", "transformers": "4.41.0"},
            "transformers 4.41.0 is too old, 5.0 is needed",
        ),
        (
            "small:nf4@transformers",
            {"torch": "2.9", "transformers": "5.17"},
            "bitsandbytes is not installed",
        ),
        ("small:float32@recurrentgemma", {}, "recurrentgemma is not installed"),
        ("small:nf4@recurrentgemma", {"recurrentgemma": "1.0.1"}, "no packed weights"),
        ("small-gemma:float32@recurrentgemma", {"recurrentgemma": "1.0.1"}, "no such model"),
    ],
)
def test_a_peer_that_cannot_run_is_a_row_of_one_line(monkeypatch, model, versions, message):
    def version(package):
        if package not in versions:
            raise stacks.importlib.metadata.PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr("importlib.metadata.version", version)
    config = config_of("bench_cpu", models=[model])
    limits = {"bytes_per_second": 1.0, "flops_per_second": 1.0, "float32_flops_per_second": 1.0}
    (job,) = tasks.jobs(config, limits)
    (row,) = tasks.run(job)
    assert row["status"] == "unavailable"
    assert message in row["message"]
    assert "\n" not in row["message"]


@pytest.mark.parity
@pytest.mark.parametrize(
    "peer",
    [
        "small:float32@transformers",
        "small:nf4:float32@transformers",
        "small:float32@recurrentgemma",
    ],
)
def test_a_peer_is_measured_like_our_own(peer):
    ours, theirs = run.measure(config_of("bench_cpu", models=["small:float32", peer]))["rows"]
    assert theirs["status"] == "ok", theirs
    assert {"first_token_seconds", "seconds_per_token", "bandwidth_share"} <= set(theirs)
    assert theirs["flops"] == ours["flops"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "speed"}, "config.kind must be one of decode, .*, got 'speed'"),
        ({"models": ["tiny:int4"]}, "model 'tiny:int4' must be MODEL:WEIGHTS"),
        ({"models": ["tiny:nf4@llama"]}, "no stack 'llama'"),
    ],
)
def test_a_wrong_config_ends_before_anything_is_measured(changes, message):
    with pytest.raises(ValueError, match=message):
        run.measure(config_of("bench_decode", **changes))


def test_a_folder_that_is_none_is_named():
    with pytest.raises(FileNotFoundError, match="no folder /nothing/here"):
        run.measure(config_of("bench_decode", models=["/nothing/here:nf4"]))


def test_subjects_read_as_they_are_written():
    subject = Subject.parse("recurrentgemma-9b:nf4-double@transformers")
    assert (subject.weights, subject.dtype, subject.stack) == (
        "nf4-double",
        "bfloat16",
        "transformers",
    )
    assert subject.quantization.bnb_4bit_use_double_quant
    assert Subject.parse("tiny").weights == "bfloat16"
    assert Subject.parse("tiny:float32").dtype == "float32"
    assert str(Subject.parse("tiny:nf4:float32")) == "tiny:nf4:float32@griffin_jax"
    assert Subject.parse("small:nf4", SHAPES).config.num_layers == 2
