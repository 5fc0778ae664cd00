"""A residual recurrent block's step in few launches; see `residual_step`."""

from griffin_jax.kernels.step_gpu.recurrent import recurrent_step
from griffin_jax.models.residual_step import FusedStep, is_power, pairs_of


def _unsupported(config, state):
    del state
    if not is_power(config.recurrence_width // config.num_heads, 16):
        return "gates in blocks that are no power of two"
    return None


def _run(config, x, scales, layers, params, state, timeline, **options):
    del config
    gates = params["rg_lru"]
    inner = pairs_of(gates, ("input_gate", "a_gate")) | pairs_of(params, ("conv_1d",))
    h, hidden, conv = recurrent_step(
        x,
        scales,
        layers,
        inner | {"a_param": gates["a_param"]},
        (state.hidden.reshape(-1), state.conv.reshape(state.conv.shape[1:])),
        (timeline.positions.reshape(()), timeline.lengths.reshape(())),
        **options,
    )
    return h, {"hidden": hidden, "conv": conv}


RECURRENT_STEP = FusedStep(
    layers=("linear_y", "linear_x", "linear_out"),
    unsupported_reason=_unsupported,
    width=lambda config: config.recurrence_width,
    run=_run,
)
