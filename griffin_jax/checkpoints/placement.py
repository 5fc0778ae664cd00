"""How the leaves of a checkpoint go onto devices, or through the disk, one at a time."""

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from griffin_jax.checkpoints.tree import array_paths
from griffin_jax.progress import Bar
from griffin_jax.sharding import is_first

# From the path of a leaf and the leaf, an array or a packed weight of arrays, abstract or not, to a
# sharding in the place of each array.
Shardings = Callable[[str, Any], Any]

_SHOWN_FROM_BYTES = 2**28
_CHUNK = 2**20


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where leaves go, and as what.

    Attributes:
      dtype: The dtype of every floating-point array outside of packed weights; None keeps the stored one.
      shardings: Gives the shardings of a leaf from its path in the tree ("blocks_0/mlp_block/
        up_proj/weight") and the leaf. None puts everything on the default device.
      preserve_dtype: Arrays that are stored in this dtype are not cast, whatever `dtype` says.
    """

    dtype: DTypeLike | None = None
    shardings: Shardings | None = None
    preserve_dtype: DTypeLike | None = None

    def place(self, path: str, leaf: Any) -> Any:
        """Puts one leaf, an array or a packed weight of arrays, onto devices.

        A host array that is mapped from disk is read where it is needed: by every process its part.
        Arrays that are on devices already are cast there.
        """
        is_array = isinstance(leaf, np.ndarray | jax.Array)
        cast = is_array and self.dtype is not None and jnp.issubdtype(leaf.dtype, jnp.floating)
        if cast and self.preserve_dtype is not None and leaf.dtype == self.preserve_dtype:
            cast = False

        def place_array(array, sharding=None):
            return _place_array(array, np.dtype(self.dtype) if cast else array.dtype, sharding)

        if self.shardings is None:
            return jax.tree.map(place_array, leaf)
        like = jax.ShapeDtypeStruct(leaf.shape, self.dtype) if cast else leaf
        return jax.tree.map(place_array, leaf, self.shardings(path, like))


def _place_array(array, dtype, sharding):
    if isinstance(array, jax.Array):
        return _cast(dtype, sharding)(array)

    # Copies: on a CPU, JAX may keep the memory it is given, and a mapped file may change.
    def copy(index=...):
        with np.errstate(over="ignore"):  # `all_finite` finds what became infinite
            return np.array(array[index], dtype, order="C")

    if sharding is None:
        return jax.device_put(copy())
    return jax.make_array_from_callback(array.shape, sharding, copy)


@functools.lru_cache(maxsize=64)
def _cast(dtype: np.dtype, sharding: jax.sharding.Sharding) -> Callable:
    return jax.jit(lambda x: x.astype(dtype), out_shardings=sharding)


@contextlib.contextmanager
def mapped_from_disk(leaves: Iterable[tuple[str, Any]], folder: Path) -> Iterator[dict]:
    """Yields the tree of some leaves, with arrays of the CPU that are mapped from files.

    The files are in a folder of their own within `folder`, which goes when the block ends.
    """
    cpu = jax.devices("cpu")[0]
    with tempfile.TemporaryDirectory(dir=folder) as files:

        def spill(path: str, array: np.ndarray) -> jax.Array:
            array = np.asarray(array)
            file = Path(files) / path.replace("/", ".")
            file.write_bytes(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
            mapped = np.memmap(file, np.uint8, mode="r").view(np.ndarray)
            # A file begins at a page, so JAX takes the memory as it is and copies nothing.
            return jax.device_put(mapped.view(array.dtype).reshape(array.shape), cpu)

        flat = {path: jax.tree.map(spill, array_paths(path, leaf), leaf) for path, leaf in leaves}
        yield flax.traverse_util.unflatten_dict(flat, sep="/")


def leaf_nbytes(leaf: Any) -> int:
    """Returns the bytes of an array or of the arrays of a packed weight."""
    return sum(array.nbytes for array in jax.tree.leaves(leaf))


def progress_bar(what: str, nbytes: int, progress: bool) -> Bar:
    """Returns a bar over bytes on standard error; silent for what takes no time."""
    shown = progress and nbytes >= _SHOWN_FROM_BYTES and is_first()
    disable = None if shown else True
    return Bar(
        total=nbytes, desc=what, unit="B", unit_scale=True, unit_divisor=1024, disable=disable
    )


@jax.jit
def _all_finite_on_device(x: jax.Array) -> jax.Array:
    return jnp.isfinite(x).all()


def all_finite(x: jax.Array) -> jax.Array | bool:
    """Returns whether an array holds neither NaN nor infinity; may still be under way on a
    device.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return True
    if {device.platform for device in x.devices()} != {"cpu"} or len(x.devices()) > 1:
        return _all_finite_on_device(x)
    # On a CPU, numpy reads the array in place, and there is nothing to compile for each shape.
    return all_finite_on_host(np.asarray(x))


def all_finite_on_host(x: np.ndarray) -> bool:
    """Returns whether a floating-point array holds neither NaN nor infinity; reads it piece by
    piece.
    """
    flat = x.reshape(-1)
    return all(np.isfinite(flat[i : i + _CHUNK]).all() for i in range(0, flat.size, _CHUNK))
