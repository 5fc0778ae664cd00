"""The other recurrences of the Griffin paper's appendices, as kinds of recurrent blocks.

Appendix A (arXiv:2402.19427) compares the RG-LRU with other gates. All of them are

    h_t = alpha(r_t) h_{t-1} + beta(r_t) x_t,        r_t = sigmoid(W_a x_t + b_a)

with a decay a of each channel, and Figure 7 draws how they weigh the new input:

    LRU      alpha = a                no gate          beta = sqrt(1 - alpha^2)
    GRU      alpha = 1 - r                             beta = r
    Mamba    alpha = (1 - r)^a                         beta = (1 - alpha) / a

Appendix B makes the RG-LRU complex: the CG-LRU. Everything around the recurrence is that of
`RecurrentBlock`. Two conventions are the RG-LRU's: at position 0 the state is forgotten, as under a
gate that does so (alpha = 0); padding leaves the state as it is.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

from griffin_jax.config import GriffinConfig
from griffin_jax.devices import per_shard
from griffin_jax.kernels.linear_recurrence import recur
from griffin_jax.kernels.places import unseen
from griffin_jax.kernels.rg_lru import C, sqrt_bounded_gradient
from griffin_jax.models.places import asked, place
from griffin_jax.models.rglru import Recurrence, RecurrentBlock, radius_init
from griffin_jax.models.state import BlockState, Timeline, array

_F32 = jnp.float32


def _recur(module, x, hidden, timeline, alpha, beta, forgetting):
    """Runs the recurrence in float32; returns its outputs [B, T, R] and its last state.

    Args:
      module: The recurrence, whose places "decay", "input" and "state" are as the RG-LRU's.
      x: [B, T, R].
      hidden: float32[B, R], the state before.
      timeline: Positions and lengths of the tokens.
      alpha: The weight of the state before, which broadcasts to x as the next two do.
      beta: The weight of the input.
      forgetting: The weight of the input where the state is forgotten.
    """
    alpha, beta, forgetting = (jnp.broadcast_to(c, x.shape) for c in (alpha, beta, forgetting))
    arguments = x, alpha, beta, forgetting, hidden, timeline.positions, timeline.lengths
    if asked(module):
        return _recur_on_one_device(*arguments, at=functools.partial(place, module))
    # Each device has its channels and the whole of time.
    sequence, state = ("batch", None, "recurrence"), ("batch", "recurrence")
    return per_shard(
        _recur_on_one_device,
        arguments,
        (*[sequence] * 4, state, ("batch", None), ("batch",)),
        ((x.shape, sequence), (hidden.shape, state)),
    )


def _recur_on_one_device(x, alpha, beta, forgetting, hidden, positions, lengths, *, at=unseen):
    real, reset = _marks(positions, lengths)
    alpha = at("decay", jnp.where(real, jnp.where(reset, 0.0, alpha), 1.0))
    beta = jnp.where(real, jnp.where(reset, forgetting, beta), 0.0)
    h = recur(at("input", beta * x.astype(_F32)), alpha, hidden, at)
    return h.astype(x.dtype), h[:, -1]


def _broadcastable(channels):
    """Returns a number for each channel as float32[1, 1, R], which broadcasts to tokens."""
    return channels.astype(_F32)[None, None]


def _marks(positions, lengths):
    """Returns which tokens are no padding, and which begin a document, [B, T, 1] each."""
    real = jnp.arange(positions.shape[1])[None] < lengths[:, None]
    return real[..., None], (positions == 0)[..., None]


class LRU(Recurrence):
    """The linear recurrent unit (arXiv:2303.06349), with a real decay: no gate at all."""

    @nn.compact
    def __call__(
        self, x: jax.Array, hidden: jax.Array, timeline: Timeline
    ) -> tuple[jax.Array, jax.Array]:
        a_param = _broadcastable(self.per_channel("a_param", radius_init(), x.shape[-1]))
        log_a = -jax.nn.softplus(a_param)
        beta = sqrt_bounded_gradient(-jnp.expm1(2 * log_a))
        return _recur(self, x, hidden, timeline, jnp.exp(log_a), beta, forgetting=1.0)


class GRU(Recurrence):
    """The gate of a GRU (arXiv:1406.1078), which moves between the state and the input."""

    @nn.compact
    def __call__(
        self, x: jax.Array, hidden: jax.Array, timeline: Timeline
    ) -> tuple[jax.Array, jax.Array]:
        gate = self.gate("a_gate", x).astype(_F32)
        alpha, beta = jax.nn.sigmoid(-gate), jax.nn.sigmoid(gate)
        return _recur(self, x, hidden, timeline, alpha, beta, forgetting=1.0)


class Mamba(Recurrence):
    """The gate of Mamba (arXiv:2312.00752): a step width softplus(W_a x + b_a) of an ODE of rate -a.

    Here exp(-a softplus(z)) is (1 - sigmoid(z))^a. In Mamba's notation, A is -a, and B and C are 1.
    """

    @nn.compact
    def __call__(
        self, x: jax.Array, hidden: jax.Array, timeline: Timeline
    ) -> tuple[jax.Array, jax.Array]:
        # a is near 1 at first, where this is the GRU's gate.
        a_param = self.per_channel("a_param", _rate_init, x.shape[-1])
        rate = jax.nn.softplus(_broadcastable(a_param))
        log_alpha = -rate * jax.nn.softplus(self.gate("a_gate", x).astype(_F32))
        beta = -jnp.expm1(log_alpha) / rate
        return _recur(self, x, hidden, timeline, jnp.exp(log_alpha), beta, forgetting=1 / rate)


def _rate_init(key, shape, dtype=_F32):
    """Returns rates softplus(a_param) that are uniform from 0.5 to 1.5."""
    rate = jax.random.uniform(key, shape, _F32, 0.5, 1.5)
    return jnp.log(jnp.expm1(rate)).astype(dtype)


@flax.struct.dataclass
class ComplexState(BlockState):
    """Memory of one CG-LRU block.

    Attributes:
      hidden: float32[B, 2, R / 2], the real and the imaginary part of the recurrence's state.
      conv: [B, C - 1, R], the last inputs of the convolution, newest last.
    """

    hidden: jax.Array = array("batch", None, "recurrence")
    conv: jax.Array = array("batch", None, "recurrence")


class CGLRU(Recurrence):
    """The complex-gated linear recurrent unit of appendix B, on half as many complex channels.

        z_t = x_t[: R / 2] + i x_t[R / 2 :]
        a_t = (sigmoid(Lambda) e^{i theta})^{c r_t}
        h_t = a_t h_{t-1} + sqrt(1 - |a_t|^2) (i_t z_t)
        y_t = (Re h_t, Im h_t)

    The gates r_t and i_t are read from all of x_t.
    """

    @nn.compact
    def __call__(
        self, x: jax.Array, hidden: jax.Array, timeline: Timeline
    ) -> tuple[jax.Array, jax.Array]:
        half = x.shape[-1] // 2
        gate_a, gate_x = (
            place(self, name, jax.nn.sigmoid(self.gate(layer, x, half).astype(_F32)))
            for name, layer in (("recurrence_gate", "a_gate"), ("input_gate", "input_gate"))
        )
        a_param = _broadcastable(self.per_channel("a_param", radius_init(), half))
        theta = _broadcastable(self.per_channel("theta", _angle_init, half))
        log_a, turn = -C * gate_a * jax.nn.softplus(a_param), C * gate_a * theta
        z = x.reshape(*x.shape[:-1], 2, half).astype(_F32) * gate_x[:, :, None]
        parts, sequence = ("batch", None, None, "recurrence"), ("batch", None, "recurrence")
        arguments = z, log_a, turn, hidden, timeline.positions, timeline.lengths
        if asked(self):
            y, hidden = _complex(*arguments, at=functools.partial(place, self))
        else:
            y, hidden = per_shard(
                _complex,
                arguments,
                (parts, sequence, sequence, sequence, ("batch", None), ("batch",)),
                ((z.shape, parts), (hidden.shape, sequence)),
            )
        return y.reshape(x.shape).astype(x.dtype), hidden


def _angle_init(key, shape, dtype=_F32):
    """Returns angles of up to half a turn under a gate that is open."""
    return jax.random.uniform(key, shape, _F32, 0.0, jnp.pi / C).astype(dtype)


def _complex(z, log_a, turn, hidden, positions, lengths, *, at=unseen):
    """Runs the recurrence of pairs [B, T, 2, R / 2], with products of complex numbers written out.

    Its places are "decay" and "angle" of [B, T, R / 2], by which the state shrinks and turns, and
    "input" and "state" of pairs.
    """
    real, reset = _marks(positions, lengths)
    scale = jnp.where(reset, 1.0, sqrt_bounded_gradient(-jnp.expm1(2 * log_a)))
    x = at("input", z * jnp.where(real, scale, 0.0)[:, :, None])
    radius = at("decay", jnp.where(real, jnp.where(reset, 0.0, jnp.exp(log_a)), 1.0))
    turn = at("angle", jnp.where(real, turn, 0.0))
    a = jnp.stack([radius * jnp.cos(turn), radius * jnp.sin(turn)], axis=2)

    def run(x, a):
        x = x.at[:, 0].add(_times(a[:, 0], hidden))
        return lax.associative_scan(_compose, (a, x), axis=1)[1]

    h = run(x, a)

    def settle(wanted):  # as `recur` does
        changed = jnp.any(wanted != h, axis=2, keepdims=True)
        return run(jnp.where(changed, wanted, x + (wanted - h)), jnp.where(changed, 0.0, a))

    h = at("state", h, settle)
    return h, h[:, -1]


def _compose(earlier, later):
    return _times(earlier[0], later[0]), later[1] + _times(later[0], earlier[1])


def _times(a, b):
    """Returns the product of complex numbers, whose parts lie along the last axis but one."""
    (p, q), (r, s) = (jnp.moveaxis(z, -2, 0) for z in (a, b))
    return jnp.stack([p * r - q * s, p * s + q * r], axis=-2)


class LRUBlock(RecurrentBlock):
    """A recurrent block around `LRU`."""

    recurrence, step = ("lru", LRU), None


class GRUBlock(RecurrentBlock):
    """A recurrent block around `GRU`."""

    recurrence, step = ("gru", GRU), None


class MambaBlock(RecurrentBlock):
    """A recurrent block around `Mamba`."""

    recurrence, step = ("mamba", Mamba), None


class CGLRUBlock(RecurrentBlock):
    """A recurrent block around `CGLRU`."""

    recurrence, step = ("cg_lru", CGLRU), None

    @classmethod
    def init_state(
        cls, config: GriffinConfig, batch_size: int, dtype: DTypeLike, capacity: int | None
    ) -> ComplexState:
        state = super().init_state(config, batch_size, dtype, capacity)
        return ComplexState(hidden=state.hidden.reshape(batch_size, 2, -1), conv=state.conv)

    @classmethod
    def check(cls, config: GriffinConfig) -> None:
        super().check(config)
        if config.recurrence_width // config.num_heads % 2:
            raise ValueError(
                f"recurrence_width {config.recurrence_width} must divide over twice the "
                f"{config.num_heads} gate blocks (num_heads): complex channels are pairs"
            )
