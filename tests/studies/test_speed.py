"""Studies of speed: every model, length and kernel has a row, and pages say what rows do."""

import dataclasses

import pytest

from griffin_jax.benchmarks.machine import Limits
from griffin_jax.kernels import choice
from griffin_jax.studies import (
    LongDocumentsStudy,
    ScansStudy,
    StepTimeStudy,
    scans,
    speed_report,
    step_time,
)

SMALL = {"vocab_size": 32, "width": 16, "mlp_width": 24, "num_layers": 1, "num_heads": 2}
STEPS = StepTimeStudy(
    title="t", base=SMALL, models={"Griffin": {}}, lengths=(16, 32), tokens=32, repeats=1,
    dtype="float32", paper_ratios={"Griffin": {"32": 1.5}},
    claims=({"says": "s", "if": ((("relative time", "Griffin", 16), "<=", 1.0),)},),
)  # fmt: skip


def page(write, judge, study, rows, folder):
    found = dataclasses.asdict(study) | {"rows": rows, "device": "d", "command": "c"}
    found["verdicts"] = judge(study, found)
    png, path = write("some", found, folder)
    assert png.read_bytes().startswith(b"\x89PNG")
    return path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_steps_are_timed_at_every_length(tmp_path):
    pytest.importorskip("matplotlib")
    told = []
    rows = list(step_time.measure(STEPS, told.append))
    assert [(x["model"], x["length"], x["batch_size"]) for x in rows] == [
        ("Griffin", 16, 2),
        ("Griffin", 32, 1),
    ]
    assert told == ["Griffin: compiling 2 programs", "all programs are compiled"]
    assert speed_report.ratios({"rows": rows, "compared_with": "Griffin"})["Griffin"][16] == 1.0
    text = page(
        speed_report.write_step_time, speed_report.step_time_verdicts, STEPS, rows, tmp_path
    )
    assert text.count("\n| Griffin |") == 2 and "| 1.50 |" in text and "**holds**" in text


def test_scans_have_a_row_for_each_kernel_and_direction(tmp_path):
    pytest.importorskip("matplotlib")
    study = ScansStudy(
        title="t", lengths=(16,), widths=(8,), seconds=0, repeats=1, dtype="float32",
        claims=({"says": "s", "if": ((("us", "linear_recurrence", "reference", 16, 8), ">", 0),)},),
    )  # fmt: skip
    rows = scans.measure(study, Limits(1e10, 1e11, 1e11))
    good = {(x["backward"], x["kernel"]) for x in rows if "seconds" in x}
    assert good == {(b, k) for b in (False, True) for k in ("reference", "associative")}
    assert "**holds**" in page(
        speed_report.write_scans, speed_report.scan_verdicts, study, rows, tmp_path
    )


def test_rows_of_a_benchmark_are_taken_in():
    row = {"what": "training", "length": 16, "document": 16, "remat": "none", "loss_chunks": 1,
           "microbatches": 1}  # fmt: skip
    others = [row | x for x in ({"length": 64}, {"document": 8}, {"remat": "dots"})]
    found = step_time.rows_of_benchmark(STEPS, {"rows": [row, *others]})
    assert found == [row | {"model": "Griffin"}]
    study = ScansStudy(title="t", lengths=(16,), widths=(8,), operations=("a",))
    row = {
        "what": "kernel",
        "operation": "a",
        "case": "forward and backward, 16 x 8",
        "kernel": None,
    }
    others = [row | x for x in ({"operation": "b"}, {"case": "forward, 16 x 9"}, {"case": "head"})]
    (taken,) = scans.rows_of_benchmark(study, {"rows": [row, *others]})
    assert taken == row | {"length": 16, "width": 8, "backward": True, "kernel": "a"}


def test_times_are_relative_to_one_of_the_models():
    with pytest.raises(ValueError, match="compared_with 'Hawk' must be one of models: Griffin"):
        dataclasses.replace(STEPS, compared_with="Hawk")


def test_a_length_that_does_not_divide_the_batch_is_one_line():
    with pytest.raises(ValueError, match="length 24 does not divide the 32 tokens of a batch"):
        dataclasses.replace(STEPS, lengths=(16, 24))


def test_a_kernel_may_be_left_out():
    reasons = {"a": None, "b": None}
    with choice.without("a"):
        assert choice.choose("some", reasons) == "b"
        with pytest.raises(ValueError, match="a is left out here"):
            choice.choose("some", reasons, "a")
    assert choice.choose("some", reasons) == "a"


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: ScansStudy(title="t", lengths=(8, 0)),
            r"lengths\[1\] must be .* at least 1, got 0",
        ),
        (lambda: ScansStudy(title="t", widths=(-1,)), r"widths\[0\] must be .* at least 1, got -1"),
        (
            lambda: StepTimeStudy(title="t", lengths=(0,)),
            r"lengths\[0\] must be .* at least 1, got 0",
        ),
        (
            lambda: LongDocumentsStudy(title="t", chunks=(1, 0)),
            r"chunks\[1\] must be .* at least 1, got 0",
        ),
    ],
)
def test_sizes_that_are_none_are_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
