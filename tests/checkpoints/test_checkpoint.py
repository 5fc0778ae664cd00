import json
import sys

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.checkpoints import (
    CheckpointError,
    hub,
    huggingface,
    load_checkpoint,
    open_checkpoint,
    orbax,
    save_checkpoint,
    save_leaves,
)
from griffin_jax.checkpoints.files import read_json
from griffin_jax.checkpoints.shards import ShardWriter
from griffin_jax.config import HAWK_7B
from tests.checkpoints.tiny_model import (
    CONFIG,
    assert_same_tree,
    one_line_error,
    random_params,
    save_tiny,
)

FORMATS = ("huggingface", "orbax")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("tied", [True, False])
def test_saving_and_loading_changes_nothing(tmp_path, format, dtype, tied):
    config = CONFIG.replace(tie_embeddings=tied, attention_bias=not tied)
    params = random_params(config, dtype)
    save_checkpoint(tmp_path / "model", config, params, format=format)
    loaded = load_checkpoint(tmp_path / "model")
    assert loaded.config == config
    assert loaded.quantization is None
    assert loaded.folder == tmp_path / "model"
    assert_same_tree(loaded.params, params)


@pytest.mark.parametrize("format", FORMATS)
def test_weights_arrive_in_the_wanted_dtype(tmp_path, format):
    params = save_tiny(tmp_path / "model", format=format)
    loaded = load_checkpoint(tmp_path / "model", dtype="bfloat16")
    assert_same_tree(loaded.params, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))


@pytest.mark.parametrize("format", FORMATS)
def test_leaves_arrive_in_the_wanted_shardings(tmp_path, format):
    params = save_tiny(tmp_path / "model", format=format)
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    seen = {}

    def shardings(path, leaf):
        spec = ("x",) if path.endswith("weight") else ()
        seen[path] = leaf
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

    loaded = load_checkpoint(tmp_path / "model", dtype=jnp.bfloat16, shardings=shardings)
    assert_same_tree(loaded.params, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))
    leaf = loaded.params["blocks_2"]["attention_block"]["q_proj"]["weight"]
    assert leaf.sharding.spec == jax.sharding.PartitionSpec("x")
    struct = seen["blocks_2/attention_block/q_proj/weight"]
    assert (struct.shape, struct.dtype) == (leaf.shape, leaf.dtype)
    assert len(seen) == len(jax.tree.leaves(params))


def test_any_config_survives_our_own_format(tmp_path):
    config = HAWK_7B.replace(vocab_size=32, width=32, mlp_width=32, num_layers=1, num_heads=2)
    config = config.replace(
        recurrence_width=16, head_size=8, attention_window=None, projection_bias=False
    )
    params = save_tiny(tmp_path / "model", config, "orbax")
    loaded = load_checkpoint(tmp_path / "model")
    assert loaded.config == config
    assert_same_tree(loaded.params, params)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_named_and_can_be_let_through(tmp_path, format, value):
    params = random_params(CONFIG, jnp.bfloat16)
    norm = params["blocks_1"]["channel_pre_norm"]
    norm["scale"] = norm["scale"].at[3].set(value)
    save_checkpoint(tmp_path / "model", CONFIG, params, format=format)
    name = open_checkpoint(tmp_path / "model").stored_name("blocks_1/channel_pre_norm/scale")
    message = one_line_error(tmp_path / "model")
    assert name in message
    assert "allow_nan=True" in message
    assert_same_tree(load_checkpoint(tmp_path / "model", allow_nan=True).params, params)


def test_a_value_that_overflows_the_wanted_dtype_is_reported(tmp_path):
    params = random_params(CONFIG)
    params["final_norm"]["scale"] = params["final_norm"]["scale"].at[0].set(1e6)
    save_checkpoint(tmp_path / "model", CONFIG, params, format="huggingface")
    assert "model.final_norm.weight" in one_line_error(tmp_path / "model", dtype="float16")


def test_many_bad_weights_are_counted(tmp_path):
    params = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), random_params(CONFIG))
    save_checkpoint(tmp_path / "model", CONFIG, params, format="huggingface")
    count = len(jax.tree.leaves(params))
    assert f"and {count - 3} more" in one_line_error(tmp_path / "model")


def test_a_folder_that_does_not_exist_is_no_hub_name(tmp_path):
    message = one_line_error(tmp_path / "nothing", FileNotFoundError)
    assert "nothing" in message
    assert "google/recurrentgemma" in message


def test_a_missing_folder_with_a_hub_name_is_fetched(tmp_path, monkeypatch):
    params = save_tiny(tmp_path / "snapshot")
    monkeypatch.setattr(hub, "fetch", lambda name: {"org/model": tmp_path / "snapshot"}[name])
    loaded = load_checkpoint("org/model")
    assert_same_tree(loaded.params, params)
    assert loaded.folder == tmp_path / "snapshot"


def test_a_file_and_a_folder_without_weights_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file" in one_line_error(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    message = one_line_error(tmp_path / "empty")
    assert "empty" in message
    assert "config.json" in message


@pytest.mark.parametrize("format", FORMATS)
def test_an_existing_folder_is_not_overwritten(tmp_path, format):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "precious").write_text("data")
    with pytest.raises(CheckpointError, match="exists already"):
        save_checkpoint(tmp_path / "model", CONFIG, random_params(CONFIG), format=format)
    assert [f.name for f in tmp_path.rglob("*")] == ["model", "precious"]


