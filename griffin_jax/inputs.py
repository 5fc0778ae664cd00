"""What callers of the library may give: token ids, prompts, pairs, states, seeds, stop strings.

Each check raises a ValueError of one line that names the argument, what was given and what would be
right. Numbers and ranges of configs are the business of `griffin_jax.fields`.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.config import GriffinConfig
from griffin_jax.fields import check_value, shown
from griffin_jax.models.blocks import block_of
from griffin_jax.models.stack import AnyState, StackedState, num_groups
from griffin_jax.models.state import BlockState, State
from griffin_jax.sharding import check_batch


def check_type(name: str, value: Any, kind: type | tuple[type, ...], right: str) -> None:
    """Raises ValueError where a value is not an instance of `kind`, which `right` puts in words."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be {right}, got {shown(value)}")


def check_tokens(tokens: Sequence[int], vocab_size: int, name: str) -> None:
    """Checks the token ids of one text.

    Raises:
      ValueError: there are none, they are no whole numbers, or one is outside of the vocabulary.
    """
    if not _is_sequence(tokens):
        raise ValueError(f"{name} must be a list of token ids, got {_told(tokens)}")
    if not len(tokens):
        raise ValueError(f"{name} is empty; give at least one token")
    ids = _as_array(tokens)
    if ids is None or ids.ndim != 1 or ids.dtype.kind not in "iu":
        odd = (
            [x for x in tokens if not _is_id(x, vocab_size)] if ids is None or ids.ndim == 1 else []
        )
        if odd:
            raise ValueError(f"{name} holds token {shown(odd[0])}; ids are 0 to {vocab_size - 1}")
        raise ValueError(f"{name} must be a list of token ids, got {_told(tokens)}")
    if outside := ids[(ids < 0) | (ids >= vocab_size)][:1].tolist():
        raise ValueError(f"{name} holds token {outside[0]}; ids are 0 to {vocab_size - 1}")


def check_call(
    config: GriffinConfig,
    mesh: jax.sharding.Mesh | None,
    tokens: Any,
    state: AnyState | None,
    lengths: Any,
    positions: Any,
) -> tuple[jax.Array, AnyState | None, jax.Array | None, jax.Array | None]:
    """Returns tokens, state, lengths and positions of a call of the model, the numbers as int32.

    Args:
      config: The model's shape.
      mesh: The mesh that its parameters lie on; None on one device.
      tokens: As for `LanguageModel.apply`, and so are the rest.
      state: What the rows have read before.
      lengths: How many tokens of each row are real.
      positions: The position of each token.

    Raises:
      ValueError: one of them is not what `LanguageModel.apply` takes.
    """
    if isinstance(tokens, jax.Array):
        check_shape_of_rows(tokens)
    else:
        tokens = check_token_rows(tokens, config.vocab_size)
    if lengths is not None:
        lengths = check_lengths(lengths, *tokens.shape)
    if positions is not None:
        positions = check_positions(positions, tokens.shape)
    if state is not None:
        check_state(state, config, len(tokens))
    if mesh is not None:
        check_batch(len(tokens), mesh)

    def whole(numbers):
        return None if numbers is None else jnp.asarray(numbers, jnp.int32)

    return jnp.asarray(tokens, jnp.int32), state, whole(lengths), whole(positions)


def check_token_rows(tokens: Any, vocab_size: int) -> np.ndarray:
    """Returns the tokens [B, T] of a call, as an array.

    Raises:
      ValueError: they are not that, or one is outside of the vocabulary.
    """
    array = _as_array(tokens)
    if array is None:
        raise ValueError(
            "tokens must be integers [batch, time], got rows that are none or differ in length; "
            "pad them and give lengths"
        )
    check_shape_of_rows(array)
    if not 0 <= array.min() <= array.max() < vocab_size:
        raise ValueError(
            f"tokens range over {array.min()} to {array.max()}; ids are 0 to {vocab_size - 1}"
        )
    return array


def check_shape_of_rows(tokens: jax.Array | np.ndarray) -> None:
    """Checks what can be known of tokens [B, T] without reading them, also while they are traced.

    Raises:
      ValueError: they have another number of axes or are no whole numbers, or there are none.
    """
    if tokens.ndim != 2 or not tokens.size or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            f"tokens must be integers [batch, time], got {tokens.dtype}{list(tokens.shape)}"
        )


