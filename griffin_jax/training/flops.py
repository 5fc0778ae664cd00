"""Arithmetic of training, counted from shapes, against what a device can do."""

import math

import jax

from griffin_jax.config import GriffinConfig
from griffin_jax.models import declarations
from griffin_jax.models.blocks import block_of

# Dense bfloat16 FLOP/s by the makers' data sheets, by the beginning of `Device.device_kind`.
PEAK_FLOPS = {
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Returns dense bfloat16 FLOP/s of one device by its data sheet, None for one not in
    `PEAK_FLOPS`.
    """
    for kind, flops in PEAK_FLOPS.items():
        if device.device_kind.startswith(kind):
            return flops
    return None


def matmul_params(config: GriffinConfig) -> int:
    """Returns parameters that multiply every token in a matrix product; the output head is one of
    them.

    The look-up in the embedding, convolutions, norms and biases are left out.
    """
    count = sum(
        math.prod(declaration.shape)
        for declaration in declarations(config).values()
        if declaration.follows.multiplies
    )
    return count + config.vocab_size * config.width if config.tie_embeddings else count


def train_flops_per_token(config: GriffinConfig, seq_len: int, frozen: bool = False) -> float:
    """Returns FLOPs that training needs per token; recomputation is not counted.

    Six per parameter of a matrix product (two forward, four backward), and attention over the keys
    that a causal window shows on average in a sequence of `seq_len`. The recurrence itself is
    left out: it does not run as matrix products.

    Args:
      config: The model's shape.
      seq_len: Tokens in a sequence.
      frozen: The matrices get no gradient of their own, as under LoRA: four per parameter.
    """
    reach = seq_len if config.attention_window is None else config.attention_window
    reach = min(reach, seq_len)
    keys = reach - reach * (reach - 1) / 2 / seq_len
    return (4 if frozen else 6) * matmul_params(config) + 3 * pair_flops(config) * keys


def pair_flops(config: GriffinConfig) -> int:
    """Returns FLOPs of all layers for each pair of a token and an earlier one within reach."""
    return sum(block_of(kind).pair_flops(config) for kind in config.block_types)
