"""Griffin models as thin Linen modules over plain functions.

Shape letters:
  B batch           D width              N query heads, gate blocks   V vocabulary
  T time            R recurrence width   K key and value heads        W attention window
  S slots of the attention ring          H head size                  F MLP width
"""

from griffin_jax.models.griffin import Griffin, abstract_params, init_params
from griffin_jax.models.prepare import prepare_params
from griffin_jax.models.stack import is_stacked, stack_params, unstack_params
from griffin_jax.models.state import AttentionState, RecurrentState, State, Timeline, init_state

__all__ = [
    "AttentionState",
    "Griffin",
    "RecurrentState",
    "State",
    "Timeline",
    "abstract_params",
    "init_params",
    "init_state",
    "is_stacked",
    "prepare_params",
    "stack_params",
    "unstack_params",
]
