"""One token through a residual block of one row, in few launches."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from griffin_jax.config import ATTENTION, GriffinConfig
from griffin_jax.devices import current_mesh
from griffin_jax.kernels import triton
from griffin_jax.kernels.rotary import rotary_angles
from griffin_jax.kernels.step_gpu import pairs
from griffin_jax.kernels.step_gpu.attention import SLOTS, attention_step
from griffin_jax.kernels.step_gpu.recurrent import recurrent_step
from griffin_jax.layer_of import LayerOf
from griffin_jax.quantization.tensor import QuantizedTensor

_LINEAR = ("linear_y", "linear_x", "linear_out", "q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_MAX_CHUNKS = 128  # of a ring


def serves(config: GriffinConfig, kind: str, params: dict, x: jax.Array, state) -> str | None:
    """None, or why the kernels of a step do not serve these arrays."""
    if reason := triton.missing():
        return reason
    if x.shape[:2] != (1, 1):
        return f"{x.shape[0]} rows of {x.shape[1]} tokens are more than one token"
    if isinstance(state, LayerOf):
        return "stacked layers"
    weights = [
        layer["weight"]
        for block in params.values()
        for name, layer in block.items()
        if name in (*_LINEAR, *_MLP)
    ]
    packed = [isinstance(weight, QuantizedTensor) for weight in weights]
    if x.dtype != jnp.bfloat16:
        return f"it computes in bfloat16, not {x.dtype}"
    if current_mesh() is not None:
        return "it runs on one device"
    if any(packed) != all(packed) or not all(
        isinstance(weight, (QuantizedTensor, jax.Array)) for weight in weights
    ):
        return "weights that are neither all plain nor all in 4 bits"
    if all(packed) and (reason := pairs.serves(weights)):
        return reason
    sizes = [config.width, config.mlp_width]
    if kind == ATTENTION:
        slots = state.keys.shape[1]
        if config.num_kv_heads != 1 or not _is_power(config.head_size, 64):
            return "attention of several heads of keys, or of heads that are no power of two"
        rotated = int(config.head_size * config.rope_fraction)
        parts = [rotated // 2, config.head_size - rotated]
        if not _is_power(parts[0], 16) or (parts[1] and not _is_power(parts[1], 16)):
            return f"rotary positions of {rotated} of {config.head_size} places"
        if slots % SLOTS or not 1 <= slots // SLOTS <= _MAX_CHUNKS:
            return f"a ring of {slots} slots"
        sizes.append(config.num_heads * config.head_size)
    else:
        if not _is_power(config.recurrence_width // config.num_heads, 16):
            return "gates in blocks that are no power of two"
        sizes.append(config.recurrence_width)
    if any(size % 256 for size in sizes):
        return f"widths of {sizes} (needs multiples of 256)"
    return None


def _is_power(size, least):
    return size >= least and not size & (size - 1)


def residual_step(
    config: GriffinConfig,
    kind: str,
    plain: Callable,
    params: dict,
    x: jax.Array,
    state,
    timeline,
    *,
    interpret: bool = False,
):
    """A residual block for one token of one row, in four launches for 4-bit weights, five or six for others.

    Args:
      config: The model's shape.
      kind: Of the block.
      plain: The same without these kernels, whose gradient is taken: a function ({"params": params},
        x, state, timeline).
      params: The block's, as in `ResidualBlock`.
      x: [1, 1, D].
      state: A `RecurrentState` or `AttentionState` of one row.
      timeline: A `Timeline` of one token.
      interpret: Run on any device, slowly, for tests.

    Returns:
      [1, 1, D] and the state after.
    """

    @jax.custom_vjp
    def step(params, x, state, timeline):
        return _run(config, kind, params, x, state, timeline, interpret)

    def forward(*arguments):
        return step(*arguments), arguments

    def backward(arguments, gradients):
        return jax.vjp(lambda params, *rest: plain({"params": params}, *rest), *arguments)[1](
            gradients
        )

    step.defvjp(forward, backward)
    return step(params, x, state, timeline)


def _run(config, kind, params, x, state, timeline, interpret):
    options = {"eps": config.norm_eps, "interpret": interpret}
    position = timeline.positions.reshape(())
    length = timeline.lengths.reshape(())
    h = x.reshape(-1)
    scales = [params[name]["scale"] for name in ("temporal_pre_norm", "channel_pre_norm")]
    layers = {name: _pair(params["mlp_block"][name]) for name in _MLP}
    if kind == ATTENTION:
        layers |= {name: _pair(layer) for name, layer in params["attention_block"].items()}
        window = config.attention_window
        rings = state.keys, state.values
        h, *rings = attention_step(
            h,
            scales,
            layers,
            [ring.reshape(ring.shape[1], -1) for ring in rings],
            (position, length, timeline.start.reshape(())),
            _rotation(config, position, x.dtype),
            reach=window and window - config.window_includes_query,
            **options,
        )
        after = dict(zip(("keys", "values"), rings, strict=True))
    else:
        block = params["recurrent_block"]
        gates = block["rg_lru"]
        layers |= {name: _pair(block[name]) for name in ("linear_y", "linear_x", "linear_out")}
        inner = {name: _pair(gates[name]) for name in ("input_gate", "a_gate")}
        inner |= {"conv_1d": _pair(block["conv_1d"]), "a_param": gates["a_param"]}
        h, hidden, conv = recurrent_step(
            h,
            scales,
            layers,
            inner,
            (state.hidden.reshape(-1), state.conv.reshape(state.conv.shape[1:])),
            (position, length),
            **options,
        )
        after = {"hidden": hidden, "conv": conv}
    state = state.replace(
        **{name: array.reshape(getattr(state, name).shape) for name, array in after.items()}
    )
    return h.reshape(x.shape), state


def _pair(layer):
    return layer["weight"], layer.get("bias")


def _rotation(config, position, dtype):
    """Cosines and sines of a position's angles."""
    size = int(config.head_size * config.rope_fraction)
    angle = rotary_angles(position.reshape(1, 1), config.rope_base, size).reshape(-1)
    return jnp.cos(angle).astype(dtype), jnp.sin(angle).astype(dtype)
