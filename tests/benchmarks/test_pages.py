"""What pages tell of several runs, of this project and of others, and of what is no limit of a device."""

import json
from pathlib import Path

from griffin_jax.benchmarks import report
from griffin_jax.benchmarks.results import has_limits, line, without_shares


def test_results_of_one_machine_are_one_table_and_of_several_machines_are_several():
    def results(device, rows, speed):
        limits = {"bytes_per_second": speed}
        # How much of the memory a process may take is no other machine.
        machine = {"device": device, "device_bytes": speed * 2**30}
        return {"machine": machine, "limits": limits, "rows": rows}

    documents = [results("a", [1], 5.0), results("b", [2], 6.0), results("a", [3], 7.0)]
    first, second = report.joined(documents)
    assert (first["rows"], second["rows"]) == ([1, 3], [2])
    assert first["all_limits"] == [{"bytes_per_second": 5.0}, {"bytes_per_second": 7.0}]


def test_rows_of_a_model_are_in_the_order_of_their_batch_sizes_whichever_run_they_are_of(tmp_path):
    folder = Path(__file__).parents[2] / "docs/benchmarks"
    whole = json.loads((folder / "throughput_h200.json").read_text("utf-8"))
    odd, even = whole["rows"][::2], whole["rows"][1::2]
    runs = [whole | {"rows": rows} for rows in (even, odd)]
    page, *_ = report.write(list(zip("ab", runs, strict=True)), tmp_path)
    lines = [line.split(" | ") for line in page.read_text("utf-8").splitlines() if "2,048" in line]
    sizes = {"1", "4", "16", "64", "256", "1024"}
    assert {line[1] for line in lines[:6]} == {line[1] for line in lines[6:12]} == sizes
    assert [int(line[1]) for line in lines[:6]] == sorted(int(line[1]) for line in lines[:6])


def test_nothing_is_a_share_of_a_copy_within_a_cache(tmp_path):
    folder = Path(__file__).parents[2] / "docs/benchmarks"
    small = json.loads((folder / "throughput_h200_transformers_1024.json").read_text("utf-8"))
    whole = json.loads((folder / "throughput_h200_transformers.json").read_text("utf-8"))
    assert (has_limits(small), has_limits(whole)) == (False, True)
    page, *plots = report.write([("a", small)], tmp_path)
    text = page.read_text("utf-8")
    assert [path.name for path in plots] == ["throughput.png"]
    assert "| 8 | 1,024 | 92 | 87.313 | 0.0% |  |  | 5,119 |" in text
    assert "shares are of these" not in text
    shown = line(without_shares(small["rows"][0]))
    assert "82.107 ms" in shown and "bandwidth" not in shown and "matrix rate" not in shown
    # Beside a run that has limits, its rows have no shares still, and its limits are not told.
    whole["machine"] = small["machine"]
    (run,) = report.joined([small, whole])
    assert run["limits"] == whole["limits"] and run["all_limits"] == [whole["limits"]]
    shares = [row["bandwidth_share"] for row in run["rows"]]
    assert shares[:2] == [None, None] and all(share < 1 for share in shares[2:])


def test_a_servers_clients_stand_beside_a_peers_static_batches(tmp_path):
    folder = Path(__file__).parents[2] / "docs/benchmarks"
    served, peer = (
        json.loads((folder / name).read_text("utf-8"))
        for name in ("engine_h200_bf16_work.json", "throughput_h200_transformers_1024.json")
    )
    page, *_ = report.write([("a", served)], tmp_path, [peer])
    text = page.read_text("utf-8")
    # 8 times 256 tokens in 1.600 s and 255 steps of 87.3 ms.
    assert (
        "| recurrentgemma-9b:bfloat16@transformers | 8 | 1,024 | 256 | 86 | 1,600.4 | 87.3 |"
        in text
    )
    assert "--config.prompt=1024" in text  # the command
    peer["machine"]["device"] = "another"
    page, *_ = report.write([("a", served)], tmp_path, [peer])
    assert "transformers" not in page.read_text("utf-8")


def test_generations_under_two_versions_of_jax_stand_side_by_side(tmp_path):
    def results(version, seconds, **more):
        documents = json.loads(
            (Path(__file__).parents[2] / "docs/benchmarks/cpu.json").read_text(encoding="utf-8")
        )
        first, *_, last = documents["rows"]
        documents["machine"]["versions"]["jax"] = version
        first["first_token_seconds"]["median"] = seconds
        return documents | {"rows": [first | more, last][: 1 if more else 2]}

    runs = [("a", results("0.10.2", 1.25)), ("b", results("0.12.0", 1.5, stack="griffin_jax"))]
    page = report.write(runs, tmp_path)[0].read_text(encoding="utf-8")
    head, _, first, last = page.split("\n\n")[2].splitlines()
    assert head.split(" | ")[1:4:2] == ["jax 0.10.2: prompt, s", "jax 0.12.0: prompt, s"]
    assert first.split(" | ")[1:4:2] == ["1.250", "1.500"]
    assert last.endswith("|  |  |"), "what one of them did not measure stays empty"
