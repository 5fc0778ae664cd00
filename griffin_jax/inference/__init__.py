"""Sampling, chat and scoring with a Griffin model."""

from griffin_jax.inference.chat import Chat
from griffin_jax.inference.context import Context
from griffin_jax.inference.engine import Engine, EngineClosed, EngineFull
from griffin_jax.inference.grammar import Grammar
from griffin_jax.inference.prefix_cache import PrefixCache
from griffin_jax.inference.request import Request, Sample
from griffin_jax.inference.sampling import SamplingConfig, SamplingMethod
from griffin_jax.inference.scoring import score
from griffin_jax.inference.speculation import Speculation
from griffin_jax.inference.stats import EngineStats, Load

__all__ = [
    "Chat",
    "Context",
    "Engine",
    "EngineClosed",
    "EngineFull",
    "EngineStats",
    "Grammar",
    "Load",
    "PrefixCache",
    "Request",
    "Sample",
    "SamplingConfig",
    "SamplingMethod",
    "Speculation",
    "score",
]
