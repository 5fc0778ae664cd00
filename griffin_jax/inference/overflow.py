"""Raises an error when logits are not finite."""

import numpy as np
from jax.typing import DTypeLike


def check_finite(log_probabilities: np.ndarray, dtype: DTypeLike) -> None:
    """Raises ValueError when logits were NaN or infinite, as log-probabilities then are, too.

    Under float16 this is what an activation beyond 65,504 leads to: the next norm makes NaN of it,
    which spreads to every logit. `dtype` is that of the activations.
    """
    if np.isfinite(log_probabilities).all():
        return
    name = np.dtype(dtype).name
    if name == "float16":
        raise ValueError(
            "the logits are NaN or infinite: activations overflow float16, which ends at 65,504; "
            "load the model with dtype='bfloat16' or 'float32'"
        )
    raise ValueError(f"the logits are NaN or infinite in {name}: the weights are damaged")
