"""A tiny language model over bytes, whose texts vary though its weights are random."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.config import ATTENTION, RECURRENT, GriffinConfig
from griffin_jax.language_model import LanguageModel
from griffin_jax.models import abstract_params
from griffin_jax.tokenizer import END_OF_TURN, START_OF_TURN, Tokenizer

WINDOW = 8
SPECIAL = ["<pad>", "<eos>", "<bos>", START_OF_TURN, END_OF_TURN]
PAD, EOS, BOS, START, END = range(5)


class ByteTokenizer(Tokenizer):
    """The special pieces, then a piece for each byte."""

    _bos_piece = "<bos>"

    def __init__(self):
        super().__init__(pathlib.Path("bytes"), 5 + 256, BOS, EOS, PAD)

    def piece_to_id(self, piece):
        return SPECIAL.index(piece) if piece in SPECIAL else None

    def _encode(self, text):
        ids = []
        for part in re.split("(" + "|".join(SPECIAL) + ")", text):
            ids += [SPECIAL.index(part)] if part in SPECIAL else [5 + b for b in part.encode()]
        return ids

    def _piece(self, token_id):
        return "" if token_id < 5 else f"<0x{token_id - 5:02X}>"


CONFIG = GriffinConfig(
    vocab_size=5 + 256,
    width=32,
    mlp_width=48,
    num_layers=2,
    num_heads=4,
    block_pattern=(RECURRENT, ATTENTION),
    recurrence_width=48,
    attention_window=WINDOW,
    tie_embeddings=False,
)


@functools.cache
def language_model(config: GriffinConfig = CONFIG) -> LanguageModel:
    """Made once, so that tests share what is compiled."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        scale = 1.5 if path[0].key == "lm_head" else 0.1  # the next token is far from uniform
        return jnp.asarray(scale * rng.standard_normal(leaf.shape, np.float32))

    params = jax.tree_util.tree_map_with_path(draw, abstract_params(config))
    return LanguageModel(config, params, ByteTokenizer())


@functools.cache
def plain_logits(tokens: tuple[int, ...], config: GriffinConfig = CONFIG) -> np.ndarray:
    """float32[T, V], the model over a whole text at once."""
    length = -(-len(tokens) // 128) * 128  # few compilations
    padded = np.zeros((1, length), np.int32)
    padded[0, : len(tokens)] = tokens
    logits, _ = language_model(config).apply(padded, lengths=[len(tokens)])
    return np.asarray(logits)[0, : len(tokens)]
