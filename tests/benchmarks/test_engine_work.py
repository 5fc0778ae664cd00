"""The engine's workloads on a tiny shape, as rows, lines, tables and a plot."""

import json

import pytest

from griffin_jax.benchmarks import engine, report, run
from griffin_jax.benchmarks.results import line
from tests.benchmarks.test_jobs import config_of


@pytest.fixture(scope="module")
def results():
    return run.measure(config_of("bench_engine", concurrent=[2]))


def rows_of(results, what):
    return [row for row in results["rows"] if row["what"] == what]


@pytest.mark.slow
def test_every_workload_has_its_rows(results):
    assert {row["status"] for row in results["rows"]} == {"ok"}
    named = {"memory": "steady memory", "first": "first token", "host": "host work"}
    whats = {named.get(workload, workload) for workload in engine.WORKLOADS}
    assert {row["what"] for row in results["rows"]} == whats | {"saved context", "real text"}
    assert all(line(row) for row in results["rows"])


@pytest.mark.slow
def test_the_engine_and_static_batches_write_the_same(results):
    ours, theirs = rows_of(results, "offline")
    assert theirs["equal_texts"] == ours["requests"] == 5
    assert ours["new_tokens"] == theirs["new_tokens"] == 3 + 20 + 2 + 12 + 4
    assert 0 < ours["used_rows"] <= 1


@pytest.mark.slow
def test_a_prefix_cache_spares_reading_and_a_fork_all_of_it(results):
    none, exact, every = rows_of(results, "conversations")
    assert none["read_tokens"] == none["alone_tokens"] and not none["cached_tokens"]
    assert (
        every["read_tokens"] < none["read_tokens"] and every["hit_rate"] == 0.5
    )  # a first turn has nothing before
    assert exact["cached_tokens"] >= 0
    assert exact["equal_logits"] == exact["alone"] == 3  # bit for bit
    assert every["largest_difference"] < 1e-4
    (forks,) = rows_of(results, "forks")
    assert forks["read_tokens"] == forks["forks"]  # the document's last token, for each
    (saved,) = rows_of(results, "saved context")
    assert saved["next_200_equal"]


@pytest.mark.slow
def test_drafts_change_no_token_and_memory_stays(results):
    rows = rows_of(results, "speculation")
    assert all(row["equal_tokens"] == row["new_tokens"] for row in rows)
    always = [row for row in rows if row["way"] == "drafts always"]
    assert all(row["draft_calls"] > 0 for row in always)
    texts = {row["text"]: row["tokens_per_call"] for row in rows_of(results, "real text")}
    assert texts["code that is edited"] > 3 > texts["other code"] >= 1
    (memory,) = rows_of(results, "steady memory")
    assert memory["left_bytes"] == memory["left_requests"] == 0
    assert memory["slot_bytes"] == memory["reckoned_bytes"] and memory["killed"] > 0


@pytest.mark.slow
def test_tables_and_a_plot_are_made(results, tmp_path):
    results = json.loads(json.dumps(results))
    written = report.write([("engine.json", results)], tmp_path)
    assert [path.name for path in written] == ["engine.md", "engine-load.png", "engine-serving.png"]
    text = written[0].read_text(encoding="utf-8")
    for words in (
        "| static batches |",
        "| every turn |",
        "saved in s",
        "drafts always",
        "output tokens/s",
    ):
        assert words in text


def test_a_workload_that_there_is_not_is_named():
    with pytest.raises(
        ValueError, match=r"config\.workloads names 'nothing'; there are offline, host, load"
    ):
        run.measure(config_of("bench_engine", workloads=["nothing"]))
