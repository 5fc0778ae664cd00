"""What a parameter is, said once: where it is declared.

`parameter` takes a shape, how it is drawn, what its dimensions are and what it does. `declarations`
collects that for a whole model, and whoever treats parameters differently asks there: shardings,
quantization, adapters, weight decay, counting.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
from flax import linen as nn
from jax.typing import DTypeLike

from griffin_jax.sharding.layouts import gather_fsdp

Initializer = nn.initializers.Initializer

DECLARED = "declared"  # the collection of Linen that declarations are collected in


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a parameter does in a model, and what follows from that.

    Attributes:
      packs: It is the weight of a linear layer, which bitsandbytes packs.
      adapts: An adapter adds to it.
      decays: Weight decay acts on it.
      multiplies: Every token is multiplied by all of it in a matrix product.
      drawn: Benchmarks draw it as training does, for its values decide what is computed; other
        parameters they fill with noise.
    """

    packs: bool = False
    adapts: bool = False
    decays: bool = False
    multiplies: bool = False
    drawn: bool = False


KINDS: dict[str, Kind] = {
    "linear": Kind(packs=True, adapts=True, decays=True, multiplies=True),
    "head": Kind(packs=True, decays=True, multiplies=True),
    "embedding": Kind(decays=True),
    "gate": Kind(multiplies=True),
    "recurrence": Kind(drawn=True),
    "conv": Kind(),
    "norm": Kind(),
    "bias": Kind(),
}


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Declaration:
    """A parameter as its layer declares it.

    Attributes:
      shape: The shape of one layer's.
      axes: What each dimension is, one of `devices.LOGICAL_AXES`; the first is a linear layer's
        outputs, the second its inputs.
      kind: A key of `KINDS`.
      init: How training draws it.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    kind: str
    init: Initializer = dataclasses.field(compare=False)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"no kind of parameter {self.kind!r}; there are {', '.join(KINDS)}")
        if len(self.axes) != len(self.shape):
            raise ValueError(f"axes {self.axes} do not name the dimensions of {self.shape}")

    @property
    def follows(self) -> Kind:
        """What follows from the parameter's kind."""
        return KINDS[self.kind]


def parameter(
    module: nn.Module,
    name: str,
    init: Initializer,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    *,
    axes: tuple[str | None, ...],
    kind: str,
) -> Any:
    """Declares a parameter, which may also be a `Weight`, and returns its value.

    Args:
      module: The layer that it belongs to.
      name: Its name there.
      init: Draws it.
      shape: Its shape.
      dtype: Its dtype where it is drawn.
      axes: See `Declaration`.
      kind: See `Declaration`.

    Raises:
      ValueError: the parameter that is there has another shape.
    """
    if module.is_mutable_collection(DECLARED):
        module.put_variable(DECLARED, name, Declaration(tuple(shape), tuple(axes), kind, init))
    if not module.has_variable("params", name):
        return module.param(name, init, shape, dtype)
    value = module.get_variable("params", name)
    if tuple(value.shape) != tuple(shape):
        path = "/".join((*module.path, name))
        raise ValueError(
            f"parameter {path} has shape {tuple(value.shape)}, the config says {shape}"
        )
    return gather_fsdp(value, axes)


def declared(variables: Mapping[str, Any]) -> dict[str, Declaration]:
    """Returns the declarations among what a module's `init` returns, by path, in the model's
    order.
    """
    flat: dict[str, Any] = dict(flax.traverse_util.flatten_dict(variables[DECLARED], sep="/"))
    return {path: flat[path] for path in sorted(flat, key=model_order)}


def model_order(path: str) -> tuple[int, int, str]:
    """Sorts paths as the model runs: embedding, blocks by number, norm, head."""
    block = path.split("/", 1)[0]
    if block.startswith("blocks_"):
        return 1, int(block.removeprefix("blocks_")), path
    return {"embedder": 0, "final_norm": 2}.get(block, 3), 0, path


def fan_in(scale: float = 1.0) -> Initializer:
    """Returns an initializer of normal weights [out, in], of variance scale / in."""
    return nn.initializers.variance_scaling(scale, "fan_in", "normal", in_axis=-1, out_axis=-2)
