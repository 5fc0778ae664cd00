"""What a run writes while it goes: lines that a killed run left unfinished, and a full disk."""

import pytest

from griffin_jax.paths import OutputError
from griffin_jax.training.run_log import RunLog, read_metrics


def test_later_and_unfinished_lines_of_a_killed_run_are_cut(tmp_path):
    log = RunLog(tmp_path / "run", 0, 5)
    for step in (1, 2, 3):
        log.write(step, loss=1.0 / step, mfu=None)
    log.close()
    path = tmp_path / "run/metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "lo')
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]
    RunLog(tmp_path / "run", 2, 5).close()
    assert read_metrics(path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]


def test_a_full_disk_is_told_by_the_file_of_metrics(tmp_path, monkeypatch):
    log = RunLog(tmp_path / "run", 0, 5)
    log._file.close()
    log._file = open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(OutputError, match=r"run/metrics\.jsonl cannot be written: No space left"):
        log.write(1, loss=1.0)
    with pytest.raises(OSError, match="No space left"):  # what it still holds
        log._file.close()


@pytest.mark.parametrize("damage", [b"{", b"\0\0\0", b"\xff"])
def test_a_damaged_line_is_named(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damage + b'\n{"step": 2}\n')
    with pytest.raises(
        ValueError, match=r"metrics\.jsonl(, line 2: not JSON|: not UTF-8 at byte 12)"
    ):
        read_metrics(path)
