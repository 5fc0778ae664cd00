"""Griffin models as thin Linen modules over plain functions.

Shape letters:
  B batch           D width              N query heads, gate blocks   V vocabulary
  T time            R recurrence width   K key and value heads        W attention window
  S slots of the attention ring          H head size                  F MLP width
"""

from griffin_jax.models.attention import AttentionState
from griffin_jax.models.blocks import BLOCKS, init_state
from griffin_jax.models.declarations import (
    abstract_params,
    adapted_layers,
    declarations,
    kind_at,
    leaf_shardings,
    param_axes,
    param_shardings,
    put_on_mesh,
)
from griffin_jax.models.griffin import Griffin, init_params
from griffin_jax.models.lora_weight import adapt
from griffin_jax.models.prepare import decodes_once, prepare_decoding, prepare_params
from griffin_jax.models.rglru import RecurrentState
from griffin_jax.models.stack import is_stacked, stack_params, unstack_params
from griffin_jax.models.state import State, Timeline

__all__ = [
    "BLOCKS",
    "AttentionState",
    "Griffin",
    "RecurrentState",
    "State",
    "Timeline",
    "abstract_params",
    "adapt",
    "adapted_layers",
    "declarations",
    "decodes_once",
    "init_params",
    "init_state",
    "is_stacked",
    "kind_at",
    "leaf_shardings",
    "param_axes",
    "param_shardings",
    "prepare_decoding",
    "prepare_params",
    "put_on_mesh",
    "stack_params",
    "unstack_params",
]