def test_an_unknown_format_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="'orbax' or 'huggingface'"):
        save_checkpoint(tmp_path / "model", CONFIG, {}, format="pickle")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", FORMATS)
def test_an_interrupted_save_leaves_nothing(tmp_path, monkeypatch, format):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(orbax if format == "orbax" else huggingface, "write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "model", CONFIG, random_params(CONFIG), format=format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", FORMATS)
def test_what_a_killed_save_leaves_behind_is_no_checkpoint(tmp_path, monkeypatch, format):
    """Cleaning up is what a killed process cannot do."""
    monkeypatch.setattr("shutil.rmtree", lambda *args, **kwargs: None)
    monkeypatch.setattr(ShardWriter, "finish", lambda self: 1 / 0)
    monkeypatch.setattr(orbax, "write_json", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_checkpoint(tmp_path / "model", CONFIG, random_params(CONFIG), format=format)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".model.")
    one_line_error(left)


@pytest.mark.parametrize("format", FORMATS)
def test_parameters_of_another_config_are_refused_and_leave_nothing(tmp_path, format):
    params = random_params(CONFIG)
    untied, shorter = CONFIG.replace(tie_embeddings=False), CONFIG.replace(num_layers=2)
    for config, words in ((untied, "lm_head/weight is missing"), (shorter, "unexpected")):
        with pytest.raises(CheckpointError, match=words):
            save_checkpoint(tmp_path / "model", config, params, format=format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", FORMATS)
def test_leaves_stream_from_one_checkpoint_into_another(tmp_path, format):
    params = save_tiny(tmp_path / "model", format=format)
    source = open_checkpoint(tmp_path / "model")
    halved = ((path, leaf * np.float32(0.5)) for path, leaf in source.leaves())
    save_leaves(tmp_path / "half", source.config, halved, max_shard_size=50_000)
    loaded = load_checkpoint(tmp_path / "half").params
    assert_same_tree(loaded, jax.tree.map(lambda x: x * 0.5, params))


def test_leaves_on_the_host_are_saved_in_our_format(tmp_path):
    params = save_tiny(tmp_path / "model")
    source = open_checkpoint(tmp_path / "model")
    tree = flax.traverse_util.unflatten_dict(dict(source.leaves()), sep="/")
    save_checkpoint(tmp_path / "ours", source.config, tree)
    assert_same_tree(load_checkpoint(tmp_path / "ours").params, params)


def test_the_tokenizer_goes_along(tmp_path):
    class StubTokenizer:
        bos_id, eos_id, pad_id, stop_ids = 5, 6, 7, (6, 8)

        def save(self, folder):
            (folder / "tokenizer.model").write_bytes(b"pieces")

    folder = tmp_path / "model"
    save_tiny(folder, tokenizer=StubTokenizer())
    assert (folder / "tokenizer.model").read_bytes() == b"pieces"
    ids = read_json(folder / "generation_config.json")
    assert ids == {"bos_token_id": 5, "eos_token_id": [6, 8], "pad_token_id": 7}


def test_the_progress_bar_is_for_large_models_at_a_terminal_only(tmp_path, monkeypatch, capsys):
    save_tiny(tmp_path / "model")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    load_checkpoint(tmp_path / "model")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("griffin_jax.checkpoints.placement._SHOWN_FROM_BYTES", 1)
    load_checkpoint(tmp_path / "model")
    assert "loading" in capsys.readouterr().err
    load_checkpoint(tmp_path / "model", progress=False)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    load_checkpoint(tmp_path / "model")
    assert capsys.readouterr().err == ""


def test_what_training_leaves_is_met_with_what_to_give(tmp_path):
    adapter = tmp_path / "run" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "some/model"}')
    assert "is a LoRA adapter of some/model, no model: give that one" in one_line_error(adapter)
    run = tmp_path / "run"
    (run / "run.json").write_text("{}")
    assert "is a training run of a LoRA adapter" in one_line_error(run)
    assert "--merge writes model/" in one_line_error(run)
    (run / "checkpoints" / "70").mkdir(parents=True)
    assert f"give the run's model, {run / 'model'}" in one_line_error(run / "checkpoints")
    (run / "model").mkdir()
    assert f"is a training run: its model is {run / 'model'}" in one_line_error(run)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "run.json").write_text("{}")
    assert "has not ended: the same command goes on" in one_line_error(tmp_path / "new")


def test_nested_json_is_one_line(tmp_path):
    save_tiny(tmp_path / "model", format="huggingface")
    (tmp_path / "model" / "config.json").write_text('{"a": ' + "[" * 100_000)
    assert "config.json is not JSON" in one_line_error(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 9999}, "num_hidden_layers is 9,999, but the folder has"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"conv1d_width": 10**6}, "conv1d_width"),
        ({"attention_window_size": 2**31 - 1}, "attention_window_size"),
        ({"vocab_size": 10**15}, "vocab_size"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps"),
        ({"rope_parameters": {"rope_theta": -5}}, "rope_theta"),
        ({"rope_parameters": {"partial_rotary_factor": 7}}, "partial_rotary_factor"),
        ({"block_types": ["x"]}, "config.json: block_types names 'x'"),
        ({"model_type": ["recurrent_gemma"]}, "is an unknown architecture"),
    ],
)
def test_absurd_settings_are_met_before_anything_is_made_of_them(tmp_path, change, message):
    save_tiny(tmp_path / "model", format="huggingface")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(read_json(path) | change))
    assert message in one_line_error(tmp_path / "model")