def _of_shape(name, numbers, shape):
    """Returns numbers on a device, of which nothing but shape and dtype is known without reading."""
    if numbers.shape != shape or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(
            f"{name} must be whole numbers {list(shape)}, as tokens are given, got "
            f"{numbers.dtype}{list(numbers.shape)}"
        )
    return numbers


def check_positions(positions: Any, shape: tuple[int, int]) -> np.ndarray | jax.Array:
    """Returns the positions [B, T] of a call's tokens in their documents, as an array; of a JAX array
    shape and dtype alone are checked.

    Raises:
      ValueError: they have another shape than the tokens, or one neither follows the one before it
        in its row nor is 0.
    """
    if isinstance(positions, jax.Array):
        return _of_shape("positions", positions, shape)
    array = _as_array(positions)
    if array is None or array.shape != shape or array.dtype.kind not in "iu":
        raise ValueError(
            f"positions must be whole numbers {list(shape)}, one for each token, got "
            f"{shown(positions if array is None else array.tolist())}"
        )
    good = (array[:, 1:] == array[:, :-1] + 1) | (array[:, 1:] == 0)
    if (array < 0).any() or not good.all():
        raise ValueError(
            "positions must go up by one along a row or start again at 0, got "
            f"{shown(array.tolist())}"
        )
    return array


def check_lengths(lengths: Any, batch: int, time: int) -> np.ndarray | jax.Array:
    """Returns the lengths [B] of a call's rows, as an array; of a JAX array shape and dtype alone are
    checked.

    Raises:
      ValueError: they are not one whole number of 0 to T for each row.
    """
    if isinstance(lengths, jax.Array):
        return _of_shape("lengths", lengths, (batch,))
    array = _as_array(lengths)
    if (
        array is None
        or array.shape != (batch,)
        or array.dtype.kind not in "iu"
        or not ((array >= 0) & (array <= time)).all()
    ):
        raise ValueError(
            f"lengths must be {batch} numbers of 0 to {time}, one for each row of tokens, "
            f"got {shown(lengths if array is None else array.tolist())}"
        )
    return array


def check_state(state: Any, config: GriffinConfig, batch: int) -> None:
    """Checks what a call goes on from; its arrays may be tracers.

    Raises:
      ValueError: it is no state, or that of another model or of other rows.
    """
    right = "what an earlier call returned, or init_state"
    check_type("state", state, State | StackedState, right)
    rows = state.position.shape
    if rows != (batch,):
        raise ValueError(f"state is of {rows[0]} rows, and tokens have {batch}")
    places, kinds = len(config.block_pattern), config.block_types
    if isinstance(state, State):
        stacks, blocks = (), state.blocks
    else:
        stacks, blocks = state.groups, state.rest
    count = num_groups(config) * places if stacks else 0
    good = len(stacks) == (places if stacks else 0) and len(blocks) == len(kinds) - count
    good = good and all(
        _is_block(block, kind, config, (num_groups(config), batch))
        for block, kind in zip(stacks, kinds, strict=False)
    )
    good = good and all(
        _is_block(block, kind, config, (batch,))
        for block, kind in zip(blocks, kinds[count:], strict=True)
    )
    if not good:
        raise ValueError(f"state is of a model of another shape; give {right} of this one")


def check_prompts(prompts: Any) -> list:
    """Returns the prompts of a call as a list; what each of them is, `check_prompt` says.

    Raises:
      ValueError: they are no list.
    """
    if isinstance(prompts, str | bytes | Mapping) or not isinstance(prompts, Iterable):
        raise ValueError(
            f"prompts must be text, or a list of texts or of lists of token ids, got {_told(prompts)}"
        )
    return list(prompts)


def check_prompt(prompt: Any, name: str) -> None:
    """Checks that a prompt is text or a list of token ids, and not empty.

    Raises:
      ValueError: it is neither.
    """
    if not isinstance(prompt, str) and not _is_sequence(prompt):
        raise ValueError(f"{name} must be text or a list of token ids, got {_told(prompt)}")
    if not len(prompt):
        raise ValueError(f"{name} is empty; give some text, or a list with the BOS id")
    if not isinstance(prompt, str) and isinstance(prompt[0], str | bytes | Mapping):
        raise ValueError(
            f"{name} must be text or a list of token ids, got a list of {_told(prompt[0])}"
        )


