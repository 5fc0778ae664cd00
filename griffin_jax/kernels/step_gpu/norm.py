"""The root mean square normalisation in front of a product of one vector.

Its factor is one number for the whole vector, so that it multiplies what the product gives. For
plain weights a product reads the vector and the norm's scale, and adds up the squares itself. For
4-bit weights, whose kernels have little room for more, whoever makes the vector multiplies it by
the scale and adds up parts of its squares.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from griffin_jax.kernels.step_gpu.launch import launch
from griffin_jax.kernels.step_gpu.products import store, vector_like

_PART = 256  # numbers of one program


def entering(x: jax.Array, scale: jax.Array, packed: bool, *, interpret: bool) -> dict:
    """What `products` reads in place of the norm of x.

    Args:
      x: [D].
      scale: [D], of the norm.
      packed: Whether the weights are in 4 bits.
      interpret: Run on any device, slowly, for tests.

    Returns:
      A dict of inputs for `launch`, "x" among them; `norm` finds the rest.
    """
    if not packed:
        return {"x": x, "scale": scale}
    programs = x.shape[0] // _PART

    def enter(inputs, buffers, i):
        rows = pl.ds(i * _PART, _PART)
        write(buffers, rows, i, inputs["x"][rows], inputs["scale"][rows])

    return launch(
        [(programs, enter)],
        {"x": x, "scale": scale},
        entering_like(x, programs),
        name="step_enter",
        interpret=interpret,
    )


def entering_like(x: jax.Array, parts: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Buffers for what enters 4-bit products, with so many parts of the sum of squares."""
    squares = jax.ShapeDtypeStruct((parts,), jnp.float32)
    return vector_like("x", x.shape[0], x.dtype, True) | {"squares": squares}


def write(buffers: dict, rows, part: jax.Array, x: jax.Array, scale: jax.Array) -> None:
    """Writes some rows of x and a part of its squares to buffers of `entering_like`."""
    x = x.astype(jnp.float32)
    store(buffers, "x", rows.start, x * (1 + scale.astype(jnp.float32)))
    buffers["squares"][part] = (x * x).sum()


def norm(inputs: dict, eps: float) -> tuple:
    """The argument `norm` of `products`, from references to what `entering` gave."""
    return inputs["squares" if "squares" in inputs else "scale"], eps
