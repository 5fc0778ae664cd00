"""The other recurrences of the Griffin paper's appendices, as kinds of recurrent blocks.

Appendix A (arXiv:2402.19427) sets the RG-LRU beside other gates. All of them are

    h_t = alpha(r_t) h_{t-1} + beta(r_t) x_t,        r_t = sigmoid(W_a x_t + b_a)

with a decay a of each channel, and Figure 7 draws how they weigh the new input:

    LRU      alpha = a                no gate          beta = sqrt(1 - alpha^2)
    GRU      alpha = 1 - r                             beta = r
    Mamba    alpha = (1 - r)^a                         beta = (1 - alpha) / a

Appendix B makes the RG-LRU complex: the CG-LRU. Everything around the recurrence is that of
`RecurrentBlock`. Two conventions are the RG-LRU's: at position 0 the state is forgotten, as under a
gate that does so (alpha = 0); padding leaves the state as it is.
"""

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

from griffin_jax.config import GriffinConfig
from griffin_jax.devices import per_shard
from griffin_jax.kernels.linear_recurrence import linear_recurrence
from griffin_jax.kernels.rg_lru import C, sqrt_bounded_gradient
from griffin_jax.models.parameters import parameter
from griffin_jax.models.rglru import BlockDiagonalLinear, RecurrentBlock, radius_init
from griffin_jax.models.state import BlockState, Timeline, array

_F32 = jnp.float32


class _Recurrence(nn.Module):
    """A recurrence that `coefficients` defines, in float32."""

    num_blocks: int
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, hidden: jax.Array, timeline: Timeline
    ) -> tuple[jax.Array, jax.Array]:
        alpha, beta, forgetting = (jnp.broadcast_to(c, x.shape) for c in self.coefficients(x))
        # Each device has its channels and the whole of time.
        sequence, state = ("batch", None, "recurrence"), ("batch", "recurrence")
        return per_shard(
            _real,
            (x, alpha, beta, forgetting, hidden, timeline.positions, timeline.lengths),
            (*[sequence] * 4, state, ("batch", None), ("batch",)),
            ((x.shape, sequence), (hidden.shape, state)),
        )

    def coefficients(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """alpha, beta and the beta of a state that is forgotten, which broadcast to [B, T, R]."""
        raise NotImplementedError

    def of_channels(self, name: str, init: nn.initializers.Initializer, size: int) -> jax.Array:
        """Returns a parameter of the recurrence for each channel, float32[1, 1, size]."""
        kind = {"axes": ("recurrence",), "kind": "recurrence"}
        value = parameter(self, name, init, (size,), self.param_dtype, **kind)
        return value.astype(_F32)[None, None]

    def gate(self, name: str, x: jax.Array, features: int | None = None) -> jax.Array:
        """Returns a gate before its sigmoid, float32."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return BlockDiagonalLinear(self.num_blocks, features, name=name, **types)(x).astype(_F32)


def _real(x, alpha, beta, forgetting, hidden, positions, lengths):
    real, reset = _marks(positions, lengths)
    alpha = jnp.where(real, jnp.where(reset, 0.0, alpha), 1.0)
    beta = jnp.where(real, jnp.where(reset, forgetting, beta), 0.0)
    h = linear_recurrence(beta * x.astype(_F32), alpha, hidden)
    return h.astype(x.dtype), h[:, -1]


def _marks(positions, lengths):
    """Returns which tokens are no padding, and which begin a document, [B, T, 1] each."""
    real = jnp.arange(positions.shape[1])[None] < lengths[:, None]
    return real[..., None], (positions == 0)[..., None]


class LRU(_Recurrence):
    """The linear recurrent unit (arXiv:2303.06349), with a real decay: no gate at all."""

    def coefficients(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        log_a = -jax.nn.softplus(self.of_channels("a_param", radius_init(), x.shape[-1]))
        one = jnp.ones((1, 1, 1), _F32)
        return jnp.exp(log_a), sqrt_bounded_gradient(-jnp.expm1(2 * log_a)), one


class GRU(_Recurrence):
    """The gate of a GRU (arXiv:1406.1078), which moves between the state and the input."""

    def coefficients(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        gate = self.gate("a_gate", x)
        return jax.nn.sigmoid(-gate), jax.nn.sigmoid(gate), jnp.ones((1, 1, 1), _F32)


class Mamba(_Recurrence):
    """The gate of Mamba (arXiv:2312.00752): a step width softplus(W_a x + b_a) of an ODE of rate -a.

    exp(-a softplus(z)) is (1 - sigmoid(z))^a. With B = 1 and C = 1 in Mamba's notation, whose A is -a.
    """

    def coefficients(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        # a is near 1 at first, where this is the GRU's gate.
        rate = jax.nn.softplus(self.of_channels("a_param", _rate_init, x.shape[-1]))
        log_alpha = -rate * jax.nn.softplus(self.gate("a_gate", x))
        return jnp.exp(log_alpha), -jnp.expm1(log_alpha) / rate, 1 / rate


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


class CGLRU(_Recurrence):
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
        gate = C * jax.nn.sigmoid(self.gate("a_gate", x, half))
        log_a = -gate * jax.nn.softplus(self.of_channels("a_param", radius_init(), half))
        turn = gate * self.of_channels("theta", _angle_init, half)
        z = x.reshape(*x.shape[:-1], 2, half).astype(_F32)
        z = z * jax.nn.sigmoid(self.gate("input_gate", x, half))[:, :, None]
        parts, sequence = ("batch", None, None, "recurrence"), ("batch", None, "recurrence")
        y, hidden = per_shard(
            _complex,
            (z, log_a, turn, hidden, timeline.positions, timeline.lengths),
            (parts, sequence, sequence, sequence, ("batch", None), ("batch",)),
            ((z.shape, parts), (hidden.shape, sequence)),
        )
        return y.reshape(x.shape).astype(x.dtype), hidden


def _angle_init(key, shape, dtype=_F32):
    """Returns angles of up to half a turn under a gate that is open."""
    return jax.random.uniform(key, shape, _F32, 0.0, jnp.pi / C).astype(dtype)


def _complex(z, log_a, turn, hidden, positions, lengths):
    """Runs the recurrence of pairs [B, T, 2, R / 2]; products of complex numbers are written
    out.
    """
    real, reset = _marks(positions, lengths)
    scale = jnp.where(reset, 1.0, sqrt_bounded_gradient(-jnp.expm1(2 * log_a)))
    x = z * jnp.where(real, scale, 0.0)[:, :, None]
    radius = jnp.where(real, jnp.where(reset, 0.0, jnp.exp(log_a)), 1.0)
    turn = jnp.where(real, turn, 0.0)
    a = jnp.stack([radius * jnp.cos(turn), radius * jnp.sin(turn)], axis=2)
    x = x.at[:, 0].add(_times(a[:, 0], hidden))
    _, h = lax.associative_scan(_compose, (a, x), axis=1)
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
