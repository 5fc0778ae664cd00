"""Checkpoints of a run: parameters, optimizer and place in the data, written in the background."""

import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from griffin_jax.training.config import TrainConfig
from griffin_jax.training.train_step import TrainState


class RunCheckpoints:
    """The newest checkpoint and the one of the lowest held-out loss, in `folder`/checkpoints.

    A checkpoint appears under its step's name only when it is complete, so that a run killed at
    any moment finds the last complete one.
    """

    def __init__(self, folder: Path, config: TrainConfig):
        """Raises ValueError when `folder` holds a run of another config."""
        folder = Path(folder).absolute()
        _check_identity(folder / "run.json", config.identity())
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
        self.folder = folder / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy, cleanup_tmp_directories=True
            ),
            item_names=("state", "data"),
        )

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(
        self, step: int, state: TrainState, data: dict[str, Any], heldout_loss: float | None
    ) -> None:
        """Begins to write a checkpoint; `state` may be donated as soon as this returns."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data)
            ),
            metrics=None if heldout_loss is None else {"heldout_loss": heldout_loss},
            force=True,
        )

    def restore(self, state: TrainState, shardings: Any) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint, and its place in the data.

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
        return restored.state, restored.data

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def _check_identity(path: Path, identity: dict[str, Any]) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(identity, indent=2))
            temporary.replace(path)
        return
    here = _flat(json.loads(json.dumps(identity)))  # tuples are lists there
    there = _flat(json.loads(path.read_text()))
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            raise ValueError(
                f"{path.parent} holds a run with {name} = {there.get(name)}, this config says "
                f"{here.get(name)}: use the same config or another folder"
            )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        flat |= (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return flat
