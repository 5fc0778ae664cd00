"""The table, and meshes that do not fit; nothing here needs devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from griffin_jax.config import PRESETS, RECURRENTGEMMA_2B, RECURRENTGEMMA_9B
from griffin_jax.models import (
    abstract_params,
    declarations,
    init_state,
    kind_at,
    leaf_shardings,
    param_axes,
    param_shardings,
    stack_params,
)
from griffin_jax.quantization import abstract
from griffin_jax.sharding import (
    AXES,
    MeshError,
    MeshShape,
    check_batch,
    check_config,
    make_mesh,
    tree_shardings,
)
from griffin_jax.sharding.layouts import split_here
from griffin_jax.training.optimizer import OptimizerConfig, adamw
from tests.tiny import CONFIGS

DOWN = "blocks_0/mlp_block/down_proj/weight"


def mesh(**sizes):
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    return AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * 4)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[] if name in ("tiny", "recurrentgemma-2b", "gemma-2b") else pytest.mark.slow,
        )
        for name in PRESETS
    ],
)
def test_every_parameter_and_state_of_every_preset_has_a_rule(name):
    config = PRESETS[name]
    params = abstract_params(config)
    shardings = param_shardings(config, params, mesh(fsdp=2, model=2))
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
    ):
        parts = sharding.shard_shape(leaf.shape)
        small = len(leaf.shape) == 1 or "conv_1d" in str(path)
        assert small or parts != leaf.shape, path
    state = jax.eval_shape(lambda: init_state(config, 4, capacity=64))
    tree_shardings(state, mesh(data=2, model=2))


def test_each_leaf_of_the_nine_billion_lies_as_the_page_says():
    config = RECURRENTGEMMA_9B
    found = param_shardings(config, abstract_params(config), mesh(fsdp=4, model=8))
    block, attention = found["blocks_0"]["recurrent_block"], found["blocks_2"]["attention_block"]
    specs = {
        "embedding": found["embedder"]["embedding"],
        "linear_x": block["linear_x"]["weight"],
        "linear_x bias": block["linear_x"]["bias"],
        "linear_out": block["linear_out"]["weight"],
        "conv": block["conv_1d"]["weight"],
        "gate": block["rg_lru"]["a_gate"]["weight"],
        "gate bias": block["rg_lru"]["a_gate"]["bias"],
        "a": block["rg_lru"]["a_param"],
        "q": attention["q_proj"]["weight"],
        "k": attention["k_proj"]["weight"],
        "o": attention["o_proj"]["weight"],
        "norm": found["final_norm"]["scale"],
    }
    assert {name: sharding.spec for name, sharding in specs.items()} == {
        "embedding": PartitionSpec("model", "fsdp"),
        "linear_x": PartitionSpec("model", "fsdp"),
        "linear_x bias": PartitionSpec("model"),
        "linear_out": PartitionSpec("fsdp", "model"),
        "conv": PartitionSpec(None, "model"),
        "gate": PartitionSpec("model", "fsdp"),
        "gate bias": PartitionSpec("model"),
        "a": PartitionSpec("model"),
        "q": PartitionSpec("model", "fsdp"),
        "k": PartitionSpec(None, "fsdp"),
        "o": PartitionSpec("fsdp", "model"),
        "norm": PartitionSpec(),
    }


def test_four_bit_leaves_lie_as_their_weight_and_flat_ones_are_whole():
    def specs(shape, **sizes):
        weight = abstract(shape, "float32", double_quant=True)
        weight = leaf_shardings(CONFIGS["griffin"], mesh(**sizes), DOWN, weight)
        return {name: getattr(weight, name).spec for name in ("packed", "absmax", "nested_absmax")}

    whole = PartitionSpec()
    assert specs((64, 512), fsdp=2, model=8) == {
        "packed": PartitionSpec("fsdp", "model"),
        "absmax": PartitionSpec("fsdp", "model"),
        "nested_absmax": whole,
    }
    assert specs((64, 96), fsdp=2, model=2) == dict.fromkeys(
        ("packed", "absmax", "nested_absmax"), whole
    )
    # 256 is 4 blocks of 64: parts end at their borders.
    with pytest.raises(
        MeshError, match=r"model=8 .*down_proj/weight/absmax \[64, 4\]; .* 1, 2, 4$"
    ):
        specs((64, 256), model=8)


def test_a_stacked_flat_weight_is_not_taken_for_one_with_rows():
    weight = abstract((32, 48), "float32")
    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), weight)
    tree = {"groups": {"blocks_0": {"mlp_block": {"up_proj": {"weight": stacked}}}}}
    found = param_shardings(CONFIGS["griffin"], tree, mesh(model=2))
    assert jax.tree.leaves(found)[0].spec == PartitionSpec()


def test_stacks_and_optimizer_state_lie_as_the_parameters():
    config = CONFIGS["griffin"].replace(num_layers=4)
    params = abstract_params(config)
    stacked = jax.eval_shape(lambda p: stack_params(config, p), params)
    one = param_shardings(config, params, mesh(model=2))["blocks_0"]["mlp_block"]["up_proj"]
    one = one["weight"].spec
    several = param_shardings(config, stacked, mesh(model=2))
    several = several["groups"]["blocks_0"]["mlp_block"]["up_proj"]
    assert several["weight"].spec == PartitionSpec(None, *one)
    state = jax.eval_shape(adamw(OptimizerConfig(), 1000).init, params)
    moments = param_shardings(config, state, mesh(model=2))[1][0]
    assert moments.count.spec == PartitionSpec()
    assert moments.nu["blocks_0"]["mlp_block"]["up_proj"]["weight"].spec == one


def test_a_linear_layer_says_on_which_side_it_is_cut():
    known = declarations(RECURRENTGEMMA_2B)
    with jax.sharding.use_abstract_mesh(mesh(model=2)):
        sides = {
            name: split_here(known[f"blocks_2/attention_block/{name}/weight"].axes)
            for name in ("q_proj", "k_proj", "o_proj")
        }
    assert sides == {"q_proj": "out", "k_proj": None, "o_proj": "in"}


def test_an_array_that_no_layer_declares_is_named():
    config, array = CONFIGS["griffin"], jax.ShapeDtypeStruct((8, 8), jnp.float32)
    with pytest.raises(ValueError, match="no parameter blocks_0/router/kernel"):
        param_axes(config, {"blocks_0": {"router": {"kernel": array}}})
    with pytest.raises(ValueError, match="no layer of any model has a parameter blocks_0/router/k"):
        kind_at("blocks_0/router/kernel")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"model": 4}, r"mesh axis model=4 does not divide num_heads 10; it may be 1, 2, 5, 10$"),
        (
            {"fsdp": 3},
            r"fsdp=3 does not divide dimension 0 of .*/weight \[2560, 7680\]; it may be 1, 2, 4, 8, ",
        ),
    ],
)
def test_a_mesh_that_does_not_divide_says_which_would(sizes, message):
    with pytest.raises(MeshError, match=message) as error:
        check_config(RECURRENTGEMMA_2B, mesh(**sizes))
        params = abstract_params(RECURRENTGEMMA_2B)
        param_shardings(RECURRENTGEMMA_2B, params, mesh(**sizes))
    assert "\n" not in str(error.value)


def test_a_batch_that_does_not_divide_says_which_would():
    with pytest.raises(MeshError, match=r"batch of 6 .* data=2 x fsdp=2; the next that does is 8"):
        check_batch(6, mesh(data=2, fsdp=2))


def test_one_array_is_checked_too():
    def lies(**sizes):
        path, array = "blocks_0/recurrent_block/conv_1d/weight", jnp.zeros((4, 6))
        return leaf_shardings(CONFIGS["griffin"], mesh(**sizes), path, array)

    assert lies(model=2).spec == PartitionSpec(None, "model")
    with pytest.raises(MeshError, match=r"model=4 .*_1d/weight \[4, 6\]; it may be 1, 2, 3, 6"):
        lies(model=4)


def test_the_sizes_of_a_mesh_make_up_the_devices():
    assert MeshShape(fsdp=-1, model=2).resolve(8) == MeshShape(fsdp=4, model=2)
    assert dict(make_mesh(devices=jax.devices()[:1]).shape) == dict.fromkeys(AXES, 1)
    for shape, message in (
        (MeshShape(model=16), "there are 8 devices, mesh model=16 has 16: ask for fewer"),
        (MeshShape(data=2, model=2), "there are 8 devices, mesh data=2 x model=2 has 4: let an"),
        (MeshShape(fsdp=-1, model=3), "mesh fsdp=-1 x model=3 needs a multiple of 3"),
    ):
        with pytest.raises(ValueError, match=message):
            shape.resolve(8)
    with pytest.raises(ValueError, match=r"mesh.model must be a whole number of at least 1, or -1"):
        MeshShape(model=0)
    with pytest.raises(ValueError, match="only one axis of a mesh may be -1"):
        MeshShape(data=-1, model=-1)


def test_a_state_has_the_same_rule_stacked_or_not():
    config = CONFIGS["griffin"]
    state = jax.eval_shape(lambda: init_state(config, 4, jnp.float32))
    tree_shardings(state, mesh(data=4, model=4))
    rings = tree_shardings(state, mesh(data=4)).blocks[1]
    assert rings.keys.spec == PartitionSpec(("data", "fsdp"))
