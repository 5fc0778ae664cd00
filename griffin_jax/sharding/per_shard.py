"""What code inside of the model asks of the mesh that it runs under, if there is one.

A program runs under a mesh inside of `jax.set_mesh(mesh)`, which `on_mesh_of` does where parameters
lie on one. Without a mesh everything here does nothing.
"""

import contextlib
import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from griffin_jax.kernels.choice import platform
from griffin_jax.kernels.layer_of import LayerOf
from griffin_jax.sharding import rules
from griffin_jax.sharding.rules import AXES, BATCH, DATA, FSDP, MODEL, SEQUENCE, Axes

# What a dimension of an activation is, and the mesh axes that it lies over.
ACTIVATIONS = {
    "batch": BATCH,
    "copies": DATA,
    "width": FSDP,
    "time": SEQUENCE,
    "heads": MODEL,
    "recurrence": MODEL,
    "features": MODEL,
    "vocabulary": MODEL,
    None: None,
}


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh of the four axes that the arrays of a tree lie on, concrete or abstract.

    None if they lie on none; and for what is being traced, whose mesh is the caller's affair.
    """
    found = None
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.core.Tracer):
            return None
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and sharding.mesh.axis_names == AXES:
            found = found or sharding.mesh
    return found


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
    """`jax.jit`, of a function that runs under a mesh: by default that of its arguments.

    Args:
      function: To be compiled.
      mesh: In place of that of the arguments.
      gpu_options: For XLA where it compiles for a single GPU, but for those that the user's own
        XLA_FLAGS set. With them the function cannot be called inside of another `jax.jit` there.
      **options: Of `jax.jit`.
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
        functools.update_wrapper(self, function)

    def __call__(self, *args, **kwargs):
        with self._context(args, kwargs):
            return self._jitted_here()(*args, **kwargs)

    def on(self, mesh: Mesh | None, *args, **kwargs):
        """A call whose caller knows what `mesh_of` says of the arguments.

        To ask a thousand leaves takes about as long as the call itself, which counts where a text is
        drawn a few tokens a call.
        """
        with _under(mesh):
            return self._jitted_here()(*args, **kwargs)

    def lower(self, *args, **kwargs):
        """As that of `jax.jit`; abstract arguments tell their mesh by their shardings."""
        with self._context(args, kwargs):
            return self._jitted_here().lower(*args, **kwargs)

    def _context(self, args, kwargs):
        return on_mesh_of((args, kwargs)) if self._mesh is None else jax.set_mesh(self._mesh)

    def _jitted_here(self):
        """Of the two, the one for what the program is compiled for: the mesh that is set."""
        if not self._gpu_options:
            return self._jitted
        single = jax.sharding.get_abstract_mesh().size <= 1  # 0 where none is set
        return self._jitted_for_one_gpu if single and platform() == "gpu" else self._jitted

    @functools.cached_property
    def _jitted_for_one_gpu(self):
        flags = os.environ.get("XLA_FLAGS", "")
        ours = {name: x for name, x in self._gpu_options.items() if f"--{name}=" not in flags}
        return jax.jit(self.__wrapped__, compiler_options=ours, **self._options)

    def __getattr__(self, name):
        return getattr(self._jitted_here(), name)


