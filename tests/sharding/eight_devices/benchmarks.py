"""Benchmarks on a mesh: what rows say of it, and meshes that do not fit."""

import importlib
import json

import jax
import pytest

from configs import bench_base
from griffin_jax.benchmarks import machine, report, results, subject, tasks, training
from griffin_jax.benchmarks.machine import Limits
from griffin_jax.benchmarks.subject import Subject
from griffin_jax.checkpoints.random_weights import abstract_weights
from griffin_jax.models import param_shardings
from griffin_jax.sharding import MeshError, check_config, make_mesh
from tests.sharding.eight_devices.meshes import WIDE

LIMITS = {"bytes_per_second": 1e9, "flops_per_second": 1e9, "float32_flops_per_second": 1e9}
ONE = {"data": 1, "fsdp": 1, "model": 1, "sequence": 1}


def rows_of(name, model, **changes):
    """The rows of one job of a tiny variant in configs/."""
    config = importlib.import_module(f"configs.{name}").get_config("tiny")
    values = json.loads(config.to_json_best_effort()) | {"profile": False} | changes
    return list(tasks.run(tasks.Job(values["kind"], model, values, LIMITS)))


@pytest.mark.parametrize("weights", ["float32", "nf4"])
def test_rows_of_decoding_say_what_devices_share_it_and_what_they_exchange(weights):
    given = {"batch_sizes": (4,), "burst": 2, "tokens": 2}
    # Whose blocks of 64 the mesh divides.
    shapes = {"wide": {"preset": "tiny"} | WIDE.to_dict()}
    mesh = ONE | {"data": 4, "model": 2}
    (row,) = rows_of("bench_throughput", f"wide:{weights}", shapes=shapes, mesh=mesh, **given)
    assert row["status"] == "ok", row
    assert (row["devices"], row["mesh"]) == (8, {"data": 4, "model": 2})
    # Two in each of the layers at least, none of which takes longer than a step.
    assert row["collectives"]["launches"] >= 2 * WIDE.num_layers
    assert row["collectives"]["seconds"] > 0
    assert "on 8 devices (data 4, model 2)" in results.line(row)
    assert "collectives" in results.line(row)


def test_what_devices_do_together_is_held_against_all_of_their_limits():
    given = {"batch_sizes": (8,), "burst": 2, "tokens": 2}
    subject = "tiny:float32"
    (alone,) = rows_of("bench_throughput", subject, **given)
    (shared,) = rows_of("bench_throughput", subject, mesh=ONE | {"data": 2, "model": 4}, **given)
    (copied,) = rows_of("bench_throughput", subject, mesh=ONE | {"data": 8}, **given)
    assert "collectives" not in alone and alone["devices"] == 1
    assert shared["flops"] == copied["flops"] == alone["flops"]
    # All of the weights are read by each group of devices that has rows of its own.
    weights = shared["bytes"] - alone["bytes"]
    assert 0 < weights <= Subject.parse(subject).weight_bytes()
    assert copied["bytes"] == pytest.approx(alone["bytes"] + 7 * weights)
    for row in (shared, copied):
        assert row["floor_seconds"] == pytest.approx(max(row["bytes"], row["flops"]) / 8e9)


def test_training_over_fsdp_says_so():
    given = {"lengths": (64,), "tokens": 512, "variants": ("none:1:1",), "document": 0}
    (row,) = rows_of("bench_training", "", mesh=ONE | {"fsdp": 4, "model": 2}, **given)
    assert row["status"] == "ok" and row["devices"] == 8
    assert row["mesh"] == {"fsdp": 4, "model": 2}
    assert "on 8 devices (fsdp 4, model 2)" in results.line(row)


@pytest.mark.parametrize("kind", ["limits", "throughput"])
def test_a_mesh_that_does_not_make_up_the_devices_is_one_line(kind):
    config = importlib.import_module("configs.bench_throughput").get_config("tiny")
    values = json.loads(config.to_json_best_effort()) | {"mesh": ONE | {"model": 3}}
    with pytest.raises(ValueError, match="there are 8 devices, mesh model=3 has 3"):
        list(tasks.run(tasks.Job(kind, "tiny:nf4", values, LIMITS)))


@pytest.mark.parametrize(
    "name, model, mesh, message",
    [
        ("bench_throughput", "tiny:nf4", {"model": 8}, "model=8 does not divide num_heads 4"),
        ("bench_training", "", {"model": 8}, "model=8 does not divide num_heads 4"),
        ("bench_training", "", {"fsdp": 8}, "a batch of 4 does not divide over mesh .*fsdp=8"),
    ],
)
def test_a_mesh_that_does_not_divide_the_work_is_met_before_anything_is_made(
    name, model, mesh, message, monkeypatch
):
    monkeypatch.setattr(subject, "random_params", None)
    monkeypatch.setattr(training, "init_params", None)
    with pytest.raises(MeshError, match=message):
        rows_of(name, model, mesh=ONE | mesh)


def test_a_wide_shape_of_the_tiny_variants_has_a_part_for_each_of_eight_devices():
    shapes = {"wide": bench_base.WIDE}
    config = Subject.parse("wide:nf4", shapes).config
    check_config(config, mesh := make_mesh(model=8))
    params = abstract_weights(config, "bfloat16", Subject.parse("wide:nf4", shapes).quantization)
    param_shardings(config, params, mesh)


def test_limits_of_several_devices_are_those_of_one_each():
    assert Limits(1.0, 2.0, 3.0).times(8) == Limits(8.0, 16.0, 24.0)
    assert len(jax.devices()) == 8


def test_tables_tell_meshes_apart(tmp_path):
    given = {"batch_sizes": (4,), "burst": 2, "tokens": 2}
    rows = [
        *rows_of("bench_throughput", "tiny:float32", **given),
        *rows_of("bench_throughput", "tiny:float32", mesh=ONE | {"model": 2, "data": 4}, **given),
    ]
    found = {"kind": "throughput", "config": {}, "machine": machine.describe(), "limits": LIMITS}
    found["rows"] = rows
    page, *_ = report.write([("results.json", found)], tmp_path)
    text = page.read_text()
    assert text.count("tiny:float32@griffin_jax |") and "8 devices (data 4, model 2)" in text
