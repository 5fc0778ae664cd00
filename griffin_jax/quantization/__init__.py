"""Weights of fewer bits."""

from griffin_jax.quantization.matmul import matmul

__all__ = ["matmul"]