def check_pairs(pairs: Any) -> list[tuple[Any, Any]]:
    """Returns the (context, continuation) pairs of a call.

    Raises:
      ValueError: they are no list, or one is not two texts or two lists of token ids.
    """
    if isinstance(pairs, str | bytes | Mapping) or not isinstance(pairs, Iterable):
        raise ValueError(
            f"pairs must be a list of (context, continuation) pairs, got {_told(pairs)}"
        )
    checked = []
    for index, pair in enumerate(pairs):
        parts = list(pair) if _is_sequence(pair) and len(pair) == 2 else []
        texts = [isinstance(part, str) for part in parts]
        if not parts or not (all(texts) or (not any(texts) and all(map(_is_sequence, parts)))):
            raise ValueError(
                f"pair {index} must be two texts or two lists of token ids, got {shown(pair)}"
            )
        checked.append((parts[0], parts[1]))
    return checked


def check_seeds(seed: Any, rows: int) -> list[int]:
    """Returns one seed, or one for each row.

    Raises:
      ValueError: they are no whole numbers in 0 ... 2**32 - 1, or another number than `rows`.
    """
    single = isinstance(seed, str | bytes | Mapping) or not isinstance(seed, Iterable)
    single = single or np.ndim(seed) == 0
    seeds: list[Any] = [seed] if single else list(seed)
    for i, value in enumerate(seeds):
        try:
            seeds[i] = check_value("seed", value, int, at_least=0, below=2**32)
        except ValueError:
            line = f"seed must be a whole number in 0 ... 2**32 - 1, got {shown(value)}"
            raise ValueError(line) from None
    if not single and len(seeds) != rows:
        raise ValueError(f"{len(seeds)} seeds for {rows} prompts; give one int, or one per prompt")
    return seeds


def check_stop(stop: Any) -> tuple[str, ...]:
    """Returns the strings that end a text.

    Raises:
      ValueError: they are no strings, or one is empty.
    """
    stop = (stop,) if isinstance(stop, str) else stop
    if isinstance(stop, bytes | Mapping) or not isinstance(stop, Iterable):
        raise ValueError(f"stop must be text or a list of texts, got {shown(stop)}")
    strings = tuple(stop)
    for string in strings:
        if not isinstance(string, str) or not string:
            raise ValueError(f"stop must hold strings, none of them empty, got {shown(string)}")
    return strings


def check_max_new_tokens(value: Any) -> int:
    """Returns how many tokens may be written.

    Raises:
      ValueError: it is no whole number of at least 0.
    """
    return check_value("max_new_tokens", value, int, at_least=0, at_most=2**31 - 1)


def _is_sequence(value):
    if isinstance(value, str | bytes | bytearray | Mapping):
        return False
    if isinstance(value, np.ndarray | jax.Array):
        return value.ndim > 0
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")


def _as_array(values):
    """Returns the numbers as an array; None where they make none, such as rows of unlike
    lengths.
    """
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, OverflowError):
        return None
    return None if array.dtype.kind == "O" else array


def _is_id(value, vocab_size):
    number = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return number and 0 <= value < vocab_size


def _is_block(block, kind, config, lead):
    """Returns whether a block's state is of this kind and shape, rows and stack before it."""
    if not isinstance(block, BlockState):
        return False
    *stack, batch = lead
    like = _abstract_state(kind, config, batch, block.slots())
    if jax.tree.structure(block) != jax.tree.structure(like):
        return False
    pairs = zip(jax.tree.leaves(block), jax.tree.leaves(like), strict=True)
    return all(x.shape == (*stack, *expected.shape) for x, expected in pairs)


@functools.lru_cache(maxsize=64)  # it is traced
def _abstract_state(kind, config, batch, slots):
    init = functools.partial(block_of(kind).init_state, config, batch, "float32", slots)
    return jax.eval_shape(init)


def _told(value):
    """Returns a value that stands where text or ids should, and what to do about it."""
    if isinstance(value, bytes | bytearray):
        return f"bytes ({shown(value)}); decode them to text"
    if isinstance(value, jax.Array | np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return shown(value)
