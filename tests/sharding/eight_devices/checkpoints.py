"""Checkpoints go straight to shards, whatever they were saved from, and back."""

import dataclasses

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import griffin_jax
from griffin_jax.checkpoints import placement
from griffin_jax.config import ATTENTION, RECURRENT
from griffin_jax.language_model import LanguageModel
from griffin_jax.models import param_shardings
from griffin_jax.sharding import MeshError, make_mesh
from tests.checkpoints.test_deepmind import BLOCKS, nested, published_shapes
from tests.checkpoints.tiny_model import assert_same_tree
from tests.sharding.eight_devices.meshes import CONFIG, mesh_called, on_mesh
from tests.tiny import params_of

# What all formats can hold, with rows of whole blocks for four bits.
SHAPE = CONFIG.replace(
    width=128,
    mlp_width=512,
    recurrence_width=512,
    head_size=16,
    num_layers=3,
    block_pattern=(RECURRENT, RECURRENT, ATTENTION),
)
MESH = "data 2, fsdp 2, model 2"


@pytest.fixture(scope="module")
def plain():
    return LanguageModel(SHAPE, params_of(SHAPE))


@pytest.fixture(scope="module")
def packed(plain):
    settings = griffin_jax.QuantizationConfig(
        bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    return griffin_jax.quantize(plain, settings)


def lies_as_the_table_says(lm, mesh):
    wanted = param_shardings(lm.config, lm.params, mesh)
    same = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), lm.params, wanted)
    return all(jax.tree.leaves(same))


@pytest.mark.parametrize("format", ["orbax", "huggingface"])
@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_saved_from_one_mesh_loaded_onto_another(kind, format, tmp_path, request):
    lm = request.getfixturevalue(kind)
    on_first = dataclasses.replace(
        lm, params=on_mesh(lm.params, make_mesh(data=4, model=2), lm.config)
    )
    griffin_jax.save(on_first, tmp_path / "model", format=format)
    mesh = mesh_called(MESH)
    loaded = griffin_jax.load(tmp_path / "model", mesh=mesh, dtype="float32")
    assert loaded.mesh == mesh and lies_as_the_table_says(loaded, mesh)
    assert_same_tree(loaded.params, lm.params)
    assert_same_tree(griffin_jax.load(tmp_path / "model", dtype="float32").params, lm.params)


def test_stacked_layers_are_saved_and_loaded(plain, tmp_path):
    griffin_jax.save(plain, tmp_path / "model")
    mesh = mesh_called(MESH)
    loaded = griffin_jax.load(tmp_path / "model", mesh=mesh, stack_layers=True)
    assert lies_as_the_table_says(loaded, mesh) and "groups" in loaded.params
    griffin_jax.save(loaded, tmp_path / "again", format="huggingface")
    assert_same_tree(griffin_jax.load(tmp_path / "again").params, plain.params)


def test_a_model_is_packed_on_the_way_to_a_mesh_and_on_it(plain, packed, tmp_path):
    griffin_jax.save(plain, tmp_path / "model", format="huggingface")
    mesh = mesh_called(MESH)
    loaded = griffin_jax.load(
        tmp_path / "model", mesh=mesh, quantization=packed.quantization, dtype="float32"
    )
    assert_same_tree(loaded.params, packed.params)
    on_it = dataclasses.replace(plain, params=on_mesh(plain.params, mesh, plain.config))
    on_it = griffin_jax.quantize(on_it, packed.quantization)
    assert lies_as_the_table_says(loaded, mesh) and lies_as_the_table_says(on_it, mesh)
    assert_same_tree(on_it.params, packed.params)


def test_a_published_tree_goes_straight_to_shards(tmp_path):
    rng = np.random.default_rng(0)
    shapes = published_shapes(16, 32, 24, 4, 48, BLOCKS)
    arrays = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).save(
        tmp_path / "tree", ocp.args.PyTreeSave(nested(arrays))
    )
    mesh = mesh_called(MESH)
    loaded = griffin_jax.load(tmp_path / "tree", mesh=mesh, dtype="bfloat16")
    assert lies_as_the_table_says(loaded, mesh)
    assert_same_tree(loaded.params, griffin_jax.load(tmp_path / "tree", dtype="bfloat16").params)


def test_of_a_mapped_tensor_only_the_part_of_a_device_is_copied(plain, tmp_path, monkeypatch):
    griffin_jax.save(plain, tmp_path / "model", format="huggingface")
    asked = []
    original = jax.make_array_from_callback

    def recorded(shape, sharding, callback):
        def part(index):
            asked.append((np.prod(shape), callback(index).size))
            return callback(index)

        return original(shape, sharding, part)

    monkeypatch.setattr(placement.jax, "make_array_from_callback", recorded)
    griffin_jax.load(tmp_path / "model", mesh=make_mesh(model=8), dtype="float32")
    embedding = SHAPE.vocab_size * SHAPE.width
    assert max(part for _, part in asked) < embedding
    assert {part for whole, part in asked if whole == SHAPE.mlp_width * SHAPE.width} == {
        SHAPE.mlp_width * SHAPE.width // 8
    }


def test_a_mesh_that_does_not_divide_the_model_is_refused_before_anything_is_read(plain, tmp_path):
    griffin_jax.save(plain, tmp_path / "model", format="huggingface")
    (tmp_path / "model" / "model.safetensors").touch()
    mesh = make_mesh(model=3, devices=jax.devices()[:3])
    with pytest.raises(MeshError, match=r"model=3 does not divide num_heads 8; .* 1, 2, 4, 8$"):
        griffin_jax.load(tmp_path / "model", mesh=mesh)
