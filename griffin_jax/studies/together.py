"""Several runs of one model shape as one program: seeds and learning rates are an axis of its arrays.

A small model leaves most of an accelerator idle, and what a step costs is mostly that of launching
it. So the runs of a group are trained side by side (`jax.vmap`), their examples are drawn on the
device, and many steps are one program (`jax.lax.scan`). A run in a group is the run alone: it has
its own parameters, optimizer and examples, and nothing passes from one to another.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from griffin_jax.config import GriffinConfig
from griffin_jax.devices import platform
from griffin_jax.files import new_file, write_json
from griffin_jax.kernels import choice
from griffin_jax.kernels.time_chunks_gpu import mapped_over
from griffin_jax.kernels.whole_rows import one_document_a_row
from griffin_jax.models import Griffin, abstract_params, init_params, init_state
from griffin_jax.studies.task import arrays_of, draw_batch
from griffin_jax.training import OptimizerConfig, TrainState, adamw, token_losses

# What examples are drawn for; those of two purposes have nothing to do with one another.
TRAIN, HELDOUT, TEST = range(3)
# A weight's gradient is a product over all tokens of a batch, for a small matrix: on a GPU few of its
# processors would work at it. It is the sum of the gradients of parts of a batch, all at once, which
# have as many tokens at least.
_PART = 2048
# JAX cannot map cuDNN's attention where it has a mask, as documents that begin within a row need, nor
# what has its gradient.
_MASKED = ("cudnn_rows_gpu", "band_gpu", "cudnn_gpu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings that the runs of a group have in common.

    Attributes:
      model: The model's shape.
      task: What it learns.
      optimizer: AdamW and its schedule, of a learning rate of 1, which each run multiplies.
      steps: Updates.
      batch_size: Examples in an update.
      dtype: The dtype of activations.
      every: Updates in one program, after which the held-out loss is measured.
      save_every: Updates between checkpoints, which end a program, too.
      heldout_rows: Examples of the held-out loss, the same for all runs.
      loss_chunks: Parts of a sequence whose logits exist at a time.
      carried: Tokens before a row that are read first, without a gradient, in the last
        `carried_steps`: they begin from the state that these tokens leave.
      carried_steps: So many of the last updates.
    """

    model: GriffinConfig
    task: Any
    optimizer: OptimizerConfig
    steps: int
    batch_size: int
    dtype: str
    every: int
    save_every: int
    heldout_rows: int
    loss_chunks: int = 1
    carried: int = 0
    carried_steps: int = 0


@dataclasses.dataclass
class Trained:
    """The state of a group of runs.

    Attributes:
      params: The runs' parameters, stacked.
      step: Updates made.
      curve: By measurement, the step and each run's held-out loss, [n] and [n, runs].
      seconds: What it took, compilation included, over all calls.
    """

    params: Any
    step: int
    curve: tuple[list[int], list[np.ndarray]]
    seconds: float


