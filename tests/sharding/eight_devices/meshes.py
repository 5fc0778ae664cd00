"""A tiny model whose sizes divide by eight, the meshes it is tried on, and what a program sends."""

import collections
import re

import jax

from griffin_jax.config import ATTENTION, RECURRENT, GriffinConfig
from griffin_jax.models import put_on_mesh
from griffin_jax.sharding import make_mesh

CONFIG = GriffinConfig(
    vocab_size=128,
    width=64,
    mlp_width=128,
    num_layers=2,
    num_heads=8,
    block_pattern=(RECURRENT, ATTENTION),
    recurrence_width=128,
    head_size=8,
    attention_window=8,
)
# Wide enough for whole blocks of 64 in every part of a 4-bit weight.
WIDE = CONFIG.replace(width=128, mlp_width=512, recurrence_width=512, head_size=64)

MESHES = {
    "data 8": {"data": 8},
    "model 8": {"model": 8},
    "data 2, model 4": {"data": 2, "model": 4},
    "data 2, fsdp 2, model 2": {"data": 2, "fsdp": 2, "model": 2},
    "sequence 8": {"sequence": 8},
    "sequence 4, model 2": {"sequence": 4, "model": 2},
}
SOME = ("model 8", "data 2, fsdp 2, model 2", "sequence 4, model 2")
ALL_BUT_FSDP = {"data": 2, "sequence": 2, "model": 2}

_COLLECTIVE = re.compile(
    r" = \S+ (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)


def mesh_called(name: str) -> jax.sharding.Mesh:
    return make_mesh(**(ALL_BUT_FSDP if name == "all but fsdp" else MESHES[name]))


def on_mesh(params: dict, mesh: jax.sharding.Mesh, config: GriffinConfig = CONFIG) -> dict:
    return put_on_mesh(config, params, mesh)


def collectives(program: jax.stages.Compiled) -> dict[str, int]:
    """How many of each kind a program has."""
    return dict(collections.Counter(_COLLECTIVE.findall(program.as_text())))
