"""The least time of a program by what a machine can do, and what that makes of more chips."""

import dataclasses
import math

import jax

from griffin_jax.benchmarks.counting import decode_flops, prefill_flops, state_parts
from griffin_jax.config import GriffinConfig
from griffin_jax.sharding import MeshShape
from griffin_jax.training.flops import train_flops_per_token


@dataclasses.dataclass(frozen=True)
class Machine:
    """The limits of one chip.

    Attributes:
      memory_bytes: The bytes of its main memory that a program may use.
      bytes_per_second: The bandwidth of main memory.
      flops_per_second: The rate of bfloat16 matrix products.
      link_bytes_per_second: The bandwidth of one axis of the interconnect, both directions together; of
        a switched one, what a chip receives from all others together.
      hop_seconds: The latency from a chip to its neighbor; through a switch, to any other.
      switched: Whether chips lie around a switch, and not along axes.
    """

    memory_bytes: float
    bytes_per_second: float
    flops_per_second: float
    link_bytes_per_second: float = math.inf
    hop_seconds: float = 0.0
    switched: bool = False


# Google's data sheet (16 GB, of which the compiler gives programs 15.75 GiB; 819 GB/s; 197
# TFLOP/s); links of 45 GB/s each way and hops of a microsecond as in "How to scale your model".
V5E = Machine(15.75 * 2**30, 819e9, 197e12, 90e9, 1e-6)
# One of the up to eight GPUs of a host. NVIDIA's data sheet (141 GB, NVLink of 450 GB/s each way), copies
# and products as benchmarks of this project found them (docs/benchmarks/throughput_h200.json); half of
# an all-reduce of few bytes is taken for 4 microseconds, which nothing here measured.
H200 = Machine(141e9, 4.09e12, 664e12, 450e9, 4e-6, switched=True)

