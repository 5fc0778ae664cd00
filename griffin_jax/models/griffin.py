"""The Griffin language model (arXiv:2402.19427; RecurrentGemma, arXiv:2404.07839)."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from griffin_jax.config import GriffinConfig
from griffin_jax.devices import constrain, model_shards
from griffin_jax.models.blocks import ResidualBlock, check_blocks, init_state
from griffin_jax.models.layers import Embedder, RMSNorm, embed, head, products
from griffin_jax.models.linear import AnyWeight, matmul
from griffin_jax.models.parameters import fan_in, parameter
from griffin_jax.models.places import ASKED, RECORDED, apply_and_record, in_groups, place
from griffin_jax.models.residual_rows import added_up
from griffin_jax.models.stack import (
    GROUPS,
    AnyState,
    StackedState,
    scan_groups,
    stack_state,
    unstack_state,
)
from griffin_jax.models.state import State, Timeline
from griffin_jax.sharding.layouts import constrain_state
from griffin_jax.weight import is_weight

REMAT_POLICIES = {
    "none": None,
    "block": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Griffin(nn.Module):
    """Embedding, residual blocks, norm and output head.

    Parameters that `stack_params` has stacked run in a loop over groups of layers, others layer by
    layer; the result is the same.

    Attributes:
      config: The model's shape.
      dtype: The dtype of activations, keys and values. Norms, softmax, recurrence and logits are float32.
      param_dtype: The dtype of parameters that `init` makes.
      remat: What the backward pass recomputes: "none", "block" (everything in a block) or "dots"
        (everything but matrix products).
      dropout: Share of each residual branch's output that is left out, where `apply` is given a
        PRNG key named "dropout"; nothing is without one.
    """

    config: GriffinConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    remat: str = "none"
    dropout: float = 0.0

    def setup(self):
        config = self.config
        check_blocks(config)
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.embedder = Embedder(
            config.vocab_size,
            config.width,
            config.scale_embeddings,
            config.round_embedding_scale,
            **types,
        )
        policy = REMAT_POLICIES[self.remat]
        block = ResidualBlock if policy is None else nn.remat(ResidualBlock, policy=policy)
        self.blocks = [
            block(config, kind, dropout=self.dropout, **types) for kind in config.block_types
        ]
        self.final_norm = RMSNorm(config.norm_eps, self.param_dtype)
        if not config.tie_embeddings:
            self.lm_head = Head(config.vocab_size, self.param_dtype)

    def __call__(
        self,
        tokens: jax.Array,
        state: AnyState | None = None,
        positions: jax.Array | None = None,
        lengths: jax.Array | None = None,
    ) -> tuple[jax.Array, AnyState]:
        """Reads T tokens; T = 1 is decoding, more is prefill or training.

        Any split of a text into calls gives the same result, and so does any batching.

        Args:
          tokens: int32[B, T].
          state: What the rows have read before; None for nothing. Under an unbounded attention
            window, give one of `init_state` with a capacity to go on from; without it, the
            attention blocks' part of the returned state is empty. With stacked parameters it may
            be a `StackedState`, which spares a copy, and the returned one is then, too.
          positions: int32[B, T], each token's position in its document. Must go up by one or start
            again at 0, which begins a new document: that is all that packing needs. Defaults to
            going on from the state.
          lengths: int32[B], how many of a row's tokens are real, the rest being padding at its
            right, which never reaches the state. Defaults to T. Logits of padding mean nothing.

        Returns:
          Logits float32[B, T, V] and the state after the last real token of each row.

        Raises:
          ValueError: the state's attention rings are empty.
        """
        x, state = self.features(tokens, state, positions, lengths)
        return self.logits(x), state

    def features(
        self,
        tokens: jax.Array,
        state: AnyState | None = None,
        positions: jax.Array | None = None,
        lengths: jax.Array | None = None,
    ) -> tuple[jax.Array, AnyState]:
        """Does what `__call__` does, but returns what the output head reads, [B, T, D]."""
        batch, time = tokens.shape
        fresh = state is None
        if fresh:
            state = init_state(self.config, batch, self.dtype, capacity=0)
        elif isinstance(state, State) and _has_empty_rings(state):
            raise ValueError(
                "state has no room for keys: under an unbounded attention window, begin with "
                "init_state(config, batch_size, capacity=tokens)"
            )
        if positions is None:
            positions = state.position[:, None] + jnp.arange(time, dtype=jnp.int32)[None]
        if lengths is None:
            lengths = jnp.full(batch, time, jnp.int32)
        timeline = Timeline(positions, lengths, start=state.position, fresh=fresh)
        x = constrain(self.embedder.encode(tokens), "batch", "time", None)
        x = place(self, "embedding", x)
        if self.has_variable("params", GROUPS):
            x, after = self._stacked(x, state, timeline)
        else:
            x, blocks = self._layers(self.blocks, x, unstack_state(state).blocks, timeline)
            after = State(position=timeline.end, blocks=blocks)
        return place(self, "final_norm", self.final_norm(x)), constrain_state(after)

    def lookahead(
        self, tokens: jax.Array, state: AnyState, lengths: jax.Array
    ) -> tuple[jax.Array, Callable[[jax.Array], AnyState]]:
        """Reads tokens of which only the first few may turn out to be the text's own.

        A block's state is computed from what the block has computed, once it is known how many tokens
        count; so nothing is ever taken back, at the wrap of the window either.

        Args:
          tokens: int32[B, T].
          state: What the rows have read before.
          lengths: int32[B], how many of a row's tokens are real.

        Returns:
          As of `features`, what the output head reads, [B, T, D]; and a function from int32[B], how
          many of each row's tokens count, to the state after those. It must be called within the
          same `apply`. Stacked layers compute all a second time for it, as does a block of a kind that
          knows nothing of open timelines.
        """
        if self.has_variable("params", GROUPS):
            x, _ = self.features(tokens, state, lengths=lengths)
            return x, lambda kept: self.features(tokens, state, lengths=kept)[1]
        begin = unstack_state(state)
        positions = begin.position[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        timeline = Timeline(positions, lengths, start=begin.position, open=True)
        x = constrain(self.embedder.encode(tokens), "batch", "time", None)
        states_after = []
        for block, before in zip(self.blocks, begin.blocks, strict=True):
            given = x
            x, after = block(x, before, timeline)
            if not callable(after):
                after = functools.partial(_state_after, block, given, before)
            states_after.append(after)

        def advance(kept):
            counted = dataclasses.replace(timeline, lengths=kept, open=False)
            blocks = tuple(state_after(counted) for state_after in states_after)
            return constrain_state(State(position=counted.end, blocks=blocks))

        return self.final_norm(x), advance

    def _layers(self, blocks, x, states, timeline):
        """Runs blocks one after another; those that are alike are traced once.

        What is asked of single layers, dropout and training, which gives no state, have each traced for
        itself.
        """
        once = not (
            timeline.fresh
            or self.is_initializing()
            or self.has_rng("dropout")
            or self.is_mutable_collection(RECORDED)
            or ASKED in self.variables
        )

        @functools.partial(jax.jit, static_argnums=0)
        def run(block, params, x, state, timeline):
            return block.apply({"params": params}, x, state, timeline)

        after = []
        for block, before in zip(blocks, states, strict=True):
            if once:
                alike = block.clone(parent=None, name=None, adds_up=False)
                x, new = run(alike, block.variables["params"], x, before, timeline)
            else:
                x, new = block(x, before, timeline)
            after.append(new)
        return added_up(x), tuple(after)

    def _stacked(self, x, state, timeline):
        """Does what `_layers` does in a loop over groups, from and to a state of either layout."""
        before = stack_state(self.config, state)
        key = self.make_rng("dropout") if self.has_rng("dropout") else None

        places, stacked = len(before.groups), len(self.blocks) - len(before.rest)
        asked, records = self.variables.get(ASKED), self.is_mutable_collection(RECORDED)

        def at(index):
            block = self.blocks[index].clone(parent=None)

            def run(params, x, state, group):
                rngs = None
                if key is not None:
                    rngs = {"dropout": jax.random.fold_in(key, group * places + index)}
                variables = {"params": params}
                if asked is not None:
                    layers = [asked[f"blocks_{i}"] for i in range(index, stacked, places)]
                    variables[ASKED] = in_groups(layers, group)
                return apply_and_record(block, records, variables, x, state, timeline, rngs=rngs)

            return run

        groups = self.get_variable("params", GROUPS)
        x, stacks, recorded = scan_groups([*map(at, range(places))], groups, x, before.groups)
        if any(recorded):
            self.put_variable(RECORDED, GROUPS, dict(zip(groups, recorded, strict=True)))
        rest = self.blocks[stacked:]
        x, rest = self._layers(rest, x, before.rest, timeline)
        after = StackedState(position=timeline.end, groups=stacks, rest=rest)
        return x, unstack_state(after) if isinstance(state, State) else after

    def logits(self, x: jax.Array) -> jax.Array:
        """Maps [B, T, D] of `features` to logits float32[B, T, V]."""
        logits = _capped(self.uncapped_logits(x), self.config.logits_soft_cap)
        return place(self, "logits", logits)

    def logits_by_themselves(self, x: jax.Array) -> Callable[[jax.Array], jax.Array] | None:
        """Returns a function that computes logits after x [..., D] in sums of their own.

        It is from tokens int32[..., K] to float32[..., K], which come out the same however many rows
        there are; `logits` sums in an order that suits their number. None where that is not what
        `logits` are most inexact by, as they are of activations in 16 bits, and where no device has
        the whole weight as it is.
        """
        tied = self.config.tie_embeddings
        weight = self.embedder.embedding if tied else self.lm_head.weight(x.shape[-1])
        if x.dtype != jnp.float32 or is_weight(weight) or model_shards() > 1:
            return None
        cap = self.config.logits_soft_cap
        return lambda tokens: _capped(products(x, embed(weight, tokens)), cap)

    def read_out(self, x: jax.Array) -> jax.Array:
        """Returns logits float32[B, T, V] of a residual stream [B, T, D], as if no layer followed."""
        return self.logits(self.final_norm(x))

    def uncapped_logits(self, x: jax.Array) -> jax.Array:
        """Computes `logits` before the soft cap."""
        logits = self.embedder.decode(x) if self.config.tie_embeddings else self.lm_head(x)
        return constrain(logits, "batch", "time", "vocabulary")


def _capped(logits, cap):
    return logits if cap is None else jnp.tanh(logits / cap) * cap


def _state_after(block, x, before, timeline):
    return block(x, before, timeline)[1]


def _has_empty_rings(state):
    return any(block.slots() == 0 for block in state.blocks)


class Head(nn.Module):
    """An output head of its own, [V, D]."""

    vocab_size: int
    param_dtype: DTypeLike = jnp.float32

    def __call__(self, x: jax.Array) -> jax.Array:
        weight = self.weight(x.shape[-1])
        if is_weight(weight):  # as transformers packs it where nothing skips it
            return matmul(x, weight).astype(jnp.float32)
        return head(x, weight)

    @nn.compact
    def weight(self, width: int) -> AnyWeight:
        """Returns the weight for inputs of this width."""
        return parameter(
            self,
            "weight",
            fan_in(),
            (self.vocab_size, width),
            self.param_dtype,
            axes=("vocabulary", "width"),
            kind="head",
        )


def init_params(config: GriffinConfig, key: jax.Array, dtype: DTypeLike = jnp.float32) -> dict:
    """Returns random parameters, drawn as published; a nested dict of arrays of `dtype`."""
    model = Griffin(config, dtype=dtype, param_dtype=dtype)
    return dict(model.init(key, jnp.zeros((1, 1), jnp.int32))["params"])
