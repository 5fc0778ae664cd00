"""Drawing with drafts: the model checks a few tokens in one call, and keeps those it would draw.

Every token is drawn from the model's own logits by its row's own random stream, as it is without a
draft; a draft that agrees only has spared a call. So a text is the one that plain decoding gives, for
every seed, and not merely one of the same distribution.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from griffin_jax.devices import constrain, replicate
from griffin_jax.inference.decode import LOOP_AS_A_GRAPH, Rows, draw, laid_out
from griffin_jax.sharding import jit_on_mesh


@functools.partial(
    jit_on_mesh,
    static_argnames=("model", "drafter", "count", "rounds", "needs", "methods"),
    donate_argnames=("rows", "memory"),
    gpu_options=LOOP_AS_A_GRAPH,
)
def draw_drafted(
    model,
    drafter,
    count,
    rounds,
    needs,
    methods,
    params,
    draft_params,
    rows,
    memory,
    keep,
    steps,
    masks=None,
):
    """Makes up to `steps` calls of the model, each of which draws up to 1 + `count` tokens of each
    row.

    Args:
      model: `Griffin`.
      drafter: `Drafter`.
      count: Tokens of a draft, K.
      rounds: Room for so many calls in the result, R.
      needs: As for `draw_burst`.
      methods: As for `draw_burst`.
      params: The model's parameters.
      draft_params: Those of the drafter.
      rows: The pool, which is donated.
      memory: The drafter's, which is donated.
      keep: As for `draw_burst`.
      steps: int32, how many calls to make.
      masks: As for `draw_burst`, but of rows that have no grammar.

    Returns:
      The rows and the memory as the next burst takes them; what was drawn, as `draw_burst` returns it,
      [B, R (1 + K)], where tokens of a row may have gaps of -1 between them; and int32[B, R], how
      many tokens were drafted in each call, -1 where a row took no part.
    """
    width = count + 1

    def unfinished(carry):
        i, rows, *_ = carry
        return (i < steps) & jnp.any(rows.alive)

    def write(carry):
        i, rows, memory, drawn, drafted = carry
        drafts, lengths = drafter.propose(draft_params, memory, rows, needs, count)
        # The token before the last that a row may draw needs none.
        lengths = jnp.clip(rows.limit - rows.step - 1, 0, lengths)
        read = jnp.concatenate([rows.token[:, None], drafts], axis=1)

        def check(module):
            real = jnp.where(rows.alive, lengths + 1, 0)
            x, advance = module.lookahead(read, rows.state, real)
            exact = module.logits_by_themselves(x.reshape(-1, x.shape[-1]))
            after, found, kept = _accept(
                module.logits(x), rows, drafts, lengths, needs, methods, masks, exact
            )
            return after.replace(state=advance(kept)), found, kept

        after, found, kept = nn.apply(check, model)({"params": params})
        memory = drafter.advance(draft_params, memory, read, found[0], kept)
        drawn = tuple(
            lax.dynamic_update_slice_in_dim(all, some, i * width, axis=1)
            for all, some in zip(drawn, found, strict=True)
        )
        drafted = drafted.at[:, i].set(jnp.where(rows.alive, lengths, -1))
        return i + 1, after, memory, drawn, drafted

    batch = len(rows.token)
    shape = (batch, rounds * width)
    drawn = (jnp.full(shape, -1, jnp.int32), jnp.zeros(shape, jnp.float32))
    if needs.top:
        shape = (*shape, needs.top)
        drawn += (jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))
    drafted = jnp.full((batch, rounds), -1, jnp.int32)
    rows = rows.replace(alive=rows.alive & keep)
    carry = (jnp.int32(0), rows, memory, drawn, drafted)
    _, rows, memory, drawn, drafted = lax.while_loop(unfinished, write, carry)
    return laid_out(rows), memory, replicate(drawn), replicate(drafted)


def _accept(logits, rows: Rows, drafts, lengths, needs, methods, masks, exact):
    """Draws after each of the tokens that were read, and keeps what agrees with the drafts.

    Args:
      logits: float32[B, T, V], after a row's last token and after each of its draft.
      rows: The rows before.
      drafts: int32[B, T - 1].
      lengths: int32[B], how many of a draft are real.
      needs: See `draw_drafted`.
      methods: See `draw_drafted`.
      masks: See `draw_drafted`.
      exact: As for `draw`, of B T rows.

    Returns:
      The rows after, but for their state; what is reported of each token, [B, T, ...] as `draw` does,
      -1 where it is not kept; and int32[B], how many are.
    """
    batch, time, vocab_size = logits.shape
    ahead = jnp.arange(time, dtype=jnp.int32)[None]
    step = rows.step[:, None] + ahead
    each = jax.tree.map(lambda x: jnp.repeat(x, time, axis=0), rows.replace(state=None))
    each = each.replace(step=step.reshape(-1))
    if rows.counts is not None:
        added = jnp.cumsum(jax.nn.one_hot(drafts, vocab_size, dtype=jnp.int32), axis=1)
        added = jnp.pad(added, ((0, 0), (1, 0), (0, 0)))
        each = each.replace(counts=(rows.counts[:, None] + added).reshape(-1, vocab_size))
    if masks is not None:
        masks = jnp.repeat(masks, time, axis=0)
    flat = constrain(logits.reshape(-1, vocab_size), "batch", "vocabulary")
    token, found = draw(flat, each, needs, methods, masks, exact)
    token, *found = (x.reshape(batch, time, *x.shape[1:]) for x in (token, *found))
    ends = jnp.any(token[..., None] == rows.stop_ids[:, None], axis=-1)
    ends |= step + 1 >= rows.limit[:, None]
    agrees = (token[:, :-1] == drafts) & (ahead[:, :-1] < lengths[:, None])
    goes_on = jnp.pad(agrees & ~ends[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    kept = rows.alive[:, None] & (jnp.cumprod(goes_on, axis=1) > 0)
    count = jnp.sum(kept, axis=1, dtype=jnp.int32)
    last = jnp.maximum(count - 1, 0)[:, None]
    ended = jnp.take_along_axis(ends, last, axis=1)[:, 0]
    newest = jnp.take_along_axis(token, last, axis=1)[:, 0]
    counts = rows.counts
    if counts is not None:
        row = jnp.arange(batch, dtype=jnp.int32)[:, None]
        counts = counts.at[row, token].add(kept.astype(jnp.int32))
    after = rows.replace(
        token=jnp.where(rows.alive, newest, rows.token),
        alive=rows.alive & ~ended,
        step=rows.step + count,
        counts=counts,
    )
    found[0] = jnp.where(kept, found[0], -1)
    return after, found, count
