"""Rows of text that are written together: the arrays of all of them, and the programs over them."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from griffin_jax.devices import constrain, replicate
from griffin_jax.inference import prefill
from griffin_jax.inference.drawing import (
    Needs,
    Settings,
    choose,
    corrected,
    most_likely,
    settings_of,
)
from griffin_jax.inference.grammar import unpacked
from griffin_jax.inference.row_states import per_row, with_row
from griffin_jax.inference.sampling import SamplingMethod
from griffin_jax.inputs import check_seeds
from griffin_jax.models import Griffin
from griffin_jax.models.stack import AnyState
from griffin_jax.sharding import jit_on_mesh
from griffin_jax.sharding.layouts import constrain_state

# A row's numbers do not depend on the rows beside it, which not every generator promises.
_PRNG = "threefry2x32"
MAX_STOP_IDS = 16

# The loop of a burst as one CUDA graph, whose end the device decides. By XLA's default each turn is
# launched by the host, which holds the thread that dispatches a burst until it ends: none can be
# under way while the one before is received. A list replaces the default, which in jaxlib 0.11
# is these without WHILE. XLA leaves a loop whose body holds anything else out of graphs, such as
# the collectives of several GPUs, for which nothing is asked.
LOOP_AS_A_GRAPH = {
    "xla_gpu_enable_command_buffer": (
        "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,WHILE,CONDITIONAL"
    )
}


@flax.struct.dataclass
class Rows:
    """All that the device knows of the rows of a pool; each row belongs to one text, or to none.

    Attributes:
      state: The model's state of all that comes before `token`.
      token: int32[B], the last token of each row, which the state has not read.
      alive: bool[B], the rows that are written; the others' states stay as they are.
      step: int32[B], how many tokens have been drawn.
      limit: int32[B], how many are drawn at most.
      least: int32[B], how many are drawn before a stop token may be.
      keys: uint32[B, 2], of `row_keys`; a row's t-th token is drawn by fold_in(key, t).
      stop_ids: int32[B, MAX_STOP_IDS], tokens that end a row, filled up with -1.
      settings: How each row draws.
      counts: int32[B, V] of the tokens that came up, see `choose`; None where no row has a penalty.
      bias: float32[B, V]; None where no row has one.
    """

    if TYPE_CHECKING:  # flax.struct.dataclass brings it

        def replace(self, **changes: Any) -> Self: ...

    state: AnyState
    token: jax.Array
    alive: jax.Array
    step: jax.Array
    limit: jax.Array
    least: jax.Array
    keys: jax.Array
    stop_ids: jax.Array
    settings: Settings
    counts: jax.Array | None = None
    bias: jax.Array | None = None


def empty_rows(model: Griffin, params: dict, size: int, tokens: int) -> Rows:
    """Returns rows that belong to no text, beside the parameters.

    Args:
      model: The model.
      params: Its parameters.
      size: How many, a value of `prefill.batch_size_for`.
      tokens: As for `prefill.fresh_state`.
    """
    values = entry_of(0, 0, 0, np.zeros(2, np.uint32), (), settings_of(None))
    values = jax.tree.map(lambda x: np.broadcast_to(x, (size, *np.shape(x))), values)
    values = prefill.put_whole(params, values.replace(alive=np.zeros(size, bool)))
    return values.replace(state=prefill.fresh_state(model, params, size, tokens))


def entry_of(
    token: int,
    limit: int,
    least: int,
    key: np.ndarray,
    stop_ids: Sequence[int],
    settings: Settings,
) -> Rows:
    """Returns one row that has drawn nothing yet, without its state, as `insert_row` takes it."""
    padded = np.full(MAX_STOP_IDS, -1, np.int32)
    padded[: len(stop_ids)] = stop_ids
    return Rows(
        state=None,
        token=np.int32(token),
        alive=np.bool_(True),
        step=np.int32(0),
        limit=np.int32(limit),
        least=np.int32(least),
        keys=np.asarray(key, np.uint32),
        stop_ids=padded,
        settings=settings,
    )


@functools.partial(jit_on_mesh, donate_argnames="rows")
def insert_row(rows: Rows, slot: np.ndarray, entry: Rows) -> Rows:
    """Returns the rows with that of `slot` replaced: nothing of what it was before stays.

    Args:
      rows: The pool, which is donated.
      slot: int32, which row.
      entry: The result of `entry_of`, with a state of one row, and with counts and bias where `rows` has them.
    """
    state = with_row(rows.state, slot, entry.state)
    rest, values = rows.replace(state=None), entry.replace(state=None)
    rest = jax.tree.map(lambda all, one: all.at[slot].set(one), rest, values)
    return laid_out(rest.replace(state=state))


@jit_on_mesh
def take(rows: Rows, index: np.ndarray, valid: np.ndarray) -> Rows:
    """Returns a copy of the rows int32[B']; those that are not `valid`, bool[B'], belong to no
    text.
    """
    state = per_row(lambda axis, x: jnp.take(x, index, axis=axis), rows.state)
    rest = jax.tree.map(lambda x: jnp.take(x, index, axis=0), rows.replace(state=None))
    return laid_out(rest.replace(state=state, alive=rest.alive & valid))


@jit_on_mesh
def leave(state: AnyState, slot: np.ndarray) -> AnyState:
    """Returns a copy of the state of one row."""
    return constrain_state(
        per_row(lambda axis, x: lax.dynamic_slice_in_dim(x, slot, 1, axis), state)
    )


@functools.partial(
    jit_on_mesh,
    static_argnames=("model", "burst", "needs", "methods"),
    donate_argnames="rows",
    gpu_options=LOOP_AS_A_GRAPH,
)
def draw_burst(model, burst, needs, methods, params, rows, wanted, steps, masks=None):
    """Draws up to `steps` tokens of each row, fewer when all rows end.

    Args:
      model: `Griffin`.
      burst: Room for so many steps in the result.
      needs: `Needs` of all rows together.
      methods: The users' own ways of drawing that rows have, by number.
      params: The model's parameters.
      rows: The pool, which is donated; its state is a `StackedState` for stacked parameters.
      wanted: bool[B], the rows that the host has not ended meanwhile.
      steps: int32, how many steps to take.
      masks: uint32[B, ceil(V / 32)], the tokens that each row's grammar allows, which holds for one
        step; only needed where `needs.masks` says so.

    Returns:
      The rows as the next burst takes them, one that met a stop token or its limit being dead, and
      what was drawn: tokens int32[B, burst], -1 where nothing was and V where a method drew what is
      no token, and logprobs float32[B, burst]; with `needs.top`, also int32[B, burst, top] and
      float32[B, burst, top], the most likely tokens and their log-probabilities.
    """
    batch = jnp.arange(len(rows.token), dtype=jnp.int32)
    variables = {"params": params}

    def unfinished(carry):
        i, rows, _ = carry
        return (i < steps) & jnp.any(rows.alive)

    def write(carry):
        i, rows, drawn = carry
        x, state = model.apply(
            variables,
            rows.token[:, None],
            rows.state,
            lengths=rows.alive.astype(jnp.int32),
            method="features",
        )
        logits = model.apply(variables, x, method="logits")[:, 0]
        exact = model.apply(variables, x[:, 0], method="logits_by_themselves")
        token, found = draw(logits, rows, needs, methods, masks, exact)
        drawn = tuple(all.at[:, i].set(one) for all, one in zip(drawn, found, strict=True))
        counts = rows.counts
        if counts is not None:
            counts = counts.at[batch, token].add(rows.alive.astype(jnp.int32))
        step = rows.step + rows.alive.astype(jnp.int32)
        ended = jnp.any(token[:, None] == rows.stop_ids, axis=1) | (step >= rows.limit)
        rows = rows.replace(
            state=state,
            token=jnp.where(rows.alive, token, rows.token),
            alive=rows.alive & ~ended,
            step=step,
            counts=counts,
        )
        return i + 1, rows, drawn

    shape = (len(batch), burst)
    drawn = (jnp.full(shape, -1, jnp.int32), jnp.zeros(shape, jnp.float32))
    if needs.top:
        shape = (*shape, needs.top)
        drawn += (jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))
    rows = rows.replace(alive=rows.alive & wanted)
    _, rows, drawn = lax.while_loop(unfinished, write, (jnp.int32(0), rows, drawn))
    return laid_out(rows), replicate(drawn)


def draw(
    logits: jax.Array,
    rows: Rows,
    needs: Needs,
    methods: Sequence[SamplingMethod] = (),
    masks: jax.Array | None = None,
    exact: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, list[jax.Array]]:
    """Draws the next token of each row.

    Args:
      logits: float32[B, V].
      rows: The rows, whose states are not looked at.
      needs: What all rows together need.
      methods: The users' own ways, by number.
      masks: As for `draw_burst`.
      exact: What `Griffin.logits_by_themselves` returns; it has no say in which tokens are drawn.

    Returns:
      The tokens int32[B], and what is reported of them: the tokens, -1 in rows that are not alive and
      V where a method drew what is no token; their log-probabilities float32[B]; and where
      `needs.top` says so the most likely tokens and their log-probabilities, [B, top].
    """
    vocab_size = logits.shape[1]
    token, logprob = choose(
        logits,
        step_keys(rows.keys, rows.step),
        rows.settings,
        needs,
        methods=methods,
        counts=rows.counts,
        bias=rows.bias,
        allowed=_allowed(rows, masks, vocab_size) if needs.masks else None,
    )
    tops = most_likely(logits, needs.top) if needs.top else ()
    if exact is not None:
        logprob, *tops = corrected(exact, logits, token, logprob, *tops)
    reported = token
    if methods:
        reported = jnp.where((token >= 0) & (token < vocab_size), token, vocab_size)
    return token, [jnp.where(rows.alive, reported, -1), logprob, *tops]


def _allowed(rows, masks, vocab_size):
    """Returns what each row may draw now, bool[B, V]: by its grammar, and no stop token too early."""
    allowed = unpacked(masks, vocab_size)
    early = (rows.step < rows.least)[:, None] & (rows.stop_ids >= 0)
    # One past the end is dropped.
    withheld = jnp.where(early, rows.stop_ids, vocab_size)
    batch = jnp.arange(len(rows.token), dtype=jnp.int32)[:, None]
    allowed = allowed.at[batch, withheld].set(False, mode="drop")
    return constrain(allowed, "batch", "vocabulary")


def laid_out(rows: Rows) -> Rows:
    """Returns the rows in the layout in which every program takes and leaves them."""
    wide = {
        name: constrain(value, "batch", "vocabulary")
        for name, value in (("counts", rows.counts), ("bias", rows.bias))
        if value is not None
    }
    small = replicate(rows.replace(state=None, counts=None, bias=None))
    return small.replace(state=constrain_state(rows.state), **wide)


def row_keys(seed: int | Sequence[int], rows: int) -> np.ndarray:
    """Returns the random stream of each row, as key data uint32[rows, 2].

    Args:
      seed: An int gives row i the stream i of that seed. A list gives each row stream 0 of its own
        seed, which is what it has alone under that seed.
      rows: How many rows there are.

    Raises:
      ValueError: a seed is not in 0 ... 2**32 - 1, or there is not one per row.
    """
    seeds = check_seeds(seed, rows)
    single = np.ndim(seed) == 0
    keys = np.zeros((rows, 2), np.uint32)
    keys[:, 1] = seeds
    streams = np.arange(rows) if single else np.zeros(rows, np.int32)
    return np.asarray(_streams(keys, streams))


def step_keys(keys: jax.Array, steps: jax.Array) -> jax.Array:
    """Returns the PRNG keys [B] with which rows of key data uint32[B, 2] draw at steps int32[B]."""
    return jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(keys, impl=_PRNG), steps)


@jax.jit
def _streams(keys, streams):
    keys = jax.random.wrap_key_data(keys, impl=_PRNG)
    return jax.random.key_data(jax.vmap(jax.random.fold_in)(keys, streams))
