"""Layouts that code inside of the model asks for by the names of its arrays."""

import functools
from typing import Any

import jax

from griffin_jax.devices import FSDP, current_mesh, fit, model_shards, partition_spec
from griffin_jax.layer_of import LayerOf
from griffin_jax.sharding import rules


def tree_path(path: tuple[jax.tree_util.KeyEntry, ...]) -> str:
    """The names on the way to a leaf, joined by slashes; places in sequences are left out."""
    names = (getattr(entry, "key", getattr(entry, "name", None)) for entry in path)
    return "/".join(name for name in names if isinstance(name, str))


def split_here(path: str) -> str | None:
    """`rules.split_of` the linear layer at `path`; None where nothing is cut over "model"."""
    return rules.split_of(path) if model_shards() > 1 else None


def constrain_state(state: Any) -> Any:
    """A decoding state in the layout of the table, so that programs hand it on without moving it."""
    mesh = current_mesh()
    if mesh is None:
        return state

    def place(path, leaf):
        axes = rules.axes_of(tree_path(path), leaf.ndim)
        return jax.lax.with_sharding_constraint(leaf, fit(mesh, leaf.shape, axes))

    return jax.tree_util.tree_map_with_path(place, state)


def gather_fsdp(path: str, value: Any) -> Any:
    """A parameter as the model reads it, gathered over `fsdp`.

    Called where the parameter is used, so that a block that is computed again for its gradient
    gathers it again, and only few are whole at a time. Of a stack of layers only one is gathered.
    Its gradient is laid out as the parameter is, so that devices sum up their own parts of it.
    """
    mesh = current_mesh()
    if mesh is None or mesh.shape[FSDP] == 1:
        return value
    if isinstance(value, LayerOf):
        value = value.take()

    def gather(key, leaf):
        axes = rules.axes_of("/".join(filter(None, (path, tree_path(key)))), leaf.ndim)
        whole = partition_spec(rules.without(axes, FSDP))
        return _relaid(leaf, partition_spec(axes), whole)

    return jax.tree_util.tree_map_with_path(gather, value)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _relaid(x, before, after):
    """x in another layout; its gradient in the one before."""
    return jax.lax.with_sharding_constraint(x, after)


def _relaid_forward(x, before, after):
    return _relaid(x, before, after), None


def _relaid_backward(before, after, _, gradient):
    if gradient.dtype == jax.dtypes.float0:
        return (gradient,)
    return (jax.lax.with_sharding_constraint(gradient, before),)


_relaid.defvjp(_relaid_forward, _relaid_backward)