_ONE_CHIP = MeshShape()


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The least time of a call on one chip of a mesh: the three run side by side at best.

    Attributes:
      memory_seconds: For the bytes that must be read and written.
      compute_seconds: For the FLOPs of matrix products and attention.
      link_seconds: For what chips tell each other.
      tokens: That the call reads, draws or trains on, over all chips.
      chips: In the mesh.
    """

    memory_seconds: float
    compute_seconds: float
    link_seconds: float
    tokens: int
    chips: int

    @property
    def seconds(self) -> float:
        return max(self.memory_seconds, self.compute_seconds) + self.link_seconds

    @property
    def tokens_per_second_per_chip(self) -> float:
        return self.tokens / self.seconds / self.chips

    @property
    def bound(self) -> str:
        """The resource that takes most of the time: "memory", "compute" or "links"."""
        times = {
            "memory": self.memory_seconds,
            "compute": self.compute_seconds,
            "links": self.link_seconds,
        }
        return max(times, key=lambda name: times[name])


def decode_roofline(
    config: GriffinConfig,
    weight_bytes: float,
    batch_size: int,
    mesh: MeshShape = _ONE_CHIP,
    machine: Machine = V5E,
    position: int = 4096,
) -> Roofline:
    """Costs one decoding step: every weight and the rows' state are read, one token a row is
    drawn.

    Args:
      config: The model's shape.
      weight_bytes: The bytes of all parameters, on one copy of the model.
      batch_size: Rows, over all chips.
      mesh: "model" cuts weights and the recurrent state, the other axes cut rows. The one head of
        keys and values is whole on every chip of "model".
      machine: One chip.
      position: Tokens that the rows have read.
    """
    copies = mesh.data * mesh.fsdp
    rows = batch_size / copies
    attention, recurrent = state_parts(config, position, itemsize=2)
    memory = weight_bytes / mesh.model + rows * (attention + 2 * recurrent / mesh.model)
    flops = decode_flops(config, batch_size, position) / copies / mesh.model
    links = 0.0
    if mesh.model > 1:
        reduced = rows * config.width * 2
        links = (2 * config.num_layers + 1) * all_reduce_seconds(reduced, mesh.model, machine)
    return Roofline(
        memory / machine.bytes_per_second,
        flops / machine.flops_per_second,
        links,
        batch_size,
        copies * mesh.model,
    )


def prefill_roofline(
    config: GriffinConfig,
    weight_bytes: float,
    batch_size: int,
    tokens: int,
    mesh: MeshShape = _ONE_CHIP,
    machine: Machine = V5E,
) -> Roofline:
    """Costs one call that reads so many tokens of each row; arguments as for
    `decode_roofline`.
    """
    copies = mesh.data * mesh.fsdp
    flops = prefill_flops(config, batch_size, tokens) / copies / mesh.model
    links = 0.0
    if mesh.model > 1:
        reduced = batch_size / copies * tokens * config.width * 2
        links = (2 * config.num_layers + 1) * all_reduce_seconds(reduced, mesh.model, machine)
    return Roofline(
        weight_bytes / mesh.model / machine.bytes_per_second,
        flops / machine.flops_per_second,
        links,
        batch_size * tokens,
        copies * mesh.model,
    )


def train_roofline(
    config: GriffinConfig,
    num_params: int,
    batch_size: int,
    seq_len: int,
    mesh: MeshShape,
    machine: Machine = V5E,
    recompute: bool = True,
) -> Roofline:
    """Costs one step of AdamW with float32 master weights.

    Args:
      config: The model's shape.
      num_params: The number of parameters of the model.
      batch_size: Sequences, over all chips.
      seq_len: Tokens of each.
      mesh: "fsdp" cuts all that is kept; parameters are gathered in bfloat16 for the forward and
        the backward pass and gradients are summed over it in float32.
      machine: One chip.
      recompute: The backward pass runs the forward pass again.
    """
    chips = mesh.data * mesh.fsdp * mesh.model
    tokens = batch_size * seq_len
    flops = train_flops_per_token(config, seq_len) * tokens * (4 / 3 if recompute else 1)
    # Read and written in float32: weights, two moments, gradients; read in bfloat16: three times.
    memory = num_params / mesh.model * (8 * 4 / mesh.fsdp + 3 * 2)
    part = num_params / mesh.model
    gathers = 3 if recompute else 2
    links = gathers * gather_seconds(2 * part, mesh.fsdp, machine)
    links += gather_seconds(4 * part, mesh.fsdp, machine)
    links += all_reduce_seconds(4 * part / mesh.fsdp, mesh.data, machine)
    return _of_training(memory, flops / chips, links, tokens, chips, machine)


def lora_roofline(
    config: GriffinConfig,
    weight_bytes: float,
    batch_size: int,
    seq_len: int,
    mesh: MeshShape,
    machine: Machine = V5E,
    recompute: bool = True,
) -> Roofline:
    """Costs one step of an adapter, whose own bytes and products are left out.

    Args:
      config: The model's shape.
      weight_bytes: The bytes of the frozen base, as it is stored.
      batch_size: Sequences, over all chips.
      seq_len: Tokens of each.
      mesh: "fsdp" cuts the base, which is gathered as it is stored for each pass.
      machine: One chip.
      recompute: The backward pass runs the forward pass again.
    """
    chips = mesh.data * mesh.fsdp * mesh.model
    tokens = batch_size * seq_len
    # Forward is a third of what training takes where weights have gradients.
    again = train_flops_per_token(config, seq_len) / 3 if recompute else 0
    flops = (train_flops_per_token(config, seq_len, frozen=True) + again) * tokens
    passes = 3 if recompute else 2
    part = weight_bytes / mesh.model
    links = passes * gather_seconds(part, mesh.fsdp, machine)
    return _of_training(passes * part, flops / chips, links, tokens, chips, machine)


def _of_training(num_bytes, flops, links, tokens, chips, machine):
    """Returns the costs of a step in which parameters travel while others are multiplied by, and are
    waited for only where that takes longer.
    """
    compute = flops / machine.flops_per_second
    waited = max(0.0, links - compute)
    return Roofline(num_bytes / machine.bytes_per_second, compute, waited, tokens, chips)


def gather_seconds(num_bytes: float, chips: int, machine: Machine) -> float:
    """Returns the seconds of an all-gather, or a reduce-scatter, of `num_bytes` over so many chips."""
    if chips == 1:
        return 0.0
    return num_bytes * (chips - 1) / chips / _links(chips, machine) + _latency(chips, machine)


def all_reduce_seconds(num_bytes: float, chips: int, machine: Machine) -> float:
    """Returns the seconds of an all-reduce of `num_bytes` over so many chips."""
    return 2 * gather_seconds(num_bytes, chips, machine)


def _links(chips, machine):
    """More than four chips lie along two axes of the interconnect, unless it is a switch."""
    if machine.switched:
        return machine.link_bytes_per_second
    return machine.link_bytes_per_second * (2 if chips > 4 else 1)


def _latency(chips, machine):
    if machine.switched:
        return machine.hop_seconds
    side = max(1, round(chips**0.5))
    return machine.hop_seconds * side / 2 * (2 if chips > 4 else 1)


def tree_bytes(tree) -> int:
    """Returns the bytes of the arrays of a tree, concrete or abstract."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
