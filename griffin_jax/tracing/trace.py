"""Runs a model and brings out what is computed inside of it, by name, or changes it on the way."""

import dataclasses
import difflib
import fnmatch
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from griffin_jax.config import GriffinConfig
from griffin_jax.fields import shown
from griffin_jax.models import Griffin, State, abstract_params, unstack_params
from griffin_jax.models.places import ASKED, RECORDED, Patch, Request, flatten, unflatten
from griffin_jax.models.stack import GROUPS
from griffin_jax.sharding import jit_on_mesh

_BLOCK = re.compile(r"blocks_(\d+)")
_NAMED = 3  # of the nearest names, in an error


@flax.struct.dataclass
class Trace(Mapping):
    """The values that a model computed: a mapping from the names that were asked for.

    Attributes:
      logits: float32[B, T, V], as `LanguageModel.apply` returns them.
      state: After each row's last real token.
      places: By name, in the order of the layers.
    """

    logits: jax.Array
    state: State
    places: dict[str, jax.Array]

    def __getitem__(self, name: str) -> jax.Array:
        return self.places[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.places, key=_layer_order))

    def __len__(self) -> int:
        return len(self.places)

    def layers(self, pattern: str) -> dict[int, jax.Array]:
        """Returns what is there in the layers that have a place of such a name, by the layer's
        number.

        Args:
          pattern: Such as "blocks.*.rg_lru.decay".
        """
        names = [name for name in self if fnmatch.fnmatchcase(name, pattern)]
        return {int(name.split(".")[1]): self[name] for name in names if name.startswith("blocks.")}


def _layer_order(name):
    parts = name.split(".")
    if parts[0] == "blocks":
        return 1, int(parts[1])
    return (0, 0) if name == "embedding" else (2, 0)


@functools.lru_cache(maxsize=32)  # it traces the whole model
def _paths(config: GriffinConfig) -> Mapping[str, tuple[str, ...] | None]:
    """Returns where each place of a model is recorded, by its name; None for what is read out of
    another.
    """
    found = []

    def run(params, tokens):
        _, recorded = Griffin(config).apply({"params": params}, tokens, mutable=[RECORDED])
        found.extend(path for path, _ in flatten(recorded[RECORDED]))

    jax.eval_shape(run, abstract_params(config), jax.ShapeDtypeStruct((1, 2), jnp.int32))
    names = {_name(path): path for path in found}
    names |= {f"blocks.{i}.logits": None for i in range(config.num_layers)}
    return dict(sorted(names.items(), key=lambda item: _layer_order(item[0])))


def _name(path):
    """Joins "blocks_2", "attention_block" and "attention.q" to blocks.2.attention.q."""
    *modules, name = (_BLOCK.sub(r"blocks.\1", part) for part in path)
    return ".".join([*(part for part in modules if not part.endswith("_block")), name])


def place_names(config: GriffinConfig) -> tuple[str, ...]:
    """Returns the names of all places of a model, in the order of its layers."""
    return tuple(_paths(config))


def select(config: GriffinConfig, patterns: Sequence[str] | str, name: str) -> tuple[str, ...]:
    """Returns the places that patterns name, in the order of the layers.

    Args:
      config: The model's shape.
      patterns: Names, in which "*" stands for any part, "?" for any character and "[02]" for any of
        some. One by itself may come without a list.
      name: The argument's name, for messages.

    Raises:
      ValueError: a pattern names no place; the message has the nearest names.
    """
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
        raise ValueError(
            f"{name} must be names of places or patterns of them, got {shown(patterns)}"
        )
    known = place_names(config)
    found = set()
    for pattern in patterns:
        matched = fnmatch.filter(known, pattern)
        if not matched:
            raise ValueError(
                f"{name}: the model has no place {pattern!r}; the nearest are "
                f"{', '.join(_nearest(known, pattern))}"
            )
        found |= set(matched)
    return tuple(place for place in known if place in found)


def _nearest(known, pattern):
    every = dict.fromkeys(re.sub(r"^blocks\.\d+", "blocks.*", place) for place in known)
    candidates = every if pattern.startswith("blocks.*") else known
    return difflib.get_close_matches(pattern, candidates, _NAMED, cutoff=0)


