"""Kernels and shardings compile for TPU v5e; needs libtpu, and no TPU."""

import functools
import importlib.util
import re

import jax
import pytest

import griffin_jax.config
from griffin_jax.ahead_of_time import programs, roofline, topologies
from griffin_jax.ahead_of_time.hlo import Module
from griffin_jax.ahead_of_time.programs import Program
from griffin_jax.ahead_of_time.report import compile_program
from griffin_jax.config import GriffinConfig
from griffin_jax.sharding import MeshError, MeshShape, make_mesh
from griffin_jax.training.lora import LoRAConfig, init_adapter

SMALL = GriffinConfig(
    vocab_size=1024,
    width=512,
    mlp_width=1024,
    num_layers=7,
    num_heads=4,
    head_size=128,
    attention_window=256,
)

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)


@pytest.fixture(autouse=True)
def small_preset(monkeypatch):
    monkeypatch.setitem(griffin_jax.config.PRESETS, "small", SMALL)


def lower(program, topology="v5e:2x2"):
    mesh = make_mesh(**program.mesh.sizes(), devices=topologies.devices(topology))
    return programs.lower(program, mesh)


@needs_libtpu
def test_packed_decoding_over_four_chips_has_an_all_reduce_per_half_layer_and_one_more():
    program = Program("small", "nf4", "decode", batch_size=4, mesh=MeshShape(model=4))
    module = Module(lower(program).compile().as_text())
    found = {kind: (c.count, c.num_bytes) for kind, c in module.collectives().items()}
    assert found.pop("all-reduce")[0] == 2 * SMALL.num_layers + 1
    # The sampler's: five numbers of each row and chip.
    assert found == {"all-gather": (1, 4 * 4 * 5 * 4)}
    # No weight is moved about, nor decoded as a whole.
    made = [x.type for x, _, _ in module.executed() if x.opcode in ("copy", "transpose", "fusion")]
    assert made and not [type for type in made if type.startswith("u8[")]
    assert not [type for type in made if re.match(r"(bf16|f32)\[\d{3,},\d{3,}\]", type)]


@needs_libtpu
@pytest.mark.parametrize("mesh", [MeshShape(), MeshShape(model=4)])
def test_decoding_with_8_bit_weights_converts_no_weight_as_a_whole(mesh):
    program = Program("small", "int8", "decode", batch_size=4, mesh=mesh)
    module = Module(lower(program, "v5e:2x2" if mesh.model > 1 else "v5e:1x1").compile().as_text())
    instructions = [x for x, _, _ in module.executed()]
    kernels = [x for x in instructions if x.name.startswith("int8_matmul")]
    assert kernels and all(x.opcode == "custom-call" for x in kernels)
    made = [x.type for x in instructions if x.opcode in ("copy", "transpose", "fusion", "convert")]
    assert made and not [type for type in made if type.startswith("s8[")]
    assert not [type for type in made if re.match(r"(bf16|f32)\[\d{3,},\d{3,}\]", type)]
    found = {kind: c.count for kind, c in module.collectives().items()}
    assert found.get("all-reduce", 0) == (2 * SMALL.num_layers + 1 if mesh.model > 1 else 0)


@needs_libtpu
def test_prefill_runs_every_kernel_of_the_tpu():
    mesh = MeshShape(data=2, model=2)
    program = Program("small", "nf4-double", "prefill", batch_size=2, tokens=512, mesh=mesh)
    text = lower(program).compile().as_text()
    kernels = {
        x.name.split(".")[0]
        for x, _, _ in Module(text).executed()
        if x.opcode == "custom-call" and "tpu_custom_call" in x.attributes
    }
    assert kernels == {"packed_matmul", "rg_lru"}


@needs_libtpu
def test_training_compiles_with_parameters_cut_over_the_chips(monkeypatch):
    monkeypatch.setitem(griffin_jax.config.PRESETS, "small", SMALL.replace(num_layers=3))
    mesh = MeshShape(fsdp=2, model=2)
    program = Program("small", job="train", batch_size=4, tokens=128, mesh=mesh, remat="none")
    assert "rg_lru_backward" in lower(program).as_text()
    result = compile_program("v5e:2x2", program)
    assert result["fits"] and "all-gather" in result["collectives"]
    count = sum(x.size for x in jax.tree.leaves(programs.abstract_arguments(program)))
    # Weights and two moments in float32, a quarter on each chip but for what is small.
    assert result["memory"]["arguments"] < 1.2 * 12 * count / 4


@needs_libtpu
def test_an_adapter_over_packed_weights_compiles_with_both_cut_over_the_chips(monkeypatch):
    monkeypatch.setitem(griffin_jax.config.PRESETS, "small", SMALL.replace(num_layers=3))
    mesh = MeshShape(fsdp=4)
    program = Program("small", "nf4", "lora", 4, tokens=64, mesh=mesh, remat="none")
    result = compile_program("v5e:2x2", program)
    base = roofline.tree_bytes(programs.abstract_arguments(program))
    weights = programs.abstract_arguments(program)
    start = functools.partial(init_adapter, LoRAConfig())
    adapter = roofline.tree_bytes(jax.eval_shape(start, weights, jax.random.key(0)))
    # A quarter of the base as it is stored, and of the adapter with its two moments; tiles pad thin ones.
    assert 0 < 2 * result["memory"]["arguments"] < base + 3 * adapter
    assert result["collectives"]["all-gather"]["bytes"] < 4 * base


@needs_libtpu
def test_more_than_the_memory_of_a_chip_is_a_no_with_its_size():
    result = compile_program("v5e:1x1", Program("small", "nf4", "decode", batch_size=65_536))
    assert not result["fits"] and result["memory"]["peak"] > 15.75 * 2**30


@needs_libtpu
def test_a_mesh_that_does_not_divide_the_model_is_refused_with_one_that_would():
    with pytest.raises(MeshError, match="does not divide num_heads 10; it may be 1, 2, 5, 10"):
        lower(Program("recurrentgemma-2b", mesh=MeshShape(model=4)))


@pytest.mark.parametrize(
    "topology, mesh, message",
    [
        ("v5e:3x3", {}, "no topology 'v5e:3x3'; there are v5e:1x1, v5e:2x2"),
        ("v5e:2x2", {"model": 8}, "there are 4 devices, mesh model=8 has 8"),
        ("v5e:2x2", {"model": 3, "data": -1}, "mesh data=-1 x model=3 needs a multiple of 3"),
    ],
)
def test_topologies_and_meshes_that_are_none_are_refused_in_one_line(topology, mesh, message):
    with pytest.raises(ValueError, match=message):
        compile_program(topology, Program("small", mesh=MeshShape(**mesh)))


def test_a_missing_libtpu_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"libtpu, which is not installed: pip install"):
        topologies.devices("v5e:2x2")


@pytest.mark.parametrize(
    "values, message",
    [
        ({"job": "serve"}, "job is one of decode, prefill, train, lora, not 'serve'"),
        ({"weights": "int4"}, "weights is one of bf16, nf4, fp4, .*int8, not 'int4'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"job": "train", "weights": "nf4"}, "packed weights are not trained"),
    ],
)
def test_programs_that_are_none_are_refused_in_one_line(values, message):
    with pytest.raises(ValueError, match=message):
        Program("small", **values)