def current_mesh() -> AbstractMesh | None:
    """The mesh that the compiler is to partition over here; None inside of `shard_map`, too."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.axis_names != AXES or mesh.size == 1:
        return None
    return mesh if set(mesh.axis_types) == {AxisType.Auto} else None


def tree_path(path: tuple[jax.tree_util.KeyEntry, ...]) -> str:
    """The names on the way to a leaf, joined by slashes; places in sequences are left out."""
    names = (getattr(entry, "key", getattr(entry, "name", None)) for entry in path)
    return "/".join(name for name in names if isinstance(name, str))


def fit(mesh: Mesh | AbstractMesh, shape: tuple[int, ...], axes: Axes) -> PartitionSpec:
    """The layout of an array over these mesh axes, but for those that do not divide it.

    So is a batch that is smaller than its axes, or the one token of a decoding step over
    "sequence": whole on each of their devices.
    """

    def divided(size, names):
        if names is None:
            return None
        count = math.prod(mesh.shape[n] for n in (names if isinstance(names, tuple) else (names,)))
        return None if size % count else names

    return rules.partition_spec(tuple(map(divided, shape, axes)))


def activation_spec(
    mesh: Mesh | AbstractMesh, shape: tuple[int, ...], names: tuple[str | None, ...]
) -> PartitionSpec:
    """The layout of an activation whose dimensions have these names in `ACTIVATIONS`; see `fit`."""
    return fit(mesh, shape, tuple(ACTIVATIONS[name] for name in names))


def time_shards(time: int) -> int:
    """Into how many parts a sequence of this length is cut here."""
    mesh = current_mesh()
    return 1 if mesh is None or time % mesh.shape[SEQUENCE] else mesh.shape[SEQUENCE]


def model_shards() -> int:
    """Into how many parts heads and widths are cut here."""
    mesh = current_mesh()
    return 1 if mesh is None else mesh.shape[MODEL]


def split_here(path: str) -> str | None:
    """`rules.split_of` the linear layer at `path`; None where nothing is cut over "model"."""
    return rules.split_of(path) if model_shards() > 1 else None


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """`x` in the layout that `ACTIVATIONS` gives dimensions of these names."""
    mesh = current_mesh()
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(mesh, x.shape, names))


def constrain_state(state: Any) -> Any:
    """A decoding state in the layout of the table, so that programs hand it on without moving it."""
    mesh = current_mesh()
    if mesh is None:
        return state

    def place(path, leaf):
        axes = rules.axes_of(tree_path(path), leaf.ndim)
        return jax.lax.with_sharding_constraint(leaf, fit(mesh, leaf.shape, axes))

    return jax.tree_util.tree_map_with_path(place, state)


def replicate(tree: Any) -> Any:
    """Arrays whole on every device, as a host that reads them needs them."""
    if current_mesh() is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, jax.tree.map(lambda _: PartitionSpec(), tree))


def gather_fsdp(path: str, value: Any) -> Any:
    """A parameter as the model reads it, gathered over `fsdp`.

    Called where the parameter is used, so that a block that is computed again for its gradient
    gathers it again, and only few are whole at a time. Of a stack of layers only one is gathered.
    Its gradient is laid out as the parameter is, so that devices sum up their own parts of it.
    """
    mesh = current_mesh()
    if mesh is None or mesh.shape[FSDP] == 1:
        return value
    if isinstance(value, LayerOf):
        value = value.take()

    def gather(key, leaf):
        axes = rules.axes_of("/".join(filter(None, (path, tree_path(key)))), leaf.ndim)
        whole = rules.partition_spec(rules.without(axes, FSDP))
        return _relaid(leaf, rules.partition_spec(axes), whole)

    return jax.tree_util.tree_map_with_path(gather, value)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _relaid(x, before, after):
    """x in another layout; its gradient in the one before."""
    return jax.lax.with_sharding_constraint(x, after)


def _relaid_forward(x, before, after):
    return _relaid(x, before, after), None


def _relaid_backward(before, after, _, gradient):
    if gradient.dtype == jax.dtypes.float0:
        return (gradient,)
    return (jax.lax.with_sharding_constraint(gradient, before),)


_relaid.defvjp(_relaid_forward, _relaid_backward)


def per_shard(
    function: Callable,
    arguments: Sequence[jax.Array],
    names: Sequence[tuple[str | None, ...]],
    results: Sequence[tuple[tuple[int, ...], tuple[str | None, ...]]],
) -> Any:
    """function(*arguments), on every device of a mesh for its own part of them.

    The compiler cannot partition hand-written kernels, and scans over time only badly.

    Args:
      function: From arrays to an array, or to a tuple where there are several results. Under a mesh
        it sees parts, and may use collectives over "model" and "sequence".
      arguments: Whole arrays.
      names: For each argument, what its dimensions are; see `ACTIVATIONS`.
      results: The shape of each whole result, and what its dimensions are.
    """
    mesh = current_mesh()
    if mesh is None:
        return function(*arguments)
    in_specs = tuple(
        activation_spec(mesh, argument.shape, dimensions)
        for argument, dimensions in zip(arguments, names, strict=True)
    )
    out_specs = tuple(activation_spec(mesh, *result) for result in results)
    mapped = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=in_specs,
        out_specs=out_specs if len(results) > 1 else out_specs[0],
        check_vma=False,
    )
    return mapped(*arguments)
