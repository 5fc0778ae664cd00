import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from griffin_jax.checkpoints import load_checkpoint, open_checkpoint
from griffin_jax.checkpoints.deepmind import infer_config
from griffin_jax.config import GRIFFIN_7B, HAWK_7B, RECURRENTGEMMA_2B, RECURRENTGEMMA_9B
from tests.checkpoints.tiny_model import assert_same_tree, logits, one_line_error

V, D, F, N, R = 11, 8, 6, 2, 12
BLOCKS = ("recurrent_block", "recurrent_block", "attention_block", "recurrent_block")


def published_shapes(vocab_size, width, mlp_width, heads, recurrence_width, blocks):
    """Names and shapes of the published tree."""
    head_size, block = width // heads, recurrence_width // heads
    gate = {"w": (heads, block, block), "b": (heads, block)}
    x, out = (width, recurrence_width), (recurrence_width, width)
    temporal = {
        "recurrent_block": {
            "linear_x": {"kernel": x, "bias": x[1:]},
            "linear_y": {"kernel": x, "bias": x[1:]},
            "linear_out": {"kernel": out, "bias": out[1:]},
            "conv_1d": {"w": (4, recurrence_width), "b": (recurrence_width,)},
            "rg_lru": {"a_param": (recurrence_width,), "input_gate": gate, "a_gate": gate},
        },
        "attention_block": {
            "proj_q": {"kernel": (width, width)},
            "proj_k": {"kernel": (width, head_size)},
            "proj_v": {"kernel": (width, head_size)},
            "proj_final": {"kernel": (width, width), "bias": (width,)},
        },
    }
    tree = {
        "embedder": {"input_embedding": (vocab_size, width)},
        "final_norm": {"scale": (width,)},
    }
    for i, kind in enumerate(blocks):
        tree[f"blocks.{i}"] = {
            "temporal_pre_norm": {"scale": (width,)},
            "channel_pre_norm": {"scale": (width,)},
            kind: temporal[kind],
            "mlp_block": {
                "ffw_up": {"w": (2, width, mlp_width), "b": (2, 1, 1, mlp_width)},
                "ffw_down": {"kernel": (mlp_width, width), "bias": (width,)},
            },
        }
    return flax.traverse_util.flatten_dict(tree)


@pytest.fixture(scope="module")
def published() -> dict:
    rng = np.random.default_rng(0)
    return {
        key: rng.normal(size=shape).astype(np.float32)
        for key, shape in published_shapes(V, D, F, N, R, BLOCKS).items()
    }


def nested(arrays):
    return flax.traverse_util.unflatten_dict(arrays)


LAYOUTS = {
    "nested under params": lambda arrays: {"params": nested(arrays)},
    "nested": nested,
    "flat with dots": lambda arrays: {".".join(("params", *k)): v for k, v in arrays.items()},
    "flat with slashes": lambda arrays: {"/".join(k): v for k, v in arrays.items()},
    "modules with slashes": lambda arrays: {
        "params": nested({("/".join(k[:-1]), k[-1]): v for k, v in arrays.items()})
    },
}


def save(folder, tree, **kwargs):
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**kwargs)).save(folder, ocp.args.PyTreeSave(tree))


def expected_params(published):
    def at(*key):
        return published[key]

    def linear(*key):
        return {"weight": at(*key, "kernel").T, "bias": at(*key, "bias")}

    def gate(*key):
        return {"weight": at(*key, "w"), "bias": at(*key, "b")}

    params = {
        "embedder": {"embedding": at("embedder", "input_embedding")},
        "final_norm": {"scale": at("final_norm", "scale")},
    }
    for i, kind in enumerate(BLOCKS):
        block = f"blocks.{i}"
        up = {name: at(block, "mlp_block", "ffw_up", name) for name in ("w", "b")}
        if kind == "recurrent_block":
            mixing = {
                name: linear(block, kind, name) for name in ("linear_x", "linear_y", "linear_out")
            }
            mixing["conv_1d"] = gate(block, kind, "conv_1d")
            mixing["rg_lru"] = {
                "a_param": at(block, kind, "rg_lru", "a_param"),
                "input_gate": gate(block, kind, "rg_lru", "input_gate"),
                "a_gate": gate(block, kind, "rg_lru", "a_gate"),
            }
        else:
            mixing = {
                f"{x}_proj": {"weight": at(block, kind, f"proj_{x}", "kernel").T} for x in "qkv"
            }
            mixing["o_proj"] = linear(block, kind, "proj_final")
        params[f"blocks_{i}"] = {
            "temporal_pre_norm": {"scale": at(block, "temporal_pre_norm", "scale")},
            "channel_pre_norm": {"scale": at(block, "channel_pre_norm", "scale")},
            kind: mixing,
            "mlp_block": {
                "gate_proj": {"weight": up["w"][0].T, "bias": up["b"][0].reshape(F)},
                "up_proj": {"weight": up["w"][1].T, "bias": up["b"][1].reshape(F)},
                "down_proj": linear(block, "mlp_block", "ffw_down"),
            },
        }
    return params


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_naming_of_the_published_tree_is_read(tmp_path, published, layout):
    save(tmp_path / "model", LAYOUTS[layout](published))
    loaded = load_checkpoint(tmp_path / "model")
    assert_same_tree(loaded.params, expected_params(published))
    config = loaded.config
    assert (config.vocab_size, config.width, config.mlp_width) == (V, D, F)
    assert (config.num_heads, config.recurrence_width, config.num_kv_heads) == (N, R, 1)
    assert config.block_types == tuple(kind.removesuffix("_block") for kind in BLOCKS)


