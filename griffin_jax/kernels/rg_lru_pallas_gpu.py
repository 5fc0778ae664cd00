"""The RG-LRU as Pallas kernels, for GPUs through Triton.

Gates, square root and recurrence are one pass over the inputs: in bfloat16 the forward pass moves
8 bytes per element and the backward pass 16, which is what the arguments and results weigh. A
program owns some channels of one row and walks through time; the loads of several steps are issued
before the first is used, so that they overlap.

Where rows and channels are too few to fill a GPU, time is cut into spans that have programs of their
own. A pass before finds what every span does to the state that enters it, a decay and an addition,
and each program of the main pass works out the state that enters its span from those of the others.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

_CHANNELS = (64, 32)  # of one program, which is one warp
_FULL = 4096  # programs that fill a large GPU
_FEW = 512  # leave most of it idle
_STEPS = 8  # of time, whose loads overlap
_SPAN = 128  # steps at least
_C = 8.0
_MIN_SQUARE = 0.25e-6  # clips the square root's derivative at 1,000


def serves(shape: tuple[int, ...]) -> str | None:
    """None, or the reason why the kernel does not serve inputs of this shape [B, T, R]."""
    batch, time, width = shape
    if width % _CHANNELS[-1]:
        return f"recurrence width {width} is not a multiple of {_CHANNELS[-1]}"
    if time < _STEPS:
        return f"{time} tokens are fewer than {_STEPS}"
    if batch * (width // _channels(width)) * num_spans(shape) < _FEW:
        return f"{batch} rows of {time} tokens of width {width} do not fill a GPU"
    return None


def num_spans(shape: tuple[int, ...]) -> int:
    """Into how many spans time is cut for inputs of this shape [B, T, R]."""
    batch, time, width = shape
    spans = 1
    while batch * (width // _channels(width)) * spans < _FULL and time >= 2 * spans * _SPAN:
        spans *= 2
    return spans


def _channels(width):
    return next(channels for channels in _CHANNELS if width % channels == 0)


def rg_lru(x, gate_x, gate_a, a_param, hidden, positions, lengths, *, spans=None, interpret=False):
    """As `griffin_jax.kernels.rg_lru.rg_lru_reference`.

    Args:
      x: [B, T, R]; this and the next six as there.
      gate_x: [B, T, R].
      gate_a: [B, T, R].
      a_param: [R].
      hidden: float32[B, R].
      positions: int32[B, T].
      lengths: int32[B].
      spans: Parts of time with programs of their own; by default as many as fill a GPU.
      interpret: Run on any device, slowly, for tests.
    """
    time = x.shape[1]
    spans = spans or num_spans(x.shape)
    # What a token does to the state, as factors: a step (1, 0), a reset (0, 1), padding (0, 0).
    real = jnp.arange(time)[None] < lengths[:, None]
    kind = jnp.stack([real & (positions != 0), real & (positions == 0)], axis=1)
    slope = -_C * jax.nn.softplus(a_param.astype(jnp.float32))
    padding = ((0, 0), (0, -time % (_STEPS * spans)), (0, 0))
    kind = jnp.pad(kind.astype(jnp.float32), ((0, 0), *padding[:2]))
    x, gate_x, gate_a = (jnp.pad(v, padding) for v in (x, gate_x, gate_a))
    h, last = _recurrence(x, gate_x, gate_a, slope, hidden, kind, spans, interpret)
    return h[:, :time], last


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _recurrence(x, gate_x, gate_a, slope, hidden, kind, spans, interpret):
    h, last, _ = _call_forward(x, gate_x, gate_a, slope, hidden, kind, spans, interpret)
    return h, last


def _forward_rule(x, gate_x, gate_a, slope, hidden, kind, spans, interpret):
    h, last, decay = _call_forward(x, gate_x, gate_a, slope, hidden, kind, spans, interpret)
    return (h, last), (x, gate_x, gate_a, slope, hidden, kind, h, decay)


def _backward_rule(spans, interpret, residuals, gradients):
    dx, dgate_x, dgate_a, dslope, dhidden = _call_backward(*residuals, *gradients, spans, interpret)
    return dx, dgate_x, dgate_a, dslope.sum(axis=(0, 1)), dhidden[:, 0], None


_recurrence.defvjp(_forward_rule, _backward_rule)


def _gates(gate_x, gate_a, slope, kind):
    """Of one step, in float32: both gates, a, the input's multiplier, and 1 - a^2 unmasked."""
    i = jax.nn.sigmoid(gate_x)
    r = jax.nn.sigmoid(gate_a)
    a = _decay(r, slope, kind)
    square = -jnp.expm1(2 * slope * r)
    step, reset = kind
    multiplier = step * jnp.sqrt(square) + reset
    return i, r, a, multiplier, square


