"""The programs that serve and train a model, with abstract arguments on a mesh."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import griffin_jax
from griffin_jax.checkpoints.huggingface import is_linear
from griffin_jax.config import GriffinConfig
from griffin_jax.inference import decode, prefill
from griffin_jax.inference.drawing import Needs, settings_of
from griffin_jax.inference.sampling import SamplingConfig
from griffin_jax.kernels.packed_matmul import lay_out
from griffin_jax.models import Griffin, abstract_params, init_state, param_shardings, stack_params
from griffin_jax.models.stack import num_groups, stack_state
from griffin_jax.quantization import FORMATS, PACKINGS, QuantizationConfig
from griffin_jax.sharding import (
    MeshShape,
    batch_sharding,
    check_batch,
    check_config,
    tree_shardings,
)
from griffin_jax.sharding.trees import tree_path
from griffin_jax.training.lora import LoRAConfig, adapt, init_adapter
from griffin_jax.training.optimizer import OptimizerConfig, adamw
from griffin_jax.training.train_step import TrainState, make_train_step

JOBS = ("decode", "prefill", "train", "lora")
# How linear weights are packed, by name.
WEIGHTS: dict[str, QuantizationConfig | None] = {"bf16": None} | PACKINGS


@dataclasses.dataclass(frozen=True)
class Program:
    """A program to be compiled.

    Attributes:
      model: Name of a preset.
      weights: A key of `WEIGHTS`; training keeps float32 master weights.
      job: "decode" draws a burst of tokens greedily, "prefill" reads a chunk of prompts, "train"
        makes a step of AdamW, "lora" one of an adapter of rank 16 for all linear layers.
      batch_size: Rows, over all chips.
      tokens: The number of tokens of each row in a call, for prefill and training.
      mesh: How the chips share the work.
      stack_layers: The layers run in a loop over groups; see `stack_params`. Under "lora" they do not.
      remat: For training, see `Griffin`.
      loss_chunks: For training, see `token_losses`.
      microbatches: For training, see `make_train_step`.
    """

    model: str
    weights: str = "bf16"
    job: str = "decode"
    batch_size: int = 1
    tokens: int = 2048
    mesh: MeshShape = dataclasses.field(default_factory=MeshShape)
    stack_layers: bool = True
    remat: str = "block"
    loss_chunks: int = 1
    microbatches: int = 1

    def __post_init__(self):
        for name, known in (("job", JOBS), ("weights", WEIGHTS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} is one of {', '.join(known)}, not {getattr(self, name)!r}"
                )
        for name in ("batch_size", "tokens", "loss_chunks", "microbatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.job == "train" and self.weights != "bf16":
            raise ValueError(f"packed weights are not trained: weights must be bf16 for {self.job}")

    @property
    def config(self) -> GriffinConfig:
        return griffin_jax.preset(self.model)


def lower(program: Program, mesh: Mesh) -> jax.stages.Lowered:
    """Traces a program for the devices of a mesh, which may be those of `topology.devices`.

    Raises:
      MeshError: (a ValueError) the mesh does not divide the model or the batch.
    """
    check_config(program.config, mesh)
    check_batch(program.batch_size, mesh)
    with jax.set_mesh(mesh):
        lowers = {
            "decode": _lower_decode,
            "prefill": _lower_prefill,
            "train": _lower_train,
            "lora": _lower_lora,
        }
        return lowers[program.job](program, mesh)


def abstract_arguments(program: Program) -> dict[str, Any]:
    """Returns the parameters as shapes, nowhere in particular."""
    if program.job == "train":
        return _stacked(program, abstract_params(program.config))
    return _stacked(program, _inference_params(program))


def _arguments(program, mesh):
    """Returns the parameters and the decoding state where they lie on a mesh."""
    params, state = abstract_arguments(program), _state(program)
    params = _place(params, param_shardings(program.config, params, mesh))
    return lay_out(params), _place(state, tree_shardings(state, mesh))


def _inference_params(program):
    settings = WEIGHTS[program.weights]

    def pack(path, leaf):
        if settings is None or not is_linear(tree_path(path)):
            return leaf
        return FORMATS[settings.quant_type].abstract(leaf.shape, leaf.dtype, settings)

    params = abstract_params(program.config, jnp.bfloat16)
    return jax.tree_util.tree_map_with_path(pack, params)


def _stacked(program, params):
    if not _stacks(program):
        return params
    return jax.eval_shape(lambda params: stack_params(program.config, params), params)


def _stacks(program):
    return program.stack_layers and program.job != "lora" and num_groups(program.config) > 0


def _state(program):
    def build():
        state = init_state(program.config, program.batch_size, jnp.bfloat16, program.tokens)
        return stack_state(program.config, state) if _stacks(program) else state

    return jax.eval_shape(build)


def _place(tree, shardings):
    return jax.tree.map(_struct, tree, shardings)


def _struct(leaf, sharding):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _model(program, **options):
    return Griffin(program.config, dtype=jnp.bfloat16, **options)


def _lower_decode(program, mesh):
    params, state = _arguments(program, mesh)
    whole = NamedSharding(mesh, PartitionSpec())

    def array(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

    batch = program.batch_size
    entry = decode.entry_of(0, 0, 0, np.zeros(2, np.uint32), (), settings_of(SamplingConfig()))
    rows = jax.tree.map(lambda x: array((batch, *np.shape(x)), np.result_type(x)), entry)
    return decode.draw_burst.lower(
        _model(program),
        16,
        Needs(),
        (),
        params,
        rows.replace(state=state),
        array((batch,), jnp.bool_),
        array((), jnp.int32),
    )


def _lower_prefill(program, mesh):
    params, state = _arguments(program, mesh)
    shape = (program.batch_size, program.tokens)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=batch_sharding(mesh, shape))
    rows = NamedSharding(mesh, PartitionSpec(batch_sharding(mesh).spec[0]))
    lengths = jax.ShapeDtypeStruct(shape[:1], jnp.int32, sharding=rows)
    return prefill.read_chunk.lower(_model(program), params, state, tokens, lengths)


def _lower_train(program, mesh):
    return _lower_step(program, mesh, abstract_arguments(program))


def _lower_lora(program, mesh):
    adapter = LoRAConfig()
    base = abstract_arguments(program)
    params = jax.eval_shape(lambda base: init_adapter(adapter, base, jax.random.key(0)), base)
    base = _place(base, param_shardings(program.config, base, mesh))
    return _lower_step(program, mesh, params, base, functools.partial(adapt, adapter))


def _lower_step(program, mesh, params, frozen=None, assemble=lambda trainable, _: trainable):
    optimizer = adamw(OptimizerConfig(), steps=1000)
    state = jax.eval_shape(
        lambda params: TrainState(jnp.int32(0), params, optimizer.init(params)), params
    )
    shape = (program.batch_size, program.tokens)
    sharding = batch_sharding(mesh, shape)
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, dtype in (
            ("inputs", jnp.int32),
            ("targets", jnp.int32),
            ("positions", jnp.int32),
            ("mask", jnp.float32),
        )
    }
    step = make_train_step(
        _model(program, remat=program.remat),
        optimizer,
        mesh,
        assemble,
        microbatches=program.microbatches,
        loss_chunks=program.loss_chunks,
    )
    state = _place(state, param_shardings(program.config, state, mesh))
    return step.lower(state, frozen or {}, batch)