def test_the_older_storage_of_one_folder_per_array_is_read(tmp_path, published):
    save(tmp_path / "model", {"params": nested(published)}, use_ocdbt=False)
    loaded = load_checkpoint(tmp_path / "model", dtype="bfloat16")
    expected = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), expected_params(published))
    assert_same_tree(loaded.params, expected)


def test_an_archive_with_a_tokenizer_beside_the_tree_is_read(tmp_path, published):
    save(tmp_path / "2b-it", nested(published))
    (tmp_path / "tokenizer.model").write_bytes(b"")
    loaded = load_checkpoint(tmp_path)
    assert loaded.folder == tmp_path
    assert_same_tree(loaded.params, expected_params(published))


def test_two_trees_side_by_side_are_not_guessed_between(tmp_path, published):
    save(tmp_path / "2b", nested(published))
    save(tmp_path / "2b-it", nested(published))
    assert "one Orbax tree" in one_line_error(tmp_path)


@pytest.mark.parametrize(
    "preset", [RECURRENTGEMMA_2B, RECURRENTGEMMA_9B, GRIFFIN_7B, HAWK_7B], ids=str
)
def test_shapes_of_a_preset_tell_the_preset(tmp_path, preset):
    preset = preset.replace(vocab_size=99)
    shapes = published_shapes(
        preset.vocab_size,
        preset.width,
        preset.mlp_width,
        preset.num_heads,
        preset.recurrence_width,
        tuple(f"{kind}_block" for kind in preset.block_types),
    )
    assert infer_config({".".join(k): v for k, v in shapes.items()}, tmp_path) == preset


def test_other_shapes_get_the_settings_of_recurrentgemma(tmp_path):
    shapes = published_shapes(V, D, F, N, R, ("attention_block", "attention_block"))
    config = infer_config({".".join(k): v for k, v in shapes.items()}, tmp_path)
    assert (config.attention_window, config.logits_soft_cap) == (2048, 30.0)
    assert config.scale_embeddings
    assert config.num_heads == N
    assert config.block_pattern == ("attention",)


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        (("embedder", "input_embedding"), "it has no embedder.input_embedding"),
        (("blocks.2", "attention_block", "proj_q", "kernel"), "proj_q.kernel is missing"),
    ],
)
def test_a_missing_array_is_named(tmp_path, published, key, problem):
    save(tmp_path / "model", nested({k: v for k, v in published.items() if k != key}))
    assert problem in one_line_error(tmp_path / "model")


def test_an_unexpected_array_is_named(tmp_path, published):
    save(tmp_path / "model", nested(published | {("optimizer", "step"): np.zeros(2)}))
    assert "tensor optimizer.step is unexpected" in one_line_error(tmp_path / "model")


def test_an_array_of_the_wrong_shape_is_named(tmp_path, published):
    key = ("blocks.1", "mlp_block", "ffw_down", "kernel")
    save(tmp_path / "model", nested(published | {key: np.zeros((2, 3), np.float32)}))
    message = one_line_error(tmp_path / "model")
    assert ".".join(key) in message
    assert "(3, 2)" in message


def test_the_names_in_messages_are_those_of_the_tree(tmp_path, published):
    save(tmp_path / "model", nested(published))
    source = open_checkpoint(tmp_path / "model")
    name = source.stored_name("blocks_0/recurrent_block/rg_lru/a_gate/bias")
    assert name == "blocks.0.recurrent_block.rg_lru.a_gate.b"


@pytest.mark.parity
def test_a_tree_of_recurrentgemma_gives_the_same_logits(tmp_path):
    from recurrentgemma import common
    from recurrentgemma import jax as published_jax

    kinds = common.TemporalBlockType
    config = common.GriffinConfig(
        vocab_size=32,
        width=16,
        mlp_expanded_width=24,
        num_heads=2,
        block_types=(kinds.RECURRENT, kinds.ATTENTION, kinds.RECURRENT),
        embeddings_scale_by_sqrt_dim=True,
        attention_window_size=2048,
        logits_soft_cap=30.0,
        lru_width=24,
        scan_type=common.ScanType.LINEAR_NATIVE,
    )
    model = published_jax.Griffin(config)
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 32, (2, 20)), jnp.int32)
    positions = jnp.tile(jnp.arange(20), (2, 1))
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, positions)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape, scale=0.4), jnp.float32), shapes
    )
    save(tmp_path / "model", variables)
    forward = jax.jit(lambda *args: model.apply(*args, return_cache=False)[0])
    expected = np.asarray(forward(variables, tokens, positions))
    loaded = load_checkpoint(tmp_path / "model")
    actual = logits(loaded.config, loaded.params, tokens)
    assert np.ptp(expected) > 1
    assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


EMBEDDING = {"input_embedding": np.ones((4, 4), np.float32)}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"w": [np.ones(3), {"b": np.ones(3)}]}, "not of a Griffin model: it has no embedder"),
        ([np.ones(3), np.ones(3)], "not of a Griffin model"),
        ({"step": 70, "w": np.ones(3), "empty": {}, "none": None}, "not of a Griffin model"),
        ({"opt": (np.ones(3), (np.ones(3),)), "params": {"w": np.ones(3)}}, "not of a Griffin model"),
        ({"embedder": {"input_embedding": np.ones(4)}}, "is not a Griffin model's tree"),
        (
            {"embedder": EMBEDDING, "blocks.0": {"mlp_block": {"ffw_up": {"w": np.float32(3)}}}},
            "is not a Griffin model's tree",
        ),
    ],
)  # fmt: skip
def test_another_orbax_tree_is_one_line(tmp_path, tree, message):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "tree", tree)
    assert message in one_line_error(tmp_path / "tree")
