"""The loop that draws tokens on the device, and the random stream of each row."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from griffin_jax.devices import constrain, replicate
from griffin_jax.inference.sampling import choose
from griffin_jax.inputs import check_seeds
from griffin_jax.sharding import jit_on_mesh
from griffin_jax.sharding.layouts import constrain_state

# A row's numbers do not depend on the rows beside it, which not every generator promises.
_PRNG = "threefry2x32"

# The loop of a burst as one CUDA graph, whose end the device decides. By XLA's default each turn is
# launched by the host, which holds the thread that dispatches a burst until it ends: none can be
# under way while the one before is received. A list replaces the default, which in jaxlib 0.11
# is these without WHILE. XLA leaves a loop whose body holds anything else out of graphs, such as
# the collectives of several GPUs, for which nothing is asked.
_LOOP_AS_A_GRAPH = {
    "xla_gpu_enable_command_buffer": (
        "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,WHILE,CONDITIONAL"
    )
}


@functools.partial(
    jit_on_mesh,
    static_argnames=("model", "burst"),
    donate_argnames=("state", "seen"),
    gpu_options=_LOOP_AS_A_GRAPH,
)
def draw_burst(
    model, burst, params, state, seen, token, alive, keys, step, limit, stop_ids, values
):
    """Up to `limit` steps, fewer when all rows meet a stop token.

    Args:
      model: `Griffin`.
      burst: Room for so many steps in the result.
      params: Its parameters.
      state: Of all that comes before `token`; a `StackedState` for stacked parameters.
      seen: bool[B, V] or None, tokens under the repetition penalty.
      token: int32[B], the last token of each row, which the state has not read.
      alive: bool[B], the rows that are written; the others' states stay as they are.
      keys: uint32[B, 2], of `row_keys`; a row's t-th token is drawn by fold_in(key, t).
      step: How many tokens came before.
      limit: How many steps to take.
      stop_ids: int32[S], filled up with -1.
      values: Of `SamplingConfig.active`.

    Returns:
      state, seen, token and alive as the next burst takes them, a row that met a stop token being
      dead, and what was drawn: tokens int32[B, burst], -1 where nothing was, and logprobs
      float32[B, burst].
    """
    batch = jnp.arange(token.shape[0])
    keys = jax.random.wrap_key_data(keys, impl=_PRNG)
    variables = {"params": params}

    def unfinished(carry):
        i, alive = carry[0], carry[4]
        return (i < limit) & jnp.any(alive)

    def write(carry):
        i, state, seen, token, alive, tokens, logprobs = carry
        x, state = model.apply(
            variables, token[:, None], state, lengths=alive.astype(jnp.int32), method="features"
        )
        logits = model.apply(variables, x, method="logits")[:, 0]
        now = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step + i)
        token, logprob = choose(logits, now, values, seen)
        if seen is not None:
            seen = seen.at[batch, token].max(alive)
        tokens = tokens.at[:, i].set(jnp.where(alive, token, -1))
        logprobs = logprobs.at[:, i].set(logprob)
        alive = alive & ~jnp.any(token[:, None] == stop_ids[None], axis=1)
        return i + 1, state, seen, token, alive, tokens, logprobs

    shape = (token.shape[0], burst)
    drawn = (jnp.full(shape, -1, jnp.int32), jnp.zeros(shape, jnp.float32))
    carry = (jnp.int32(0), state, seen, token, alive, *drawn)
    _, state, seen, *drawn = lax.while_loop(unfinished, write, carry)
    seen = seen if seen is None else constrain(seen, "batch", "vocabulary")
    return constrain_state(state), seen, *replicate(drawn)


def stop_array(stop_ids: Sequence[int]) -> np.ndarray:
    """Stop ids filled up with -1, which is no token, so that their number compiles nothing."""
    array = np.full(4 * (len(stop_ids) // 4 + 1), -1, np.int32)
    array[: len(stop_ids)] = stop_ids
    return array


def row_keys(seed: int | Sequence[int], rows: int) -> np.ndarray:
    """The random stream of each row, as key data uint32[rows, 2].

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


@jax.jit
def _streams(keys, streams):
    keys = jax.random.wrap_key_data(keys, impl=_PRNG)
    return jax.random.key_data(jax.vmap(jax.random.fold_in)(keys, streams))
