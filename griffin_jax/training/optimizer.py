"""AdamW with warm-up and cosine decay, as Griffin models are trained."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import optax

from griffin_jax.fields import check_fields, field
from griffin_jax.models import kind_at
from griffin_jax.models.lora_weight import LOW_RANK


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Settings of AdamW (arXiv:1711.05101) and of its schedule.

    Attributes:
      learning_rate: At the end of warm-up.
      warmup_steps: Steps over which the learning rate rises linearly from 0.
      final_share: Share of `learning_rate` that the cosine ends at.
      weight_decay: Decoupled decay, multiplied by the learning rate; see `decays`.
      clip_norm: Largest global norm of the gradient.
      b1: Decay of the mean of gradients.
      b2: Decay of the mean of squared gradients.
      eps: Added to the root of the mean of squares.
    """

    learning_rate: float = field(1e-3, at_least=0, at_most=1000)
    warmup_steps: int = field(100, at_least=0)
    final_share: float = field(0.1, at_least=0, at_most=1)
    weight_decay: float = field(0.1, at_least=0, at_most=1000)
    clip_norm: float = field(1.0, above=0)
    b1: float = field(0.9, at_least=0, below=1)
    b2: float = field(0.95, at_least=0, below=1)
    eps: float = field(1e-8, above=0, below=1)

    def __post_init__(self):
        check_fields(self, "optimizer.")


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns a schedule of linear warm-up, then half a cosine down to `final_share` at `steps`.

    Raises:
      ValueError: the warm-up is not shorter than `steps`.
    """
    if config.warmup_steps >= steps:
        raise ValueError(
            f"optimizer.warmup_steps {config.warmup_steps} must be less than steps {steps}"
        )
    return _promoting(
        optax.warmup_cosine_decay_schedule(
            init_value=0.0,
            peak_value=config.learning_rate,
            warmup_steps=config.warmup_steps,
            decay_steps=steps,
            end_value=config.learning_rate * config.final_share,
        )
    )


def decays(path: tuple[jax.tree_util.KeyEntry, ...]) -> bool:
    """Returns whether weight decay acts on the parameter at `path` of a parameter tree.

    It acts on the matrices of linear layers, adapters and the embedding, and on nothing else: not
    on the RG-LRU, whose parameters are rates and gates, nor on convolutions, norms and biases; see
    `models.parameters.KINDS`.
    """
    *layer, name = [entry.key for entry in path]
    return kind_at("/".join([*layer, "weight" if name in LOW_RANK else name])).decays


def adamw(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Returns clipping by global norm, then AdamW with the schedule of `learning_rate_schedule`.

    Raises:
      ValueError: the warm-up is not shorter than `steps`.
    """
    chain = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate_schedule(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree_util.tree_map_with_path(lambda p, _: decays(p), params),
        ),
    )
    return optax.GradientTransformation(_promoting(chain.init), _promoting(chain.update))


def _promoting(function: Callable) -> Callable:
    """Returns the function under JAX's usual promotion of dtypes, which Optax counts on."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return call
