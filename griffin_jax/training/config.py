"""Everything that decides a training run but the text."""

import dataclasses
from typing import Any

import jax

from griffin_jax.config import DTYPES, GriffinConfig, check_dtype
from griffin_jax.fields import check_fields, field
from griffin_jax.models.griffin import REMAT_POLICIES
from griffin_jax.sharding import MeshShape, batch_shards, check_config
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
      dtype: The dtype of activations. Master weights, gradients and losses are float32.
      remat: What the backward pass recomputes: "none", "dots" or "block"; see `Griffin`.
      dropout: Share of the residual branches' outputs that training leaves out, to 1/256.
      loss_chunks: Parts of a sequence whose logits exist at a time; see `token_losses`.
      z_loss: Weight of the mean squared log-normalizer.
      ema: Decay per step of a running average of the parameters, which is then what is evaluated
        and exported; 0 keeps none.
      seed: The seed of the initial parameters and of the order of the data.
      log_every: Steps between lines in metrics.jsonl.
      eval_every: Steps between evaluations; every checkpoint has one too.
      eval_batches: Batches in an evaluation, always the same.
      checkpoint_every: Steps between checkpoints.
      lora: Train an adapter of this kind in place of all parameters; None trains all.
      mesh: How the devices share the work; a run may go on under another mesh.
      max_seconds: Stop with a checkpoint when the run has lasted so long; None or 0 for no limit.
      resume_with_changes: Go on with a run that other `settings` or other data began.
    """

    model: GriffinConfig
    optimizer: OptimizerConfig
    steps: int = field(at_least=1, at_most=2**31 - 1)
    batch_size: int = field(at_least=1, at_most=2**24)
    seq_len: int = field(at_least=1, at_most=2**24)
    microbatches: int = field(1, at_least=1)
    dtype: str = field("bfloat16", one_of=DTYPES)
    remat: str = field("none", one_of=tuple(REMAT_POLICIES))
    dropout: float = field(0.0, at_least=0, below=1)
    loss_chunks: int = field(1, at_least=1)
    z_loss: float = field(0.0, at_least=0, at_most=1000)
    ema: float = field(0.0, at_least=0, below=1)
    seed: int = field(0, at_least=0, below=2**32)
    log_every: int = field(10, at_least=1)
    eval_every: int = field(500, at_least=1)
    eval_batches: int = field(8, at_least=1)
    checkpoint_every: int = field(500, at_least=1)
    lora: LoRAConfig | None = None
    mesh: MeshShape = dataclasses.field(default_factory=lambda: MeshShape(fsdp=-1))
    max_seconds: float | None = field(None, at_least=0)
    resume_with_changes: bool = False

    def __post_init__(self):
        object.__setattr__(self, "dtype", check_dtype(self.dtype).name)
        check_fields(self)
        if self.seq_len % self.loss_chunks:
            raise ValueError(
                f"loss_chunks {self.loss_chunks} does not divide seq_len {self.seq_len}"
            )
        learning_rate_schedule(self.optimizer, self.steps)

    def check_mesh(self, mesh: jax.sharding.Mesh) -> None:
        """Raises ValueError when batch, sequence or model do not divide over a mesh."""
        self.check_devices(batch_shards(mesh))
        check_config(self.model, mesh)
        parts = mesh.shape["sequence"]
        if self.seq_len % (parts * self.loss_chunks):
            raise ValueError(
                f"seq_len {self.seq_len} does not divide over mesh axis sequence={parts} x "
                f"{self.loss_chunks} loss_chunks"
            )

    def check_devices(self, devices: int) -> None:
        """Raises ValueError when the batch does not divide over so many devices."""
        if self.batch_size % (devices * self.microbatches):
            raise ValueError(
                f"batch_size {self.batch_size} does not divide over {devices} devices x "
                f"{self.microbatches} microbatches; the next that does is "
                f"{-(-self.batch_size // (devices * self.microbatches)) * devices * self.microbatches}"
            )

    def identity(self) -> dict[str, Any]:
        """Returns what a checkpoint must agree on for the run to go on from it; ready for JSON."""
        return {
            "model": self.model.to_dict(),
            "batch_size": self.batch_size,
            "seq_len": self.seq_len,
            "seed": self.seed,
            "lora": self.lora and dataclasses.asdict(self.lora),
            "average": self.ema > 0,
        }

    def settings(self) -> dict[str, Any]:
        """Returns what a run may go on with otherwise, if that is meant; ready for JSON."""
        return {
            "optimizer": dataclasses.asdict(self.optimizer),
            "steps": self.steps,
            "dropout": self.dropout,
            "z_loss": self.z_loss,
            "ema": self.ema,
        }
