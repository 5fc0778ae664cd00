import json

import jax
import pytest

from griffin_jax.checkpoints import load_checkpoint, open_checkpoint, save_checkpoint
from tests.checkpoints.tiny_model import (
    CONFIG,
    assert_same_tree,
    edit_json,
    one_line_error,
    random_params,
    save_tiny,
)


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "model"
    save_tiny(folder, format="orbax")
    return folder


def test_a_model_saved_from_a_mesh_loads_without_one(tmp_path):
    mesh = jax.make_mesh((1, 1), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    params = random_params(CONFIG)
    sharded = jax.device_put(
        params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    )
    save_checkpoint(tmp_path / "model", CONFIG, sharded)
    loaded = load_checkpoint(tmp_path / "model").params
    assert_same_tree(loaded, params)
    assert not isinstance(loaded["final_norm"]["scale"].sharding, jax.sharding.NamedSharding)


def test_leaves_come_in_the_models_order(saved):
    tops = [path.split("/")[0] for path, _ in open_checkpoint(saved).leaves()]
    assert list(dict.fromkeys(tops)) == [
        "embedder",
        "blocks_0",
        "blocks_1",
        "blocks_2",
        "final_norm",
    ]


def test_the_config_is_readable_json(saved):
    values = json.loads((saved / "griffin_config.json").read_text())
    assert values["config"]["width"] == CONFIG.width
    assert values["format_version"] == 1


def config_of(folder):
    return json.loads((folder / "griffin_config.json").read_text())["config"]


def test_missing_and_unexpected_arrays_are_named(saved):
    values = config_of(saved)
    edit_json(saved / "griffin_config.json", config=values | {"tie_embeddings": False})
    assert "tensor lm_head/weight is missing" in one_line_error(saved)
    edit_json(saved / "griffin_config.json", config=values | {"num_layers": 2})
    assert "blocks_2" in one_line_error(saved)
    assert "unexpected" in one_line_error(saved)


def test_an_array_of_the_wrong_shape_is_named(saved):
    edit_json(saved / "griffin_config.json", config=config_of(saved) | {"vocab_size": 5})
    message = one_line_error(saved)
    assert "embedder/embedding has shape (384, 64)" in message
    assert "(5, 64)" in message


def test_a_wrong_config_is_named(saved):
    edit_json(saved / "griffin_config.json", config={"depth": 3})
    assert "unknown fields ['depth']" in one_line_error(saved)
    edit_json(saved / "griffin_config.json", format_version=2)
    assert "format_version 2" in one_line_error(saved)
    (saved / "griffin_config.json").write_text("{")
    assert "griffin_config.json is not JSON" in one_line_error(saved)


def test_a_missing_tree_is_named(saved):
    (saved / "params").rename(saved / "elsewhere")
    assert "params is not a complete Orbax checkpoint" in one_line_error(saved)


def test_damaged_data_are_one_line(saved):
    """Whatever file the weights are in."""
    files = sorted((f for f in saved.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    files[-1].write_bytes(files[-1].read_bytes()[:100])
    assert "a file is damaged" in one_line_error(saved)
