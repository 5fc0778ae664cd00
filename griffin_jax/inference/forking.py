"""Reading a tree of texts: the state after a node is copied for every child.

What a Griffin model remembers has a fixed size, so a fork costs the same after ten tokens as after
ten thousand.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from griffin_jax.inference import prefill, prefix_tree
from griffin_jax.inference.prefix_tree import Node
from griffin_jax.inference.stats import EngineStats
from griffin_jax.models import Griffin
from griffin_jax.models.stack import AnyState


@dataclasses.dataclass
class Work:
    """What reading some texts took.

    Attributes:
      tokens: Tokens that the model has read.
      padded: The same with the padding that calls of fixed shapes add.
      alone: Tokens that it would have read, had every text been read by itself.
      calls: Calls of the model.
    """

    tokens: int = 0
    padded: int = 0
    alone: int = 0
    calls: int = 0

    def count(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Counts one call over tokens [B, T], `lengths` [B] of which are real."""
        self.tokens += int(lengths.sum())
        self.padded += tokens.size
        self.calls += 1

    def add(self, stats: EngineStats) -> None:
        """Counts what an engine has read."""
        self.tokens += stats.read_tokens
        self.padded += stats.padded_tokens
        self.alone += stats.alone_tokens
        self.calls += stats.read_calls


@dataclasses.dataclass(frozen=True)
class Fork:
    """Where texts part.

    Attributes:
      rows: The row of `state` that belongs to each node.
      state: The state after each of the nodes.
    """

    rows: dict[Node, int]
    state: AnyState

    def start_state(
        self, model: Griffin, params: dict, nodes: Sequence[Node], tokens: int
    ) -> AnyState:
        """Returns what children of the nodes start from, `prefill.batch_size_for` rows.

        Args:
          model: The model.
          params: Its parameters.
          nodes: The children; the rows beyond them are copies that nobody reads.
          tokens: As for `prefill.fresh_state`.
        """
        rows = np.zeros(prefill.batch_size_for(len(nodes), params), np.int32)
        rows[: len(nodes)] = [self.rows[node.parent] for node in nodes]
        return prefill.select_rows(model, params, self.state, rows, tokens)


def walk(
    model: Griffin,
    params: dict,
    nodes: Sequence[Node],
    batch_size: int,
    read: Callable[[list[Node], AnyState], AnyState],
    fork: Fork | None = None,
) -> None:
    """Reads nodes and all below them, in batches, each node after its parent.

    One batch is read with everything below it before the next: the states in memory are those of
    a batch for every fork on the way to a leaf, however many texts there are.

    Args:
      model: The model.
      params: Its parameters.
      nodes: The roots; or children of the nodes of `fork`.
      batch_size: Nodes in a batch at most.
      read: Takes a batch and the state that it starts from, which it may donate; returns the state
        after the nodes.
      fork: What the nodes start from; None for the beginning of a text.
    """
    for batch in prefix_tree.batches(nodes, batch_size):
        state = read(
            batch, start_state(model, params, batch, fork, max(node.end for node in batch))
        )
        if children := [child for node in batch for child in node.children]:
            after = Fork({node: row for row, node in enumerate(batch)}, state)
            walk(model, params, children, batch_size, read, after)


def start_state(
    model: Griffin, params: dict, nodes: Sequence[Node], fork: Fork | None, tokens: int
) -> AnyState:
    """Returns what nodes start from: a fresh state where there is no fork; see `Fork.start_state`."""
    if fork is None:
        return prefill.fresh_state(
            model, params, prefill.batch_size_for(len(nodes), params), tokens
        )
    return fork.start_state(model, params, nodes, tokens)
