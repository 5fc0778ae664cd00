"""The training loop: steps, evaluation, checkpoints, and what to do when something goes wrong."""

import dataclasses
import functools
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.models import Griffin, init_params, param_shardings, put_on_mesh
from griffin_jax.sharding import make_mesh, row_group
from griffin_jax.training.checkpointing import RunCheckpoints
from griffin_jax.training.config import TrainConfig
from griffin_jax.training.corpus import CorpusError
from griffin_jax.training.data import Batch, Rows, evaluation_batches, training_batches
from griffin_jax.training.flops import peak_flops, train_flops_per_token
from griffin_jax.training.lora import adapt, init_adapter
from griffin_jax.training.optimizer import adamw, learning_rate_schedule
from griffin_jax.training.run_folder import describe_run, hold_run
from griffin_jax.training.run_log import RunLog, Throughput
from griffin_jax.training.stop_signal import StopSignal
from griffin_jax.training.train_step import (
    Params,
    TrainState,
    make_eval_step,
    make_train_step,
    put_batch,
    put_flag,
)


class NonFiniteLossError(ValueError):
    """The loss or the gradient is NaN or infinite; the message says at which step and data."""


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """The result of a run.

    Attributes:
      params: The trained parameters, float32; of the adapter under `config.lora`. Their running
        average under `config.ema`.
      step: Updates made.
      finished: Whether that is all of them.
      tokens_per_second: Over whole steps, compilation and other pauses left out; None where there
        were too few.
      heldout_loss: Nats per token at the end; None without held-out data.
    """

    params: Params
    step: int
    finished: bool
    tokens_per_second: float | None
    heldout_loss: float | None


def train(
    config: TrainConfig,
    folder: str | Path,
    rows: Rows,
    heldout: Rows | None = None,
    *,
    base: Params | None = None,
) -> TrainResult:
    """Trains until `config.steps`, from the newest checkpoint in `folder` if there is one.

    SIGTERM, Ctrl-C and `config.max_seconds` end it early, with a checkpoint. Killed at any other
    moment and called again, it goes on to the parameters that an undisturbed run reaches.

    Args:
      config: The run's settings.
      folder: Receives checkpoints/, metrics.jsonl, tensorboard/, loss.png and run.json.
      rows: The data to train on.
      heldout: The data to evaluate on.
      base: Parameters to begin with, float32; drawn from `config.seed` by default. With
        `config.lora` they stay as they are, of any dtype or packed, and an adapter is trained.

    Raises:
      ValueError: the config contradicts itself, the devices, or the run in `folder`; or there is
        `config.lora` and no `base`.
      InUseError: (an OSError) another process is at the run in `folder`.
      OutputError: (an OSError) `folder` cannot be written, or the disk is full.
      NonFiniteLossError: the loss or the gradient is not finite. The last good checkpoint stays.
    """
    with hold_run(folder) as folder:
        return _Run(config, folder, rows, heldout, base).run()


