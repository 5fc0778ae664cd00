"""Checkpoints of a run: parameters, optimizer and place in the data, written in the background."""

import contextlib
import errno
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from griffin_jax import files
from griffin_jax.paths import AnyPath, OutputError, resolve
from griffin_jax.training.config import TrainConfig
from griffin_jax.training.run_folder import check_run, hold_run
from griffin_jax.training.train_step import TrainState

# How Orbax names what is not complete.
_UNFINISHED = ".orbax-checkpoint-tmp"


class RunCheckpoints:
    """The newest checkpoint and the one of the lowest held-out loss, in `folder`/checkpoints.

    A checkpoint appears under its step's name only when it is complete, so that a run killed at
    any moment finds the last complete one.
    """

    def __init__(self, folder: AnyPath, config: TrainConfig, data: str | None = None):
        """Opens the run of `folder`, which is held until `close`.

        Args:
          folder: The folder of the run; made where there is none.
          config: The settings of the run.
          data: What the rows are, as `Windows.fingerprint` has it; None where that is not known.

        Raises:
          ValueError: `folder` holds a run of another config, or one that other settings or data
            began, without `config.resume_with_changes`.
          InUseError: (an OSError) another process is at this run.
          OutputError: (an OSError) the folder cannot be written.
        """
        folder = resolve(folder, "run")
        self._held = contextlib.ExitStack()
        self._held.enter_context(hold_run(folder))
        try:
            self._open(folder, config, data)
        except BaseException:
            self._held.close()
            raise

    def _open(self, folder: Path, config: TrainConfig, data: str | None) -> None:
        check_run(folder, config, data)
        self.folder = folder / "checkpoints"
        # Orbax would do it in the background, when another process may hold the run.
        if jax.process_index() == 0:
            for unfinished in self.folder.glob(f"*{_UNFINISHED}*"):
                shutil.rmtree(unfinished)
        policy = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(1),
                checkpoint_managers.BestN(
                    get_metric_fn=lambda metrics: metrics["heldout_loss"],
                    reverse=True,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(preservation_policy=policy),
            item_names=("state", "data"),
        )

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(
        self, step: int, state: TrainState, data: dict[str, Any], heldout_loss: float | None
    ) -> None:
        """Begins to write a checkpoint; `state` may be donated as soon as this returns.

        Raises:
          OutputError: (an OSError) the disk is full.
        """
        self.check_room(state)
        with files.naming_errors(self.folder):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data)
                ),
                metrics=None if heldout_loss is None else {"heldout_loss": heldout_loss},
                force=True,
            )

    def restore(self, state: TrainState, shardings: Any) -> tuple[TrainState, dict[str, Any]]:
        """Returns the newest checkpoint, and its place in the data.

        Args:
          state: Shapes and dtypes, as of `jax.eval_shape`.
          shardings: Where each array goes, whatever it was saved from; each process reads its part.
        """
        like = jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            state,
            shardings,
        )
        restored = self._manager.restore(
            self.latest_step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(like),
                data=ocp.args.JsonRestore(),
            ),
        )
        return restored["state"], restored["data"]

    def check_room(self, state: TrainState) -> None:
        """Checks that the disk takes another checkpoint of a state, or of its shapes.

        Raises:
          OutputError: (an OSError) it does not.
        """
        needed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OutputError(
                self.folder,
                f"a checkpoint takes {needed / 1e6:,.1f} MB, and the disk has {free / 1e6:,.1f} left",
                errno.ENOSPC,
            )

    def check(self) -> None:
        """Raises what went wrong with a checkpoint that is written in the background."""
        with files.naming_errors(self.folder):
            self._manager.check_for_errors()

    def close(self) -> None:
        """Waits until everything is on disk, and lets go of the run."""
        with self._held, files.naming_errors(self.folder):
            self._manager.wait_until_finished()
            self._manager.close()
