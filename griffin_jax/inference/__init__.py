"""Sampling, chat and scoring with a Griffin model."""

from griffin_jax.inference.chat import Chat
from griffin_jax.inference.sampler import Context, Generation, Sample, Sampler
from griffin_jax.inference.sampling import SamplingConfig
from griffin_jax.inference.scoring import score

__all__ = ["Chat", "Context", "Generation", "Sample", "Sampler", "SamplingConfig", "score"]
