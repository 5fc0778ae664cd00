"""The root mean square normalization in front of a product of one vector.

Its factor is one number for the whole vector, so that it multiplies what the product gives. For
plain weights a product reads the vector and the norm's scale, and adds up the squares itself. For
4-bit weights, whose kernels have little room for more, whoever makes the vector multiplies it by
the scale and adds up parts of its squares.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from griffin_jax.kernels.step_gpu.launch import Phase, launch
from griffin_jax.kernels.step_gpu.products import store, vector_like

_PART = 256  # numbers of one program


@dataclasses.dataclass(frozen=True)
class Norm:
    """The RMSNorm of a named vector inside of a launch.

    Attributes:
      of: The vector's name.
      packed: Whether it is multiplied by 4-bit weights.
      eps: The epsilon of the norm.
    """

    of: str
    packed: bool
    eps: float

    @property
    def vector(self) -> str:
        """The name of what `start_matvec` multiplies."""
        return f"{self.of} scaled" if self.packed else self.of

    @property
    def factor(self) -> tuple[str, float]:
        """What `start_matvec` is told of the norm."""
        return f"{self.of} {'squares' if self.packed else 'scale'}", self.eps

    @property
    def scale(self) -> str:
        """The name of its scale."""
        return f"{self.of} scale"

    def like(self, x: jax.Array, parts: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns buffers for what `write` writes in so many parts, for 4-bit weights."""
        squares = jax.ShapeDtypeStruct((parts,), jnp.float32)
        return vector_like(self.vector, x.shape[0], x.dtype, True) | {self.factor[0]: squares}

    def write(self, refs: dict, rows, part: jax.Array, x: jax.Array) -> None:
        """Writes some rows of the vector times the scale, and a part of the squares."""
        x = x.astype(jnp.float32)
        store(refs, self.vector, rows.start, x * (1 + refs[self.scale][rows].astype(jnp.float32)))
        refs[self.factor[0]][part] = (x * x).sum()

    def prepare_inputs(
        self, x: jax.Array, scale: jax.Array, phases: int, *, interpret: bool
    ) -> dict:
        """Prepares the inputs of phases of which the first reads the norm of x.

        Args:
          x: [D].
          scale: [D].
          phases: How many there are, two at least.
          interpret: Run on any device, slowly, for tests.

        Returns:
          Arrays for `launch`, and for 4-bit weights the "counts" of so many phases.
        """
        arrays = {self.of: x, self.scale: scale}
        if not self.packed:
            return arrays
        programs = x.shape[0] // _PART

        def scale_and_square(refs, i, wait):
            wait()
            rows = pl.ds(i * _PART, _PART)
            self.write(refs, rows, i, refs[self.of][rows])
            for phase in range(phases - 1):
                refs["counts"][phase] = jnp.int32(0)

        counts = {"counts": jax.ShapeDtypeStruct((phases - 1,), jnp.int32)}
        phase = Phase([(programs, scale_and_square)], outputs=self.like(x, programs) | counts)
        return arrays | launch([phase], arrays, name="step_enter", interpret=interpret)
