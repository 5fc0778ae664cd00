"""A text that has been read, as a value: to go on from, to fork, to save and to load."""

import dataclasses
import json
import zlib
from pathlib import Path

import jax
import numpy as np
import safetensors
import safetensors.numpy
from jax.typing import DTypeLike

from griffin_jax import paths
from griffin_jax.checkpoints.shards import DTYPES
from griffin_jax.config import GriffinConfig
from griffin_jax.errors import CheckpointError
from griffin_jax.fields import shown
from griffin_jax.files import new_file
from griffin_jax.models import State, init_state
from griffin_jax.models.stack import AnyState, stack_state, unstack_state
from griffin_jax.paths import AnyPath
from griffin_jax.sharding.trees import tree_path

_FORMAT = "griffin_jax context"
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Context:
    """What a text leaves behind to go on from; nothing changes it, so a fork is the same object.

    Attributes:
      state: The model's state after the first `read` tokens, of one row, stacked where the model's
        layers are.
      tokens: All tokens of the text so far.
      read: How many of them the state has read. The rest is read first when the text goes on.
    """

    state: AnyState
    tokens: tuple[int, ...]
    read: int


def save_context(context: Context, path: AnyPath, fingerprint: str) -> None:
    """Writes a context into a safetensors file: its tokens, and the state layer by layer.

    Args:
      context: The context.
      path: The file, which appears when it is complete.
      fingerprint: The fingerprint of the model's weights.

    Raises:
      OutputError: the file cannot be written.
    """
    state = jax.device_get(unstack_state(context.state))
    tensors = {f"state/{name}": np.asarray(leaf) for name, leaf in _named(state)}
    tensors["tokens"] = np.array(context.tokens, np.int32)
    facts = {"format": _FORMAT, "version": VERSION, "read": context.read}
    facts |= {"fingerprint": fingerprint, "checksum": _checksum(tensors)}
    metadata = {name: json.dumps(value) for name, value in facts.items()}
    with new_file(path) as file:
        file.write(safetensors.numpy.save(tensors, metadata))


def load_context(
    path: AnyPath, config: GriffinConfig, dtype: DTypeLike, fingerprint: str, stacked: bool
) -> Context:
    """Reads what `save_context` has written; the arrays of its state are on the host.

    Args:
      path: The file.
      config: The model's shape.
      dtype: The dtype of its activations.
      fingerprint: The fingerprint of its weights.
      stacked: Whether its layers are.

    Raises:
      FileNotFoundError: there is no such file.
      CheckpointError: the file is no context, is damaged, or belongs to other weights.
    """
    file = paths.resolve(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no context at {path}")
    facts, tensors = _read(file)
    if facts["format"] != _FORMAT:
        raise CheckpointError(f"{path} is no context: its format is {shown(facts['format'])}")
    if facts["version"] != VERSION:
        raise CheckpointError(
            f"{path} is a context of version {shown(facts['version'])}; this release reads {VERSION}"
        )
    if facts["fingerprint"] != fingerprint:
        raise CheckpointError(
            f"{path} was written by a model of other weights; load it with the model that wrote it"
        )
    if facts["checksum"] != _checksum(tensors):
        raise CheckpointError(f"{path} is damaged: its numbers are not those that were written")
    tokens = _tokens_of(path, config, tensors)
    state = _state_of(path, config, dtype, tensors)
    read = facts["read"]
    if type(read) is not int or read != state.position[0] or not 0 <= read <= len(tokens):
        raise CheckpointError(
            f"{path} is damaged: it says that {shown(read)} of its {len(tokens)} tokens are read, and "
            f"its state stands at {state.position[0]}"
        )
    return Context(stack_state(config, state) if stacked else state, tokens, read)


def _tokens_of(path, config, tensors):
    """Returns the tokens of a text, and takes them out of `tensors`."""
    tokens = tensors.pop("tokens", None)
    if tokens is None or tokens.dtype != np.int32 or tokens.ndim != 1:
        raise CheckpointError(f"{path} is damaged: its tokens are no list of whole numbers")
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < config.vocab_size:
        raise CheckpointError(
            f"{path} is damaged: a token is not one of 0 to {config.vocab_size - 1}"
        )
    return tuple(tokens.tolist())


def _state_of(path, config, dtype, tensors):
    """Returns the state whose arrays are `tensors`, by their names."""
    keys = (x for name, x in tensors.items() if name.endswith("/keys") and x.ndim > 1)
    slots = next((x.shape[1] for x in keys), 1)
    shape = jax.eval_shape(lambda: init_state(config, 1, dtype, slots))
    wanted = {f"state/{name}": leaf for name, leaf in _named(shape)}
    for name, leaf in wanted.items():
        found = tensors.get(name)
        if found is None or (found.shape, found.dtype) != (leaf.shape, leaf.dtype):
            is_there = "missing" if found is None else f"{found.dtype}{list(found.shape)}"
            raise CheckpointError(
                f"{path}: {name} is {is_there}, and this model's is {leaf.dtype}{list(leaf.shape)}"
            )
        if not np.isfinite(found).all():
            raise CheckpointError(f"{path}: {name} holds what is no finite number")
    return jax.tree.unflatten(jax.tree.structure(shape), [tensors[name] for name in wanted])


def _named(state: State) -> list[tuple[str, jax.Array]]:
    """Returns the arrays of a state with their names, such as blocks/2/keys."""
    named = [("position", state.position)]
    for number, block in enumerate(state.blocks):
        for path, leaf in jax.tree_util.tree_leaves_with_path(block):
            named.append((f"blocks/{number}/{tree_path(path)}", leaf))
    return named


def _read(file: Path):
    """Returns the metadata of a file, and its tensors: of one reading, as another may take its
    place meanwhile.
    """
    data = file.read_bytes()
    try:
        tensors = dict(safetensors.deserialize(data))  # checks all that the header says
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = header.get("__metadata__", {})
        facts = {name: json.loads(metadata[name]) for name in ("format", "version", "read")}
        facts |= {name: json.loads(metadata[name]) for name in ("fingerprint", "checksum")}
    except KeyError:
        raise CheckpointError(
            f"{file} is no context: LanguageModel.save_context writes them"
        ) from None
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is no context, or damaged: {error}") from None
    foreign = [name for name, x in tensors.items() if x["dtype"] not in DTYPES]
    if foreign:
        raise CheckpointError(
            f"{file} is no context: {foreign[0]} is {tensors[foreign[0]]['dtype']}"
        )
    return facts, {
        name: np.frombuffer(x["data"], DTYPES[x["dtype"]]).reshape(x["shape"])
        for name, x in tensors.items()
    }


def _checksum(tensors):
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(np.ascontiguousarray(tensors[name]).view(np.uint8).tobytes(), total)
    return total
