"""Grammars: what may follow the tokens of a text, as a mask that the device applies to its logits."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

_WORD = 32  # bits


@runtime_checkable
class Grammar(Protocol):
    """Says which tokens may follow a text; an object of one request, which may keep what it has seen.

    A call is given all tokens that were drawn so far: the first one none, each later one those of the
    call before, and more. One thread calls at a time. A stop token can be drawn only where its bit is
    set. Where nothing but stop tokens may follow, or nothing at all, the text is complete and the
    request ends.
    """

    def allowed(self, tokens: Sequence[int]) -> np.ndarray:
        """Returns which tokens may follow.

        Args:
          tokens: What was drawn after the prompt.

        Returns:
          bool[V]; or the same packed into integers of 32 bits [ceil(V / 32)], where token t is bit
          t % 32 of number t // 32.
        """
        ...


def words_of(vocab_size: int) -> int:
    """Returns how many packed numbers hold a bit for each token."""
    return -(-vocab_size // _WORD)


def everything(vocab_size: int) -> np.ndarray:
    """Returns the packed mask that allows all tokens, uint32[ceil(V / 32)]."""
    return packed(np.ones(vocab_size, bool), vocab_size)


def packed(mask: np.ndarray, vocab_size: int) -> np.ndarray:
    """Returns a mask of `Grammar.allowed` as uint32[ceil(V / 32)], without bits beyond the
    vocabulary.

    Raises:
      ValueError: it is neither of the two forms.
    """
    mask = np.asarray(mask)
    words = words_of(vocab_size)
    if mask.dtype == bool and mask.shape == (vocab_size,):
        bits = np.zeros(words * _WORD, bool)
        bits[:vocab_size] = mask
        return np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)
    if mask.dtype in (np.int32, np.uint32) and mask.shape == (words,):
        mask = mask.view(np.uint32).copy()
        if rest := vocab_size % _WORD:
            mask[-1] &= np.uint32((1 << rest) - 1)
        return mask
    raise ValueError(
        f"a grammar's mask must be bool[{vocab_size}] or int32[{words}], got "
        f"{mask.dtype}{list(mask.shape)}"
    )


def allows(mask: np.ndarray, token: int) -> bool:
    """Returns whether a packed mask has the bit of a token."""
    return bool(mask[token // _WORD] >> np.uint32(token % _WORD) & np.uint32(1))


def allows_more_than(mask: np.ndarray, tokens: Sequence[int]) -> bool:
    """Returns whether a packed mask has the bit of any token but these."""
    mask = mask.copy()
    for token in tokens:
        if token < len(mask) * _WORD:
            mask[token // _WORD] &= ~np.uint32(1 << token % _WORD)
    return bool(mask.any())


def unpacked(masks: jax.Array, vocab_size: int) -> jax.Array:
    """Returns packed masks uint32[B, ceil(V / 32)] as bool[B, V], on the device."""
    bits = masks[:, :, None] >> jnp.arange(_WORD, dtype=jnp.uint32)[None, None]
    return (bits & 1).astype(bool).reshape(len(masks), -1)[:, :vocab_size]
