"""Gradients with respect to what is computed inside of a model."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from griffin_jax.sharding import jit_on_mesh
from griffin_jax.tracing.trace import Trace, select_patches


def gradients(
    lm: Any,
    tokens: Any,
    names: Sequence[str] | str,
    loss: Callable[[Trace], jax.Array],
    **options: Any,
) -> dict[str, jax.Array]:
    """Returns how a number that a model's run comes to changes with what is at some places.

    Args:
      lm: A `LanguageModel`.
      tokens: int32[B, T].
      names: Places or patterns of them, as for `LanguageModel.trace`.
      loss: From a run's trace, of which it may read logits, state and these places, to a number.
      **options: `state`, `lengths` and `positions` of `LanguageModel.trace`.

    Returns:
      By name the gradient, of the shape and dtype of what is there. That of a state counts what
      follows from it in later states, too.

    Raises:
      ValueError: as for `LanguageModel.trace`; or a place is one that nothing reads.
    """
    select_patches(
        lm.config, {names: _same} if isinstance(names, str) else dict.fromkeys(names, _same)
    )
    shapes = jax.eval_shape(lambda lm: lm.trace(tokens, names, **options).places, lm)

    def run(lm, added):
        def total(added):
            patch = {name: (lambda x, d=delta: x + d) for name, delta in added.items()}
            return loss(lm.trace(tokens, names, patch, **options))

        return jax.grad(total)(added)

    return jit_on_mesh(run)(
        lm, {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes.items()}
    )


def _same(value):
    return value