def train_together(
    plan: Plan,
    seeds: Sequence[int],
    rates: Sequence[float],
    folder: Path,
    *,
    over: Callable[[], bool] = lambda: False,
    told: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Trains runs, or goes on with those that were stopped, to the same bits.

    Args:
      plan: What they have in common.
      seeds: Each run's, which its parameters and examples depend on.
      rates: Each run's peak learning rate.
      folder: Has or gets the checkpoint, `state.npz`, and its curve in `curve.json`.
      over: Whether to stop, with a checkpoint; it is asked behind every measurement.
      told: Called of each measurement.
    """
    began = time.monotonic()
    start, stretch = _programs(plan, len(seeds), parts_of(plan), platform())
    states = jax.tree.map(lambda *x: jnp.stack(x), *(start(seed) for seed in seeds))
    saved = folder / "state.npz"
    step, curve, before = 0, ([], []), 0.0
    if saved.exists():
        states, curve, before = _read(saved, states)
        step = int(states.step[0])
    runs = jnp.asarray(seeds, jnp.int32), jnp.asarray(rates, jnp.float32)
    arrays = arrays_of(plan.task, "train"), arrays_of(plan.task, "heldout")
    while step < plan.steps:
        stops = (plan.every, plan.save_every)
        count = min(plan.steps - step, *(x - step % x for x in stops))
        alone = plan.steps - plan.carried_steps  # steps that begin from nothing
        if step < alone:
            count = min(count, alone - step)
        states, losses = stretch(states, *runs, *arrays, count, step >= alone)
        step += count
        curve[0].append(step)
        curve[1].append(np.asarray(losses))
        told(f"step {step:,}: held-out loss " + ", ".join(f"{x:.4f}" for x in curve[1][-1]))
        last = step == plan.steps or over()
        if last or step % plan.save_every == 0:
            _write(saved, states, curve, before + time.monotonic() - began)
            steps, found = curve
            write_json(folder / "curve.json", {"steps": steps, "losses": np.array(found).tolist()})
        if last:
            break
    return Trained(states.params, step, curve, before + time.monotonic() - began)


def mapped(function: Callable, runs: int) -> Callable:
    """Returns `jax.vmap` over an axis of runs, or that axis taken away where there is one run
    alone.
    """
    if runs > 1:
        return jax.vmap(function)

    def alone(*arguments):
        found = function(*jax.tree.map(lambda x: x[0], arguments))
        return jax.tree.map(lambda x: x[None], found)

    return alone


def parts_of(plan: Plan) -> int:
    """Returns into how many parts a batch is cut for its gradient on this platform; see `_PART`.

    Rows of text are not cut: where documents begin in them, attention is not mapped over parts.
    """
    if platform() != "gpu" or hasattr(plan.task, "arrays"):
        return 1
    return math.gcd(plan.batch_size, max(1, plan.batch_size * plan.task.length // _PART))


@contextlib.contextmanager
def kernels_of_runs(packed: bool, runs: int, parts: int = 1) -> Iterator[None]:
    """Keeps to kernels that may be mapped over runs and parts of a batch.

    Args:
      packed: Documents begin within rows, as they do in text.
      runs: The runs that a program has beside each other.
      parts: The parts of a batch.
    """
    left_out = _MASKED if packed and runs > 1 else ()
    promise = contextlib.nullcontext() if packed else one_document_a_row()
    with choice.without(*left_out), mapped_over(runs * parts), promise:
        yield


# Seeds of a model that are trained one after another have the same programs: those of the last plan
# are kept, for it takes longer to trace and load them than to train a small model for a while.
@functools.lru_cache(maxsize=1)
def _programs(plan, runs, parts, _):
    """Returns what makes a run's first state, and what takes all runs through a number of steps."""
    model = Griffin(plan.model, dtype=jnp.dtype(plan.dtype))
    optimizer = adamw(dataclasses.replace(plan.optimizer, learning_rate=1.0), plan.steps)
    longer = dataclasses.replace(plan.task, length=plan.task.length + plan.carried)
    packed = hasattr(plan.task, "arrays")

    @jax.jit
    def start(seed):
        params = init_params(plan.model, jax.random.key(seed))
        return TrainState(jnp.int32(0), params, optimizer.init(params))

    def loss(params, batch):
        nll, _ = token_losses(model, params, batch, plan.loss_chunks)
        return nll

    def carried_loss(params, batch):
        before, batch = (
            {name: x[:, part] for name, x in batch.items()}
            for part in (slice(plan.carried), slice(plan.carried, None))
        )
        rows = len(batch["inputs"])
        state = init_state(model.config, rows, model.dtype, capacity=longer.length)
        read = {"params": jax.lax.stop_gradient(params)}
        _, state = model.apply(
            read, before["inputs"], state, positions=before["positions"], method="features"
        )
        logits, _ = model.apply(
            {"params": params}, batch["inputs"], state, positions=batch["positions"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        return jnp.sum(batch["mask"] * losses)

    def gradient_of(objective, params, batch):
        """Returns the gradient of the mean loss, which is summed over parts of the batch."""
        answers = jnp.maximum(jnp.sum(batch["mask"]), 1.0)

        def mean(params, part):
            return objective(params, part) / answers

        if parts == 1:
            return jax.grad(mean)(params, batch)
        batch = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
        gradients = jax.vmap(jax.grad(mean), in_axes=(None, 0))(params, batch)
        # The compiler would make one product of the sum of products.
        gradients = jax.lax.optimization_barrier(gradients)
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), gradients)

    @functools.partial(jax.jit, static_argnums=(5, 6), donate_argnums=0)
    def stretch(states, seeds, rates, train, heldout, count, carried):
        def step(state, seed, rate):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), TRAIN), state.step)
            task, objective = (longer, carried_loss) if carried else (plan.task, loss)
            batch = draw_batch(task, key, plan.batch_size, train)
            gradient = gradient_of(objective, state.params, batch)
            updates, after = optimizer.update(gradient, state.optimizer, state.params)
            updates = jax.tree.map(lambda x: rate * x, updates)
            return TrainState(state.step + 1, optax.apply_updates(state.params, updates), after)

        def measure(params):
            def one(total, key):
                batch = draw_batch(plan.task, key, rows, heldout)
                nll, _ = token_losses(model, params, batch, plan.loss_chunks)
                return (total[0] + nll, total[1] + jnp.sum(batch["mask"])), None

            rows = min(plan.batch_size, plan.heldout_rows)
            # The same for all runs, whatever their seeds.
            key = jax.random.fold_in(jax.random.key(0), HELDOUT)
            keys = jax.random.split(key, -(-plan.heldout_rows // rows))
            (nll, answers), _ = jax.lax.scan(one, (jnp.float32(0), jnp.float32(0)), keys)
            return nll / answers

        with kernels_of_runs(packed, runs, parts):
            states, _ = jax.lax.scan(
                lambda states, _: (mapped(step, runs)(states, seeds, rates), None),
                states,
                length=count,
            )
            return states, mapped(measure, runs)(states.params)

    return start, stretch


def keep_params(folder: Path, trained: Trained) -> None:
    """Writes what runs have learned as `params.npz`, in the place of their checkpoint."""
    names, leaves, _ = _names(trained.params)
    with new_file(folder / "params.npz") as file:
        np.savez(file, **dict(zip(names, map(np.asarray, leaves), strict=True)))
    (folder / "state.npz").unlink(missing_ok=True)


def read_params(folder: Path, model: GriffinConfig) -> Any:
    """Returns the stacked parameters that `keep_params` wrote.

    Raises:
      FileNotFoundError: the runs are not done.
    """
    like = abstract_params(model)
    names, _, treedef = _names(like)
    path = folder / "params.npz"
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file; the runs are not done")
    with np.load(path) as saved:
        return treedef.unflatten([jnp.asarray(saved[name]) for name in names])


def _names(tree):
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(path) for path, _ in leaves], [x for _, x in leaves], treedef


def _write(path, states, curve, seconds):
    names, leaves, _ = _names(states)
    steps, losses = curve
    parts = dict(zip(names, map(np.asarray, leaves), strict=True))
    with new_file(path) as file:
        np.savez(file, steps=steps, losses=losses, seconds=seconds, **parts)


def _read(path, like):
    names, leaves, treedef = _names(like)
    with np.load(path) as saved:
        shapes = {name: saved[name].shape for name in saved.files}
        for name, leaf in zip(names, leaves, strict=True):
            if shapes.get(name) != leaf.shape:
                raise ValueError(
                    f"{path} is of other runs: {name} is {shapes.get(name)} there, and {leaf.shape} "
                    "here; give another --run folder, or delete it"
                )
        states = treedef.unflatten([jnp.asarray(saved[name]) for name in names])
        curve = saved["steps"].tolist(), list(saved["losses"])
        return states, curve, float(saved["seconds"])
