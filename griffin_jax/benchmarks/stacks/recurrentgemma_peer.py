"""`recurrentgemma` of the model's authors, in JAX, through its own sampler's two steps."""

from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.benchmarks import memory
from griffin_jax.benchmarks.stacks import Mark, Prompts, Unavailable, require
from griffin_jax.benchmarks.subject import Subject
from griffin_jax.config import RECURRENT

_HINT = "pip install --no-deps -r .ci/requirements-recurrentgemma.txt"


class _Vocabulary:
    """The vocabulary that the sampler needs."""

    def bos_id(self):
        return 2

    def eos_id(self):
        return 1

    def pad_id(self):
        return 0


class Peer:
    """See `stacks.Stack`.

    Its sampler compiles anew for every prompt length and number of tokens.
    """

    copies = 1

    def __init__(self, subject: Subject, seed: int = 0):
        require("recurrentgemma", "1.0", _HINT)
        config = subject.config
        if subject.quantization is not None:
            raise Unavailable(f"{subject}: recurrentgemma has no packed weights")
        if config.attention_window is None or not config.projection_bias:
            raise Unavailable(f"{subject}: recurrentgemma has no such model")
        try:
            from recurrentgemma import common
            from recurrentgemma import jax as authors
        except ImportError as error:
            raise Unavailable(f"recurrentgemma cannot be imported: {error}; {_HINT}") from None

        kinds = common.TemporalBlockType
        theirs = authors.GriffinConfig(
            vocab_size=config.vocab_size,
            width=config.width,
            mlp_expanded_width=config.mlp_width,
            num_heads=config.num_heads,
            block_types=tuple(
                kinds.RECURRENT if kind == RECURRENT else kinds.ATTENTION
                for kind in config.block_types
            ),
            embeddings_scale_by_sqrt_dim=config.scale_embeddings,
            attention_window_size=config.attention_window,
            logits_soft_cap=config.logits_soft_cap or 0.0,
            lru_width=config.recurrence_width,
        )
        dtype = jnp.dtype(subject.dtype)
        model = authors.Griffin(theirs, dtype=dtype, param_dtype=dtype)
        tokens = jnp.zeros((1, 8), jnp.int32)
        shapes = jax.eval_shape(
            lambda key: model.init(key, tokens=tokens, segment_pos=jnp.arange(8)[None]),
            jax.random.key(0),
        )["params"]
        with memory.meeting_limits():
            leaves, tree = jax.tree.flatten(shapes)
            root = jax.random.key(seed, impl="rbg")
            params = [
                _draw(jax.random.fold_in(root, i), leaf.shape, leaf.dtype)
                for i, leaf in enumerate(leaves)
            ]
            params = jax.block_until_ready(jax.tree.unflatten(tree, params))
        self._sampler = authors.Sampler(model=model, vocab=_Vocabulary(), params=params)
        self.about: dict[str, Any] = subject.to_dict() | {
            "versions": {
                "recurrentgemma": metadata.version("recurrentgemma"),
                "jax": jax.__version__,
            },
            "weight_bytes": memory.tree_bytes(params),
        }

    def warm(self, prompts: Prompts, tokens: int) -> None:
        """See `stacks.Stack`."""
        self.generate(prompts, tokens, lambda n: None)

    def generate(self, prompts: Prompts, tokens: int, mark: Mark) -> None:
        """See `stacks.Stack`; marks come for the first token and the last."""
        sampler = self._sampler
        with memory.meeting_limits():
            state = sampler.prompt_processing_fn(
                sampler.params,
                jnp.asarray(prompts, jnp.int32),
                None,
                jnp.asarray([len(prompt) for prompt in prompts]),
                tokens,
                False,
                False,
            )
            np.asarray(state.tokens_buffer)
            mark(1)
            if tokens > 1:
                np.asarray(sampler.sample_fn(sampler.params, state, False).tokens_buffer)
                mark(tokens)

    def peak_bytes(self) -> int | None:
        """See `stacks.Stack`."""
        return memory.peak_bytes()


def _draw(key, shape, dtype):
    return jax.jit(lambda key: jax.random.normal(key, shape, dtype) * 0.02)(key)
