"""Layouts that code inside of the model asks for."""

import functools
from typing import Any

import jax

from griffin_jax.devices import (
    FSDP,
    MODEL,
    Axes,
    activation_spec,
    current_mesh,
    mesh_axes,
    model_shards,
    partition_spec,
)
from griffin_jax.weight import axes_of, is_weight


def split_here(axes: tuple[str | None, str | None]) -> str | None:
    """Returns the side of a linear layer's weight [out, in] of these axes that is cut over "model"
    here.

    That is "out", "in", or None where nothing is cut.
    """
    if model_shards() == 1:
        return None
    out, inner = mesh_axes(axes)
    return "out" if out == MODEL else "in" if inner == MODEL else None


def constrain_state(state: Any) -> Any:
    """Returns a decoding state in the layout of its axes, so that programs hand it on without
    moving it.
    """
    mesh = current_mesh()
    if mesh is None:
        return state

    def place(leaf, axes):
        return jax.lax.with_sharding_constraint(leaf, activation_spec(mesh, leaf.shape, axes))

    return jax.tree.map(place, state, state.axes())


def gather_fsdp(value: Any, axes: tuple[str | None, ...]) -> Any:
    """Returns a parameter of these axes as the model reads it, gathered over `fsdp`.

    Called where the parameter is used, so that a block that is computed again for its gradient
    gathers it again, and only few are whole at a time. Of a stack of layers only one is gathered.
    Its gradient is laid out as the parameter is, so that devices sum up their own parts of it.
    """
    mesh = current_mesh()
    if mesh is None or mesh.shape[FSDP] == 1:
        return value
    if is_weight(value):
        value = value.layer()

    def gather(leaf, axes):
        before = mesh_axes(axes)
        return _relaid(leaf, partition_spec(before), partition_spec(_without(before, FSDP)))

    return jax.tree.map(gather, value, axes_of(value, axes))


def _without(axes: Axes, axis: str) -> Axes:
    """Returns the same with one mesh axis left out: its devices hold the whole."""

    def leave_out(names):
        if isinstance(names, tuple):
            return tuple(name for name in names if name != axis) or None
        return None if names == axis else names

    return tuple(map(leave_out, axes))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _relaid(x, before, after):
    """Returns x in another layout; its gradient in the one before."""
    return jax.lax.with_sharding_constraint(x, after)


def _relaid_forward(x, before, after):
    return _relaid(x, before, after), None


def _relaid_backward(before, after, _, gradient):
    if gradient.dtype == jax.dtypes.float0:
        return (gradient,)
    return (jax.lax.with_sharding_constraint(gradient, before),)


_relaid.defvjp(_relaid_forward, _relaid_backward)