def _decay(r, slope, kind):
    step, reset = kind
    return step * jnp.exp(slope * r) + (1 - step - reset)


def _kind(ref, t):
    return ref[0, t], ref[1, t]


def _begin(ref, spans):
    """First step of this program's span, and the number of chunks of steps in it."""
    length = ref.shape[0] // spans
    return pl.program_id(2) * length, length // _STEPS


def _read(refs, t):
    return tuple(ref[t].astype(jnp.float32) for ref in refs)


def _forward_span_kernel(
    x_ref, gate_x_ref, gate_a_ref, slope_ref, kind_ref, decay_ref, added_ref, *, spans
):
    """A span as h -> decay * h + added."""
    slope = slope_ref[...]
    begin, chunks = _begin(x_ref, spans)
    inputs = (x_ref, gate_x_ref, gate_a_ref)

    def chunk(n, carry):
        decay, h = carry
        t = begin + n * _STEPS
        steps = [(*_read(inputs, t + s), _kind(kind_ref, t + s)) for s in range(_STEPS)]
        for x, gate_x, gate_a, kind in steps:
            i, _, a, multiplier, _ = _gates(gate_x, gate_a, slope, kind)
            h = a * h + multiplier * i * x
            decay = a * decay
        return decay, h

    start = (jnp.ones_like(slope), jnp.zeros_like(slope))
    decay_ref[...], added_ref[...] = jax.lax.fori_loop(0, chunks, chunk, start)


def _forward_kernel(
    x_ref,
    gate_x_ref,
    gate_a_ref,
    slope_ref,
    hidden_ref,
    kind_ref,
    decay_ref,
    added_ref,
    h_ref,
    last_ref,
    *,
    spans,
):
    slope = slope_ref[...]
    begin, chunks = _begin(x_ref, spans)
    inputs = (x_ref, gate_x_ref, gate_a_ref)

    def chunk(n, h):
        t = begin + n * _STEPS
        steps = [(*_read(inputs, t + s), _kind(kind_ref, t + s)) for s in range(_STEPS)]
        for s, (x, gate_x, gate_a, kind) in enumerate(steps):
            i, _, a, multiplier, _ = _gates(gate_x, gate_a, slope, kind)
            h = a * h + multiplier * i * x
            h_ref[t + s] = h.astype(h_ref.dtype)
        return h

    def enter(span, h):
        return decay_ref[span] * h + added_ref[span]

    h = jax.lax.fori_loop(0, pl.program_id(2), enter, hidden_ref[...])
    last_ref[...] = jax.lax.fori_loop(0, chunks, chunk, h)


def _backward_span_kernel(gate_a_ref, slope_ref, kind_ref, dh_ref, added_ref, *, spans):
    """A span, run backwards, as g -> decay * g + added, with the decay of the forward pass."""
    slope = slope_ref[...]
    begin, chunks = _begin(dh_ref, spans)

    def chunk(n, g):
        t = begin + (chunks - 1 - n) * _STEPS
        steps = [
            (*_read((gate_a_ref, dh_ref), t + s), _kind(kind_ref, t + s)) for s in range(_STEPS)
        ]
        for gate_a, dh, kind in reversed(steps):
            g = _decay(jax.nn.sigmoid(gate_a), slope, kind) * (g + dh)
        return g

    added_ref[...] = jax.lax.fori_loop(0, chunks, chunk, jnp.zeros_like(slope))


