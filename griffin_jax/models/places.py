"""Named places inside of a model, where a trace reads what is computed or puts something else.

A module calls `place(self, "decay", a)` and goes on with what it returns. Where nobody asked for the
place, that is `a` itself, and the program is the same as without the call. A module whose kernel does
not compute what is asked for looks at `asked` first, and takes the plain definition.

In the manner of Linen, what is recorded is one collection of variables and what is asked for is
another. `model.apply(variables, tokens, mutable=["intermediates"])` records all there is;
`griffin_jax.tracing` asks for some of it.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn
from jax import lax

RECORDED = "intermediates"  # Linen's own name, which `init` leaves out
ASKED = "asked"
HERE = "here"  # of the places of a module itself, beside its children

Patch = Callable[[jax.Array], jax.Array]
Tree = Mapping[str, Any]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Request:
    """What is wanted of a place.

    Attributes:
      capture: Record what is there, behind the patch if there is one.
      patch: Puts something else there, of the same shape and dtype.
    """

    capture: bool = False
    patch: Patch | None = None


def place(module: nn.Module, name: str, value: jax.Array, settle: Patch | None = None) -> jax.Array:
    """Names what is computed here, and returns what to go on with.

    Args:
      module: The layer that computes it.
      name: The place's name, one of its own within the residual block.
      value: What is there.
      settle: From what a patch puts there to what is there then, where the two are not the same.
    """
    requests = _requests(module)
    if requests is None:
        request = Request(capture=module.is_mutable_collection(RECORDED))
    else:
        request = requests.get(name, Request())
    if request.patch is not None:
        value = request.patch(value)
        value = value if settle is None else settle(value)
    if request.capture:
        recorded = module.get_variable(RECORDED, HERE, {})
        module.put_variable(RECORDED, HERE, {**recorded, name: value})
    return value


def asked(module: nn.Module, *names: str) -> bool:
    """Returns whether anything is wanted of a module's own places: of these, or of any where none
    is given.
    """
    requests = _requests(module)
    if requests is None:
        return module.is_mutable_collection(RECORDED)
    return any(name in requests for name in names) if names else bool(requests)


def asked_within(module: nn.Module) -> bool:
    """Returns whether anything is wanted of a module or of what it is made of."""
    tree = module.variables.get(ASKED)
    if tree is None:
        return module.is_mutable_collection(RECORDED)
    return any(True for _ in flatten(tree))


def _requests(module) -> Mapping[str, Request] | None:
    """None where there is no list of what is wanted: all that can be recorded is, then."""
    return module.get_variable(ASKED, HERE, None)


def flatten(tree: Tree, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields what a tree of requests or records holds: the modules on the way and the name, and
    the entry.
    """
    for key, entry in tree.items():
        if key == HERE:
            yield from (((*path, name), value) for name, value in entry.items())
        else:
            yield from flatten(entry, (*path, key))


def unflatten(entries: Mapping[tuple[str, ...], Any], modules: Sequence[tuple[str, ...]]) -> dict:
    """Returns the inverse of `flatten`, in which each of the modules has a list, be it empty."""
    tree: dict = {}

    def at(path):
        return functools.reduce(lambda node, name: node.setdefault(name, {}), (*path, HERE), tree)

    for path in modules:
        at(path)
    for (*path, name), entry in entries.items():
        at(path)[name] = entry
    return tree


def in_groups(layers: Sequence[Tree], group: jax.Array) -> dict:
    """Returns what is wanted of several layers of one kind, by one program that is run for each of
    them.

    Args:
      layers: What is wanted of each.
      group: int32[], which of them is being run.
    """
    merged = {}
    for name in dict.fromkeys(itertools.chain(*layers)):
        parts = [layer.get(name) for layer in layers]
        requests = {i: part for i, part in enumerate(parts) if isinstance(part, Request)}
        if requests:
            patches = {i: r.patch for i, r in requests.items() if r.patch is not None}
            patch = functools.partial(_patch_one, patches, group) if patches else None
            merged[name] = Request(any(r.capture for r in requests.values()), patch)
        else:
            merged[name] = in_groups([part or {} for part in parts], group)
    return merged


def _patch_one(patches, group, value):
    for index, patch in patches.items():
        value = lax.cond(group == index, patch, lambda unchanged: unchanged, value)
    return value


def apply_and_record(
    module: nn.Module, records: bool, *args: Any, **kwargs: Any
) -> tuple[Any, Tree]:
    """Returns what `module.apply` does, and what was recorded, if anything is to be."""
    if not records:
        return module.apply(*args, **kwargs), {}
    both: Any = module.apply(*args, mutable=[RECORDED], **kwargs)
    out, recorded = both
    return out, recorded.get(RECORDED, {})
