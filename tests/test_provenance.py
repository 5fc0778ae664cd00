"""What files of results say of where they come from."""

import re

from griffin_jax import provenance
from griffin_jax.benchmarks import report


def test_a_record_tells_date_commit_and_a_command_that_repeats_it(monkeypatch):
    monkeypatch.setenv("GRIFFIN_COMMIT", "abc1234")
    given = ["--config=configs/bench_decode.py", "--config.models=('/home/me/9b:nf4','tiny')"]
    found = provenance.record("benchmark", [*given, "--output=/home/me/x.json"])
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", found["date"])
    assert found["commit"] == "abc1234"
    assert found["command"] == (
        "python -m experiments.benchmark --config=configs/bench_decode.py "
        "\"--config.models=('9b:nf4','tiny')\""
    )


def test_a_folder_that_is_no_checkout_has_no_commit(monkeypatch, tmp_path):
    monkeypatch.delenv("GRIFFIN_COMMIT", raising=False)
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    assert provenance.record("benchmark", [])["commit"] is None


def test_a_report_tells_of_every_run_and_of_none_that_was_not_recorded():
    recorded = {"date": "2026-11-24", "commit": None, "command": "python -m experiments.benchmark"}
    assert provenance.sentence(recorded) == (
        "Recorded on 2026-11-24: `python -m experiments.benchmark`"
    )
    assert provenance.sentence(None) == ""
    limits = dict.fromkeys(
        ("bytes_per_second", "flops_per_second", "float32_flops_per_second"), 1e9
    )
    machine = {"device": "a", "processor": "b", "cores": 1, "python": "3", "versions": {}}
    one = {"kind": "decode", "machine": machine, "limits": limits, "rows": []}
    later = one | {"recorded": recorded | {"date": "2026-11-30", "commit": "abc1234"}}
    (run,) = report.joined([one, one | {"recorded": recorded}, later])
    text = report.setting(run)
    assert text.count("Recorded on") == 2
    assert "Recorded on 2026-11-30 at commit abc1234" in text