class _Run:
    def __init__(self, config, folder, rows, heldout, base):
        self.began = time.perf_counter()
        self.config, self.folder, self.rows, self.heldout = config, folder, rows, heldout
        self.mesh = make_mesh(**config.mesh.sizes())
        config.check_mesh(self.mesh)
        self.rows_here = row_group(self.mesh)
        if base is not None:
            base = put_on_mesh(config.model, base, self.mesh)
        if config.lora:
            if base is None:
                raise ValueError("lora needs the parameters of a base model to adapt")
            assemble, self.frozen = functools.partial(adapt, config.lora), base
        else:
            assemble, self.frozen = (lambda trainable, _: trainable), None
        model = Griffin(
            config.model,
            dtype=jnp.dtype(config.dtype),
            remat=config.remat,
            dropout=config.dropout,
        )
        optimizer = adamw(config.optimizer, config.steps)
        self.learning_rate = learning_rate_schedule(config.optimizer, config.steps)
        self.train_step = make_train_step(
            model,
            optimizer,
            self.mesh,
            assemble,
            z_loss=config.z_loss,
            microbatches=config.microbatches,
            loss_chunks=config.loss_chunks,
            ema=config.ema,
            seed=config.seed,
        )
        self.eval_step = make_eval_step(model, self.mesh, assemble, loss_chunks=config.loss_chunks)
        fingerprint = rows.fingerprint() if hasattr(rows, "fingerprint") else None
        self.checkpoints = RunCheckpoints(folder, config, fingerprint)
        try:
            self._begin(optimizer, base)
            describe_run(folder, config, fingerprint)
        except BaseException:
            self.checkpoints.close()
            raise

    def _begin(self, optimizer, base):
        config, rows, folder = self.config, self.rows, self.folder
        reached = self.checkpoints.latest_step or 0
        if reached > config.steps:
            raise ValueError(
                f"the run in {folder} is at step {reached} already, beyond steps={config.steps}; give "
                f"at least {reached}, or another run folder"
            )
        self.batches = training_batches(
            rows, config.batch_size, config.seed, self.rows_here.places(config.batch_size)
        )
        start = self._initial_state(optimizer)
        like = jax.eval_shape(start, base)
        shardings = param_shardings(config.model, like, self.mesh)
        if reached < config.steps:
            self.checkpoints.check_room(like)
        if self.checkpoints.latest_step is None:
            self.state = jax.jit(start, out_shardings=shardings)(base)
        else:
            self.state, place = self.checkpoints.restore(like, shardings)
            self.batches.set_state(place)
        self.step = int(self.state.step)

    def _initial_state(self, optimizer):
        config = self.config

        def start(base):
            key = jax.random.key(config.seed)
            if config.lora:
                params = init_adapter(config.lora, base, key)
            elif base is None:
                params = init_params(config.model, key)
            else:
                # A copy: the step donates its state, and the caller may still need the parameters.
                params = jax.tree.map(jnp.copy, base)
            average = jax.tree.map(jnp.copy, params) if config.ema else None
            return TrainState(jnp.int32(0), params, optimizer.init(params), average)

        return start

    def run(self) -> TrainResult:
        config = self.config
        tokens_per_step = config.batch_size * config.seq_len
        peak = peak_flops(jax.devices()[0])
        flops = train_flops_per_token(config.model, config.seq_len, frozen=config.lora is not None)
        self.flops_share = peak and flops / (peak * jax.device_count())
        self.throughput = Throughput(tokens_per_step)
        self.log = RunLog(self.folder, self.step, config.steps)
        self.unread: tuple[int, dict[str, jax.Array], np.ndarray] | None = None
        self.stop_agreed = False
        heldout_loss = None
        try:
            with StopSignal() as stop:
                last = self.step == config.steps
                while not last:
                    self._one_step(stop.requested)
                    if config.max_seconds and time.perf_counter() - self.began > config.max_seconds:
                        stop.requested = True
                    alone = jax.process_count() == 1
                    stopping = stop.requested if alone else self.stop_agreed
                    last = stopping or self.step == config.steps
                    save = last or self.step % config.checkpoint_every == 0
                    if save or self.step % config.eval_every == 0:
                        # Nothing is saved before the loss of every step so far is known.
                        self._read_metrics()
                        heldout_loss = self._evaluate()
                    if save:
                        self.checkpoints.save(
                            self.step, self.state, self.batches.get_state(), heldout_loss
                        )
                        self.throughput.pause()
        except NonFiniteLossError:
            self.checkpoints.close()
            raise
        except BaseException:
            if jax.process_count() == 1:  # another process may be gone, which closing waits for
                self.checkpoints.close()
            raise
        else:
            self.checkpoints.close()
        finally:
            self.log.close()
        return TrainResult(
            params=self.state.evaluated,
            step=self.step,
            finished=self.step == config.steps,
            tokens_per_second=self.throughput.overall(),
            heldout_loss=heldout_loss,
        )

    def _one_step(self, stop: bool) -> None:
        batch = next(self.batches)
        self._check_batch(self.rows, batch)
        arrays = put_batch(batch, self.mesh)
        if jax.process_count() > 1:
            # A signal may reach one process alone, and all must stop after the same step.
            arrays["stop"] = put_flag(stop, self.mesh)
        self.state, metrics = self.train_step(self.state, self.frozen, arrays)
        self.checkpoints.check()
        # The device works on this step while the host reads the one before.
        self._read_metrics()
        self.step += 1
        self.unread = self.step, metrics, batch["start"]

    def _check_batch(self, rows: Rows, batch: Batch, needs_targets: bool = True) -> None:
        """Raises CorpusError for ids that the model has not, or for a batch that teaches nothing."""
        size = self.config.model.vocab_size
        for name in ("inputs", "targets"):
            low, high = batch[name].min(), batch[name].max()
            if low < 0 or high >= size:
                raise CorpusError(
                    f"token {low if low < 0 else high} is outside the model's vocabulary of {size}, "
                    f"in {rows.describe(batch['start'])}"
                )
        if needs_targets and jax.process_count() == 1 and not batch["mask"].any():
            raise CorpusError(f"there is no token to learn in {rows.describe(batch['start'])}")

    def _read_metrics(self) -> None:
        if self.unread is None:
            return
        step, metrics, starts = self.unread
        self.unread = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.stop_agreed = values.pop("stop", 0) > 0
        if not math.isfinite(values["loss"]) or not math.isfinite(values["grad_norm"]):
            self._stop_at_non_finite(step, values, starts)
        self.throughput.step()
        self.log.step()
        if step % self.config.log_every and step != self.config.steps:
            return
        rate = self.throughput.interval()
        mfu = rate and self.flops_share and rate * self.flops_share
        self.log.write(
            step,
            loss=values["loss"],
            z_loss=values["z_loss"],
            grad_norm=values["grad_norm"],
            learning_rate=float(self.learning_rate(step - 1)),
            tokens=step * self.config.batch_size * self.config.seq_len,
            tokens_per_second=rate,
            mfu=mfu,
        )
        shown = {"loss": f"{values['loss']:.3f}"}
        if rate:
            shown["tok/s"] = f"{rate:,.0f}"
        if mfu:
            shown["MFU"] = f"{mfu:.1%}"
        self.log.show(**shown)

    def _stop_at_non_finite(self, step: int, values: dict[str, float], starts: np.ndarray) -> None:
        good = self.checkpoints.latest_step
        kept = (
            "there is no checkpoint"
            if good is None
            else f"step {good} is in {self.checkpoints.folder}"
        )
        raise NonFiniteLossError(
            f"step {step}: loss {values['loss']}, gradient norm {values['grad_norm']} on "
            f"{self.rows.describe(starts)}; last good checkpoint: {kept}"
        )

    def _evaluate(self) -> float | None:
        if self.heldout is None:
            return None
        config = self.config
        self.throughput.pause()
        sums = []
        rows = config.batch_size // config.microbatches
        places = self.rows_here.places(rows)
        for batch in evaluation_batches(self.heldout, rows, config.eval_batches, places):
            self._check_batch(self.heldout, batch, needs_targets=False)
            arrays = put_batch(batch, self.mesh)
            sums.append(self.eval_step(self.state.evaluated, self.frozen, arrays))
        nll, count = np.sum(jax.device_get(sums), axis=0)
        if not count:
            return None  # the loss of nothing is no number
        loss = float(nll / count)
        size = getattr(self.heldout, "bytes_per_token", None)
        self.log.write(
            self.step, heldout_loss=loss, bits_per_byte=size and loss / math.log(2) / size
        )
        return loss
