"""`jax.jit` of functions that run under the mesh of their arguments."""

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding

from griffin_jax.devices import AXES, platform


def mesh_of(tree: Any) -> Mesh | None:
    """Returns the mesh of the four axes that the arrays of a tree lie on, concrete or abstract.

    None if they lie on none; and for what is being traced, whose mesh is the caller's affair.
    """
    found: Any = None
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, Tracer):
            return None
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and sharding.mesh.axis_names == AXES:
            found = found or sharding.mesh
    return found


def mesh_of_all(params: Any) -> Mesh | None:
    """Returns what `mesh_of` does, of parameters, which lie on one mesh all or none of them.

    One is asked alone: to ask a thousand takes a millisecond, several times before a text's first
    token.
    """
    return mesh_of(a_leaf(params))


def a_leaf(tree: Any) -> Any:
    """Returns a leaf of a tree without looking at what lies beside it in dictionaries."""
    while isinstance(tree, Mapping) and tree:
        tree = next(iter(tree.values()))
    return jax.tree.leaves(tree)[0]


def on_mesh_of(tree: Any) -> contextlib.AbstractContextManager:
    """Runs what is inside under the mesh of a tree; does nothing where there is none."""
    return _under(mesh_of(tree))


def _under(mesh):
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def jit_on_mesh(
    function: Callable,
    *,
    mesh: Mesh | None = None,
    gpu_options: dict[str, str] | None = None,
    **options: Any,
) -> "MeshFunction":
    """Returns `jax.jit` of a function that runs under a mesh: by default that of its arguments.

    Args:
      function: To be compiled.
      mesh: In place of that of the arguments.
      gpu_options: For XLA where it compiles for a single GPU, but for those that the user's own
        XLA_FLAGS set. With them the function cannot be called inside of another `jax.jit` there.
      **options: Options of `jax.jit`.
    """
    return MeshFunction(function, mesh, gpu_options or {}, options)


class MeshFunction:
    """A jitted function, with all that one has; see `jit_on_mesh`."""

    def __init__(
        self,
        function: Callable,
        mesh: Mesh | None,
        gpu_options: dict[str, str],
        options: dict[str, Any],
    ):
        self._mesh, self._gpu_options, self._options = mesh, gpu_options, options
        self._jitted = jax.jit(function, **options)
        self._lock = threading.Lock()
        functools.update_wrapper(self, function)

    def __call__(self, *args, **kwargs):
        with self._context(args, kwargs):
            return self._jitted_here()(*args, **kwargs)

    def on(self, mesh: Mesh | None, *args, **kwargs):
        """Returns a call whose caller knows what `mesh_of` says of the arguments.

        To ask a thousand leaves takes about as long as the call itself, which counts where a text is
        drawn a few tokens a call.
        """
        with _under(mesh):
            return self._jitted_here()(*args, **kwargs)

    def lower(self, *args, **kwargs):
        """Lowers as `jax.jit` does; abstract arguments tell their mesh by their shardings."""
        with self._context(args, kwargs):
            return self._jitted_here().lower(*args, **kwargs)

    def _context(self, args, kwargs):
        return on_mesh_of((args, kwargs)) if self._mesh is None else jax.set_mesh(self._mesh)

    def _jitted_here(self):
        """Selects the jitted variant for the mesh that is set."""
        if not self._gpu_options:
            return self._jitted
        single = jax.sharding.get_abstract_mesh().size <= 1  # 0 where none is set
        if not (single and platform() == "gpu"):
            return self._jitted
        with self._lock:  # several threads may compile at once, and must share what is compiled
            return self._jitted_for_one_gpu

    @functools.cached_property
    def _jitted_for_one_gpu(self):
        flags = os.environ.get("XLA_FLAGS", "")
        ours = {name: x for name, x in self._gpu_options.items() if f"--{name}=" not in flags}
        return jax.jit(self.__wrapped__, compiler_options=ours, **self._options)

    def __getattr__(self, name):
        return getattr(self._jitted_here(), name)
