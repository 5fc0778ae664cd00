"""One step of training: loss, gradient, update, on all devices of a mesh."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from griffin_jax.config import GriffinConfig
from griffin_jax.devices import constrain, replicate
from griffin_jax.models import Griffin, param_shardings, put_on_mesh
from griffin_jax.sharding import (
    AXES,
    batch_sharding,
    batch_shards,
    check_batch,
    jit_on_mesh,
    make_mesh,
    row_group,
)
from griffin_jax.sharding.mesh_function import MeshFunction
from griffin_jax.training.cross_entropy import cross_entropy

Params = Any
Assemble = Callable[[Params, Params], Params]


@flax.struct.dataclass
class TrainState:
    """The values that training changes.

    Attributes:
      step: int32[], updates made.
      params: Trainable parameters; float32 master weights.
      optimizer: State of the optimizer.
      average: Running average of `params` over the steps, float32; None where none is kept.
    """

    step: jax.Array
    params: Params
    optimizer: optax.OptState
    average: Params | None = None

    @property
    def evaluated(self) -> Params:
        """The parameters to evaluate and to keep: the average where there is one."""
        return self.params if self.average is None else self.average


def data_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """Returns a mesh that shares a batch over all devices or those given, and cuts nothing else."""
    return make_mesh(data=-1, devices=devices)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns the rows [B / groups, T] of this process's `RowGroup` in one global array [B, T].

    Raises:
      ValueError: the rows do not divide over the devices.
    """
    group = row_group(mesh)
    rows = len(next(iter(batch.values()))) * group.count
    check_batch(rows, mesh)
    size = rows // batch_shards(mesh)

    def put(array):
        shape = (rows, *array.shape[1:])

        def part(index):
            begin = group.shards.index(index[0].indices(rows)[0] // size) * size
            return array[(slice(begin, begin + size), *index[1:])]

        return jax.make_array_from_callback(shape, batch_sharding(mesh, shape), part)

    return {name: put(array) for name, array in batch.items() if name != "start"}


def put_flag(value: bool, mesh: Mesh) -> jax.Array:
    """Returns what each process says, float32[devices], which a step makes into what any of them
    says.
    """
    sharding = NamedSharding(mesh, PartitionSpec(AXES))
    return jax.make_array_from_callback(
        (mesh.size,), sharding, lambda index: np.full(1, value, np.float32)
    )


def token_losses(
    model: Griffin,
    params: Params,
    batch: dict[str, jax.Array],
    chunks: int = 1,
    key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns the sums over the batch's targets of -ln p(target) and of the squared log-normalizer.

    Args:
      model: Computes in its own dtype; logits and losses are float32.
      params: As `model` reads them.
      batch: `inputs`, `targets`, `positions` int32[B, T] and `mask` float32[B, T].
      chunks: Parts of T whose logits are computed, and computed again for the gradient, one after
        another, so that [B, T / chunks, V] is the most that exists. 1 keeps them for the gradient.
      key: Draws what `model.dropout` leaves out; None leaves out nothing.

    Returns:
      Two float32 scalars.

    Raises:
      ValueError: `chunks` does not divide T.
    """
    time = batch["inputs"].shape[1]
    if time % chunks:
        raise ValueError(f"loss_chunks {chunks} does not divide the sequence length {time}")
    x, _ = model.apply(
        {"params": params},
        batch["inputs"],
        positions=batch["positions"],
        method="features",
        rngs=None if key is None else {"dropout": key},
    )

    def sums(x, targets, mask):
        logits = model.apply({"params": params}, x, method="uncapped_logits")
        found: Any = cross_entropy(logits, targets, model.config.logits_soft_cap)
        losses, normalizer = found
        return jnp.sum(mask * losses), jnp.sum(mask * normalizer**2)

    if chunks == 1:
        return sums(x, batch["targets"], batch["mask"])

    def split(array):
        # Every chunk has tokens from all over the sequence, which devices may have parts of.
        array = array.reshape(len(array), time // chunks, chunks, *array.shape[2:])
        return jnp.moveaxis(array, 2, 0)

    def add(total, chunk):
        return jax.tree.map(jnp.add, total, jax.checkpoint(sums)(*chunk)), None

    parts = split(x), split(batch["targets"]), split(batch["mask"])
    return jax.lax.scan(add, (jnp.float32(0), jnp.float32(0)), parts)[0]


def shard_state(config: GriffinConfig, state: TrainState, mesh: Mesh) -> TrainState:
    """Places each array of `state` where its axes say that it lies on the mesh."""
    return put_on_mesh(config, state, mesh)


def make_train_step(
    model: Griffin,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    assemble: Assemble = lambda trainable, frozen: trainable,
    *,
    z_loss: float = 0.0,
    microbatches: int = 1,
    loss_chunks: int = 1,
    ema: float = 0.0,
    seed: int = 0,
) -> MeshFunction:
    """Builds the jitted `step(state, frozen, batch) -> (state, metrics)`; it donates `state`.

    Args:
      model: The model, with its compute dtype and rematerialization.
      optimizer: Turns gradients into updates.
      mesh: A mesh that `make_mesh` returns. The batch and the parameters lie on it as the table says.
      assemble: Joins trainable and frozen parameters into what the model reads.
      z_loss: Weight of the mean squared log-normalizer, which keeps logits from drifting.
      microbatches: Parts of the batch whose gradients are accumulated one after another.
      loss_chunks: See `token_losses`.
      ema: Decay per step of the state's average, where it has one. Early on it is (1 + t) / (10 + t)
        at step t where that is less, so that the initial parameters are soon forgotten.
      seed: The seed of `model.dropout`; what a step leaves out depends on it and on the step alone.

    Metrics, float32 scalars: `loss` in nats per target, `z_loss` (the mean squared log-normalizer),
    `grad_norm` before clipping, `tokens` (targets that count), and `stop` where the batch has one
    of `put_flag`.
    """

    def loss(params, frozen, batch, total, key):
        nll, squares = token_losses(model, assemble(params, frozen), batch, loss_chunks, key)
        sums = jnp.stack([nll, squares]) / total
        return sums[0] + z_loss * sums[1], sums

    def gradients(params, frozen, batch, step):
        key = None
        if model.dropout:
            # Among the generators, this one makes bits in a quarter of the arithmetic.
            key = jax.random.fold_in(jax.random.key(seed, impl="rbg"), step)
        total = jnp.maximum(jnp.sum(batch["mask"]), 1.0)
        gradient = jax.grad(loss, has_aux=True)

        def accumulate(carry, part):
            batch, index = part
            part_key = key if key is None else jax.random.fold_in(key, index)
            new = gradient(params, frozen, batch, total, part_key)
            return jax.tree.map(jnp.add, carry, new), None

        def split(x):
            # Every part has rows from all over the batch, so that each device has its share.
            x = x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1)
            return constrain(x, None, "batch", "time")

        if microbatches == 1:
            grads, sums = gradient(params, frozen, batch, total, key)
        else:
            zero = jax.tree.map(jnp.zeros_like, params), jnp.zeros(2)
            parts = jax.tree.map(split, batch)
            (grads, sums), _ = jax.lax.scan(
                accumulate, zero, (parts, jnp.arange(microbatches, dtype=jnp.int32))
            )
        return grads, sums, total

    def step(state, frozen, batch):
        batch = dict(batch)
        stop = batch.pop("stop", None)
        grads, sums, total = gradients(state.params, frozen, batch, state.step)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if average is not None:
            new_share = 1 - jnp.minimum(ema, (1 + state.step) / (10 + state.step))
            average = optax.incremental_update(params, average, new_share)
        new = TrainState(state.step + 1, params, optimizer_state, average)
        metrics = {
            "loss": sums[0],
            "z_loss": sums[1],
            "grad_norm": optax.tree.norm(grads),
            "tokens": total,
        }
        if stop is not None:
            metrics["stop"] = jnp.max(stop)
        new = jax.lax.with_sharding_constraint(new, param_shardings(model.config, new, mesh))
        return new, replicate(metrics)

    return jit_on_mesh(step, mesh=mesh, donate_argnums=0)


def make_eval_step(
    model: Griffin,
    mesh: Mesh,
    assemble: Assemble = lambda trainable, frozen: trainable,
    *,
    loss_chunks: int = 1,
) -> Callable[[Params, Params, dict], tuple[jax.Array, jax.Array]]:
    """Builds the jitted `step(params, frozen, batch)`: sum of losses in nats, number of targets."""

    def sums(params, frozen, batch):
        nll, _ = token_losses(model, assemble(params, frozen), batch, loss_chunks)
        return replicate((nll, jnp.sum(batch["mask"])))

    return jit_on_mesh(sums, mesh=mesh)