def _backward_kernel(
    x_ref,
    gate_x_ref,
    gate_a_ref,
    slope_ref,
    hidden_ref,
    kind_ref,
    h_ref,
    decay_ref,
    added_ref,
    dh_ref,
    dlast_ref,
    dx_ref,
    dgate_x_ref,
    dgate_a_ref,
    dslope_ref,
    dhidden_ref,
    *,
    spans,
):
    slope, hidden = slope_ref[...], hidden_ref[...]
    begin, chunks = _begin(x_ref, spans)

    def chunk(n, carry):
        g, dslope = carry  # g: what later steps ask of the state
        t = begin + (chunks - 1 - n) * _STEPS
        steps = []
        for s in range(_STEPS):
            step = _read((x_ref, gate_x_ref, gate_a_ref, dh_ref), t + s)
            before = h_ref[jnp.maximum(t + s - 1, 0)].astype(jnp.float32)
            first = (t + s == 0).astype(jnp.float32)
            before = first * hidden + (1 - first) * before
            steps.append((*step, _kind(kind_ref, t + s), before))
        for s in reversed(range(_STEPS)):
            x, gate_x, gate_a, dh, kind, before = steps[s]
            i, r, a, multiplier, square = _gates(gate_x, gate_a, slope, kind)
            g = g + dh
            gm = g * multiplier
            dx_ref[t + s] = (gm * i).astype(dx_ref.dtype)
            dgate_x_ref[t + s] = (gm * x * i * (1 - i)).astype(dgate_x_ref.dtype)
            dmultiplier = g * i * x * jax.lax.rsqrt(jnp.maximum(square, _MIN_SQUARE))
            dlog_a = kind[0] * a * (g * before - a * dmultiplier)
            dgate_a_ref[t + s] = (dlog_a * slope * r * (1 - r)).astype(dgate_a_ref.dtype)
            dslope = dslope + dlog_a * r
            g = a * g
        return g, dslope

    def enter(n, g):
        span = spans - 1 - n
        return decay_ref[span] * g + added_ref[span]

    g = jax.lax.fori_loop(0, spans - 1 - pl.program_id(2), enter, dlast_ref[...])
    start = (g, jnp.zeros_like(slope))
    dhidden_ref[...], dslope_ref[...] = jax.lax.fori_loop(0, chunks, chunk, start)


class _Launch:
    """Blocks of arrays as one program sees them, and the launch of one per row, channels and span."""

    def __init__(self, shape, spans, interpret):
        batch, time, width = shape
        channels = _channels(width)
        self.grid = (batch, width // channels, spans)
        self.spans, self.interpret = spans, interpret
        self.row = pl.BlockSpec((None, time, channels), lambda b, c, s: (b, 0, c))
        self.state = pl.BlockSpec((None, channels), lambda b, c, s: (b, c))
        self.channel = pl.BlockSpec((channels,), lambda b, c, s: (c,))
        self.kind = pl.BlockSpec((None, 2, time), lambda b, c, s: (b, 0, 0))
        self.all_spans = pl.BlockSpec((None, spans, channels), lambda b, c, s: (b, 0, c))
        self.span = pl.BlockSpec((None, None, channels), lambda b, c, s: (b, s, c))
        self.per_span = jax.ShapeDtypeStruct((batch, spans, width), jnp.float32)

    def __call__(self, kernel, in_specs, out_specs, out_shape):
        return pl.pallas_call(
            functools.partial(kernel, spans=self.spans),
            grid=self.grid,
            in_specs=in_specs,
            out_specs=out_specs,
            out_shape=out_shape,
            compiler_params=plgpu.CompilerParams(num_warps=1, num_stages=1),
            interpret=self.interpret,
        )


@functools.partial(jax.jit, static_argnames=("spans", "interpret"))
def _call_forward(x, gate_x, gate_a, slope, hidden, kind, spans, interpret):
    """h, the last state, and the decay of every span."""
    on = _Launch(x.shape, spans, interpret)
    if spans == 1:  # nothing reads them
        decay = added = jnp.zeros(on.per_span.shape, jnp.float32)
    else:
        decay, added = on(
            _forward_span_kernel,
            [on.row, on.row, on.row, on.channel, on.kind],
            [on.span, on.span],
            [on.per_span, on.per_span],
        )(x, gate_x, gate_a, slope, kind)
    h, ends = on(
        _forward_kernel,
        [on.row, on.row, on.row, on.channel, on.state, on.kind, on.all_spans, on.all_spans],
        [on.row, on.span],
        [jax.ShapeDtypeStruct(x.shape, x.dtype), on.per_span],
    )(x, gate_x, gate_a, slope, hidden, kind, decay, added)
    return h, ends[:, -1], decay


@functools.partial(jax.jit, static_argnames=("spans", "interpret"))
def _call_backward(x, gate_x, gate_a, slope, hidden, kind, h, decay, dh, dlast, spans, interpret):
    on = _Launch(x.shape, spans, interpret)
    added = decay
    if spans > 1:
        added = on(
            _backward_span_kernel,
            [on.row, on.channel, on.kind, on.row],
            on.span,
            on.per_span,
        )(gate_a, slope, kind, dh)
    rows, summaries = [on.row] * 3, [on.all_spans] * 2
    return on(
        _backward_kernel,
        [*rows, on.channel, on.state, on.kind, on.row, *summaries, on.row, on.state],
        [*rows, on.span, on.span],
        [
            *[jax.ShapeDtypeStruct(v.shape, v.dtype) for v in (x, gate_x, gate_a)],
            on.per_span,
            on.per_span,
        ],
    )(x, gate_x, gate_a, slope, hidden, kind, h, decay, added, dh, dlast)