@dataclasses.dataclass(frozen=True)
class _Checked:
    """A patch whose result is looked at before the model goes on with it."""

    name: str
    function: Callable

    def __call__(self, value: jax.Array) -> jax.Array:
        given = self.function(value)
        if not hasattr(given, "shape") or not hasattr(given, "dtype"):
            raise ValueError(
                f"the patch of {self.name} returned {shown(given)}; it must return an array like the "
                f"one that it is given, {_form(value)}"
            )
        if (given.shape, given.dtype) != (value.shape, value.dtype):
            raise ValueError(
                f"the patch of {self.name} returned {_form(given)}; it must return what it is given, "
                f"{_form(value)}"
            )
        return jnp.asarray(given)


def _form(array):
    return f"{array.dtype}{list(array.shape)}"


def select_patches(
    config: GriffinConfig, patch: Mapping[str, Patch]
) -> tuple[tuple[str, tuple[_Checked, ...]], ...]:
    """Returns the patches of each place, in the order in which they are put in.

    Raises:
      ValueError: a pattern names no place or one that nothing reads, or a patch is no function.
    """
    if not isinstance(patch, Mapping):
        raise ValueError(f"patch must be functions by the names of places, got {shown(patch)}")
    chosen: dict[str, list[_Checked]] = {}
    for pattern, function in patch.items():
        if not callable(function):
            raise ValueError(
                f"patch[{pattern!r}] must be a function of what is there, got {shown(function)}"
            )
        try:
            hash(function)
        except TypeError:
            raise ValueError(
                f"patch[{pattern!r}] cannot be hashed, and programs are kept by their patches; wrap it "
                "in a lambda"
            ) from None
        for name in select(config, pattern, "patch"):
            if _paths(config)[name] is None:
                raise ValueError(
                    f"patch: nothing reads {name}; patch {name.replace('logits', 'resid_post')}"
                )
            chosen.setdefault(name, []).append(_Checked(name, function))
    return tuple((name, tuple(functions)) for name, functions in chosen.items())


def trace(
    model: Griffin,
    params: Any,
    tokens: jax.Array,
    state: State | None,
    lengths: jax.Array | None,
    positions: jax.Array | None,
    *,
    names: tuple[str, ...],
    patches: tuple[tuple[str, tuple[_Checked, ...]], ...],
    mesh: Mesh | None = None,
) -> Trace:
    """Runs a model with some places seen and some patched; see `LanguageModel.trace`.

    Args:
      model: The Linen module.
      params: Its parameters, stacked or not.
      tokens: int32[B, T].
      state: What the rows have read before; None for nothing.
      lengths: int32[B], or None.
      positions: int32[B, T], or None.
      names: The places to bring out, as `select` returns them.
      patches: What `select_patches` returns.
      mesh: The mesh that the parameters lie on, if they lie on one.
    """
    arguments = params, tokens, state, lengths, positions
    return _program(model, names, patches).on(mesh, *arguments)


@functools.lru_cache(maxsize=64)  # programs, which hold what their patches hold
def _program(model, names, patches):
    paths = _paths(model.config)
    lenses = [name for name in names if paths[name] is None]
    residuals = {name: name.removesuffix("logits") + "resid_post" for name in lenses}
    captured = (set(names) - set(lenses)) | set(residuals.values())
    patched = {name: functools.partial(_one_after_another, chain) for name, chain in patches}
    requests = {
        path: Request(name in captured, patched.get(name))
        for name, path in paths.items()
        if path is not None and (name in captured or name in patched)
    }
    asked = unflatten(requests, [path[:-1] for path in paths.values() if path is not None])

    def run(params, tokens, state, lengths, positions):
        (logits, after), recorded = model.apply(
            {"params": params, ASKED: asked}, tokens, state, positions, lengths, mutable=[RECORDED]
        )
        recorded = recorded.get(RECORDED, {})
        found = {_name(path): value for path, value in flatten(_layer_by_layer(model, recorded))}

        def there(name):
            if name in found:
                return found[name]
            x = found[residuals[name]]
            return model.apply({"params": params}, x, method=model.read_out)

        return Trace(logits, after, {name: there(name) for name in names})

    return jit_on_mesh(run)


def _one_after_another(chain, value):
    for function in chain:
        value = function(value)
    return value


def _layer_by_layer(model, recorded):
    """Returns what was recorded of stacked layers, as of layers one by one."""
    if GROUPS not in recorded:
        return recorded
    groups = {f"blocks_{i}": {} for i in range(len(model.config.block_pattern))}
    return unstack_params(model.config, recorded | {GROUPS: groups | recorded[GROUPS]})
