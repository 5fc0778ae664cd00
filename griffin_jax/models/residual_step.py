"""One token through a residual block of one row, in few launches."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from griffin_jax.config import GriffinConfig
from griffin_jax.devices import current_mesh
from griffin_jax.kernels import triton
from griffin_jax.kernels.step_gpu import products
from griffin_jax.layer_of import LayerOf

_MLP = ("gate_proj", "up_proj", "down_proj")


@dataclasses.dataclass(frozen=True)
class FusedStep:
    """What a kind of temporal mixing brings for its residual block to run in few launches.

    Attributes:
      layers: The names of its linear layers, children of its own.
      unsupported_reason: (config, state) -> None, or why its kernels do not serve these shapes.
      width: config -> what its last layer reads, which must be a multiple of 256.
      run: (config, x [D], scales, layers, params, state, timeline, eps=, interpret=) -> [D] and the
        fields of the state after, by name. `scales` are those of both norms, `layers` pairs of weight
        and bias of its linear layers and the MLP's, `params` its parameters.
    """

    layers: tuple[str, ...]
    unsupported_reason: Callable[..., str | None]
    width: Callable[[GriffinConfig], int]
    run: Callable[..., tuple[jax.Array, Mapping[str, jax.Array]]]


def unsupported_reason(
    config: GriffinConfig, step: FusedStep | None, name: str, params: dict, x: jax.Array, state: Any
) -> str | None:
    """Says why the kernels of a step do not serve these arrays; None if they do.

    Args:
      config: The model's shape.
      step: The way of the block's temporal mixing.
      name: What the temporal mixing's parameters are called in the block's.
      params: The block's parameters.
      x: [B, T, D].
      state: The block's state.
    """
    if reason := triton.missing():
        return reason
    if step is None:
        return "its kind of temporal mixing has no fused step"
    if x.shape[:2] != (1, 1):
        return f"{x.shape[0]} rows of {x.shape[1]} tokens are more than one token"
    weights = [weight for weight, _ in _layers(step, name, params).values()]
    if any(isinstance(leaf, LayerOf) for leaf in (state, *weights)):
        return "stacked layers"
    if x.dtype != jnp.bfloat16:
        return f"it computes in bfloat16, not {x.dtype}"
    if current_mesh() is not None:
        return "it runs on one device"
    if reason := products.unsupported_reason(weights):
        return reason
    if reason := step.unsupported_reason(config, state):
        return reason
    sizes = [config.width, config.mlp_width, step.width(config)]
    if any(size % 256 for size in sizes):
        return f"widths of {sizes} (needs multiples of 256)"
    return None


def residual_step(
    config: GriffinConfig,
    step: FusedStep,
    name: str,
    reference: Callable,
    params: dict,
    x: jax.Array,
    state: Any,
    timeline: Any,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, Any]:
    """Runs a residual block for one token of one row.

    That takes four launches for 4-bit weights, and five or six for others.

    Args:
      config: The model's shape.
      step: The way of the block's temporal mixing.
      name: What the temporal mixing's parameters are called in the block's.
      reference: The same without these kernels, whose gradient is taken: a function ({"params": params},
        x, state, timeline).
      params: The block's parameters, as in `ResidualBlock`.
      x: [1, 1, D].
      state: The block's state, of one row.
      timeline: A `Timeline` of one token.
      interpret: Run on any device, slowly, for tests.

    Returns:
      [1, 1, D] and the state after.
    """

    @jax.custom_vjp
    def run(params, x, state, timeline):
        return _run(config, step, name, params, x, state, timeline, interpret)

    def forward(*arguments):
        return run(*arguments), arguments

    def backward(arguments, gradients):
        return jax.vjp(lambda params, *rest: reference({"params": params}, *rest), *arguments)[1](
            gradients
        )

    run.defvjp(forward, backward)
    return run(params, x, state, timeline)


def _run(config, step, name, params, x, state, timeline, interpret):
    h, after = step.run(
        config,
        x.reshape(-1),
        [params[norm]["scale"] for norm in ("temporal_pre_norm", "channel_pre_norm")],
        _layers(step, name, params),
        params[name],
        state,
        timeline,
        eps=config.norm_eps,
        interpret=interpret,
    )
    state = state.replace(
        **{field: array.reshape(getattr(state, field).shape) for field, array in after.items()}
    )
    return h.reshape(x.shape), state


def _layers(step, name, params):
    """Returns pairs of weight and bias of all linear layers, by name."""
    return pairs_of(params["mlp_block"], _MLP) | pairs_of(params[name], step.layers)


def pairs_of(params: dict, names: Sequence[str]) -> dict[str, tuple[Any, jax.Array | None]]:
    """Returns the weight and the bias or None of some layers, by name."""
    return {name: (params[name]["weight"], params[name].get("bias")) for name in names}


def is_power(size: int, least: int) -> bool:
    """Returns whether a size is a power of two of at least `least`."""
    return size >= least and not size & (size - 1)
