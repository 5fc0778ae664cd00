"""Layers stacked by group, so that a deep model is compiled as one group in a loop.

The layers of a model repeat a pattern of P kinds: (recurrent, recurrent, attention). Of L layers
the first G P make G groups, and those at one place of the pattern are stacked: their parameters are
one tree, groups/blocks_<place>/..., whose arrays have a leading axis of G. Layers left over at the
end keep their own trees. 38 layers are 12 groups and 2 layers.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from griffin_jax.config import GriffinConfig
from griffin_jax.layer_of import LayerOf
from griffin_jax.models.state import BlockState, State
from griffin_jax.weight import is_weight

GROUPS = "groups"
# Where a loop over groups is the better choice, by measurement; see dev/kernels/tpu.md.
STACKED_PLATFORMS = ("tpu",)


@flax.struct.dataclass
class StackedState:
    """`State` in the layout of stacked layers.

    Attributes:
      position: int32[B], as in `State`.
      groups: For each place of the pattern a state whose arrays are [G, B, ...].
      rest: The states of the layers left over.
    """

    position: jax.Array
    groups: tuple[BlockState, ...]
    rest: tuple[BlockState, ...]

    def axes(self) -> "StackedState":
        """Returns what the dimensions of each array are; see `BlockState.axes`."""
        groups, rest = (tuple(s.axes() for s in states) for states in (self.groups, self.rest))
        return StackedState(position=("batch",), groups=groups, rest=rest)


AnyState = State | StackedState


def num_groups(config: GriffinConfig) -> int:
    """Returns whole repetitions of the pattern, G."""
    return config.num_layers // len(config.block_pattern)


def stacks_by_default(config: GriffinConfig) -> bool:
    """Returns whether to stack the layers of a model where nobody says."""
    return jax.default_backend() in STACKED_PLATFORMS and num_groups(config) > 1


def is_stacked(params: dict[str, Any]) -> bool:
    return GROUPS in params


def stack_params(
    config: GriffinConfig, params: dict[str, Any], *, consume: bool = False
) -> dict[str, Any]:
    """Returns parameters in the layout of stacked layers, which `Griffin.apply` reads as well.

    Args:
      config: The model's shape.
      params: One tree per layer, blocks_<i>, as `init_params` makes them.
      consume: Empty `params` on the way, so that no second copy of the weights comes to be.

    Raises:
      ValueError: a parameter is of several kinds in the layers of one place, such as packed in
        some and not in others.
    """
    places = len(config.block_pattern)
    groups = {}
    for place in range(places):
        names = [f"blocks_{place + g * places}" for g in range(num_groups(config))]
        if names:
            groups[f"blocks_{place}"] = _stack(
                [params[name] for name in names], f"{names[0]} to {names[-1]}", consume
            )
    stacked = num_groups(config) * places
    rest = {k: v for k, v in params.items() if k not in {f"blocks_{i}" for i in range(stacked)}}
    if consume:
        params.clear()
    return {GROUPS: groups, **rest} if groups else rest


def _stack(layers, path, consume):
    """Trees of one form, stacked leaf by leaf."""
    if isinstance(layers[0], dict):
        return {
            name: _stack(
                [layer.pop(name) if consume else layer[name] for layer in layers],
                f"{path}/{name}",
                consume,
            )
            for name in list(layers[0])
        }
    kinds = {jax.tree.structure(layer) for layer in layers}
    kinds |= {(x.shape, x.dtype) for x in jax.tree.leaves(layers[1:])} - {
        (x.shape, x.dtype) for x in jax.tree.leaves(layers[0])
    }
    if len(kinds) > 1:
        raise ValueError(
            f"parameter {path} is not of one kind in all these layers, so they cannot be stacked: "
            "load them unstacked, or pack all or none of them"
        )
    return jax.tree.map(lambda *parts: jnp.stack(parts), *layers)


def unstack_params(config: GriffinConfig, params: dict[str, Any]) -> dict[str, Any]:
    """Returns the inverse of `stack_params`; other parameters are returned as they are."""
    if not is_stacked(params):
        return params
    places = len(config.block_pattern)
    layers = {
        f"blocks_{place + g * places}": jax.tree.map(lambda x, g=g: x[g], tree)
        for place, tree in enumerate(params[GROUPS].values())
        for g in range(num_groups(config))
    }
    return layers | {name: tree for name, tree in params.items() if name != GROUPS}


def stack_state(config: GriffinConfig, state: AnyState) -> StackedState:
    """Returns the state in the layout of stacked layers; one that is in it as it is."""
    if isinstance(state, StackedState):
        return state
    places = len(config.block_pattern)
    stacked = num_groups(config) * places
    groups = tuple(
        jax.tree.map(lambda *parts: jnp.stack(parts), *state.blocks[place:stacked:places])
        for place in range(places if stacked else 0)
    )
    return StackedState(position=state.position, groups=groups, rest=state.blocks[stacked:])


def unstack_state(state: AnyState) -> State:
    """Returns the inverse of `stack_state`; a state that is not stacked as it is."""
    if isinstance(state, State):
        return state
    count = jax.tree.leaves(state.groups)[0].shape[0] if state.groups else 0
    layers = [
        jax.tree.map(lambda x, g=g: x[g], stack) for g in range(count) for stack in state.groups
    ]
    return State(position=state.position, blocks=(*layers, *state.rest))


def scan_groups(
    blocks: list[Callable],
    params: dict[str, Any],
    x: jax.Array,
    states: tuple[BlockState, ...],
) -> tuple[jax.Array, tuple[BlockState, ...], tuple[dict, ...]]:
    """Runs all groups, one after another, in a loop that compiles one.

    Weights that are read in their stack and states that grow reach the blocks as `LayerOf` views,
    the latter to be written in place. Other arrays are sliced.

    Args:
      blocks: For each place of the pattern a function (params, x, state, group) -> (x, state),
        recorded; see `models.places`.
      params: The stacked parameters, params["groups"].
      x: [B, T, D].
      states: `StackedState.groups`.

    Returns:
      x, the states after, and for each place of the pattern what was recorded there, [G, ...].
    """
    leaves, treedef = jax.tree.flatten(params, is_leaf=_stays)
    sliced = [None if _stays(leaf) else leaf for leaf in leaves]

    def group(carry, inputs):
        x, states = carry
        index, arrays = inputs
        layer = treedef.unflatten(
            LayerOf(leaf, index) if array is None else array
            for leaf, array in zip(leaves, arrays, strict=True)
        )
        after, recorded = [], []
        for block, name, stack in zip(blocks, params, states, strict=True):
            view = LayerOf(stack, index)
            if stack.grows:
                (x, view), seen = block(layer[name], x, view, index)
            else:
                (x, state), seen = block(layer[name], x, view.take(), index)
                view = view.put(state)
            after.append(view.stack)
            recorded.append(seen)
        return (x, tuple(after)), tuple(recorded)

    count = jax.tree.leaves(states)[0].shape[0]
    indices = jnp.arange(count, dtype=jnp.int32)
    (x, states), recorded = lax.scan(group, (x, states), (indices, sliced))
    return x, states, recorded


def _stays(leaf):
    return is_weight(leaf) and leaf.read_in_stack
