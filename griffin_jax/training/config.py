"""Everything that decides a training run but the text."""

import dataclasses
from typing import Any

from griffin_jax.config import GriffinConfig
from griffin_jax.models.griffin import REMAT_POLICIES
from griffin_jax.training.lora import LoRAConfig
from griffin_jax.training.optimizer import OptimizerConfig, learning_rate_schedule


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of a run.

    Attributes:
      model: The model's shape.
      optimizer: AdamW and its schedule.
      steps: Updates in the whole run; the schedule ends there.
      batch_size: Sequences per update, over all devices.
      seq_len: Tokens per sequence.
      microbatches: Parts of a batch whose gradients are accumulated one after another.
      dtype: Of activations. Master weights, gradients and losses are float32.
      remat: What the backward pass recomputes: "none", "dots" or "block"; see `Griffin`.
      dropout: Share of the residual branches' outputs that training leaves out, to 1/256.
      loss_chunks: Parts of a sequence whose logits exist at a time; see `token_losses`.
      z_loss: Weight of the mean squared log-normaliser.
      ema: Decay per step of a running average of the parameters, which is then what is evaluated
        and exported; 0 keeps none.
      seed: Of the initial parameters and of the order of the data.
      log_every: Steps between lines in metrics.jsonl.
      eval_every: Steps between evaluations; every checkpoint has one too.
      eval_batches: Batches in an evaluation, always the same.
      checkpoint_every: Steps between checkpoints.
      lora: Train an adapter of this kind in place of all parameters; None trains all.
      max_seconds: Stop with a checkpoint when the run has lasted so long; None for no limit.
    """

    model: GriffinConfig
    optimizer: OptimizerConfig
    steps: int
    batch_size: int
    seq_len: int
    microbatches: int = 1
    dtype: str = "bfloat16"
    remat: str = "none"
    dropout: float = 0.0
    loss_chunks: int = 1
    z_loss: float = 0.0
    ema: float = 0.0
    seed: int = 0
    log_every: int = 10
    eval_every: int = 500
    eval_batches: int = 8
    checkpoint_every: int = 500
    lora: LoRAConfig | None = None
    max_seconds: float | None = None

    def __post_init__(self):
        for name in ("steps", "batch_size", "seq_len", "microbatches", "loss_chunks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("dropout", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.remat not in REMAT_POLICIES:
            raise ValueError(f"remat is one of {sorted(REMAT_POLICIES)}, got {self.remat!r}")
        if self.seq_len % self.loss_chunks:
            raise ValueError(
                f"loss_chunks {self.loss_chunks} does not divide seq_len {self.seq_len}"
            )

        learning_rate_schedule(self.optimizer, self.steps)

    def check_devices(self, devices: int) -> None:
        """Raises ValueError when the batch does not divide over so many devices."""
        if self.batch_size % (devices * self.microbatches):
            raise ValueError(
                f"batch_size {self.batch_size} does not divide over {devices} devices x "
                f"{self.microbatches} microbatches; the next that does is "
                f"{-(-self.batch_size // (devices * self.microbatches)) * devices * self.microbatches}"
            )

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree on for the run to go on from it; ready for JSON."""
        return {
            "model": self.model.to_dict(),
            "batch_size": self.batch_size,
            "seq_len": self.seq_len,
            "seed": self.seed,
            "lora": self.lora and dataclasses.asdict(self.lora),
            "average": self.ema > 0,
        }
