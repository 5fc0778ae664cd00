"""What texts have in common is read once: a tree over token ids whose nodes own states.

A state of a Griffin model has a fixed size, so keeping one costs the same after ten tokens as after
a hundred thousand. States are kept at absolute positions, the multiples of `every`, up to which every
text is read by the same calls: one that goes on from a kept state runs the very programs that
it would have run, and gets the same bits.
"""

import collections
import dataclasses
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from griffin_jax.fields import check_value
from griffin_jax.inference import prefill
from griffin_jax.inference.kept_states import Folder, KeptState, Tiers
from griffin_jax.models.stack import AnyState
from griffin_jax.paths import AnyPath

MIN_SAVED = 64  # tokens that a cut has to save at least, as it costs a call of its own
_MOST_GONE = 4096  # places without a state that are remembered, to tell why there is none

Tokens = tuple[int, ...]


@dataclasses.dataclass
class CacheStats:
    """Counts since the cache was made.

    Attributes:
      hits: Texts that went on from a kept state.
      misses: Texts that did not, by the reason: "short" (it ends before the first place where
        states are kept), "unknown" (no text before began like it) or "evicted" (the state was kept
        once, and made room for others).
      tokens_saved: Tokens that did not have to be read.
      stored: States that were kept.
      evicted: States that are kept no more.
    """

    hits: int = 0
    misses: dict[str, int] = dataclasses.field(default_factory=dict)
    tokens_saved: int = 0
    stored: int = 0
    evicted: int = 0


@dataclasses.dataclass(eq=False)
class Node:
    """Tokens that all texts below have in common.

    Attributes:
      tokens: Those between the parent's end and this one's.
      end: How many tokens there are up to the end of this node.
      parent: What comes before; None at the root.
      children: How texts go on, by their next token.
      kept: The state after the last of the tokens; None where none is kept.
    """

    tokens: Tokens
    end: int
    parent: "Node | None" = None
    children: dict[int, "Node"] = dataclasses.field(default_factory=dict)
    kept: KeptState | None = None


class PrefixCache:
    """States of the beginnings of texts, the least recently used of which make room for others.

    Engines of one model may share a cache, one after another or at once.

    Attributes:
      every: States are kept at multiples of so many tokens. Fewer find more of what texts have in
        common, and prompts are read in calls of at most so many.
      far: From there on, states are kept at multiples of it: on an accelerator, where one long call
        takes less time than a few, 2,048 if that is more than `every`. None for nowhere, as on a CPU.
      exact: Keep no others, so that a text gets the bits that it would get without the cache. Else
        states are also kept where prompts end, where answers end and where prompts part: texts read
        less, and get what they would get but for the rounding of calls of other lengths.
      stats: What the cache has done so far.
    """

    def __init__(
        self,
        device_bytes: int = 2**30,
        *,
        host_bytes: int = 0,
        folder: AnyPath | None = None,
        folder_bytes: int = 0,
        every: int = 512,
        exact: bool = True,
    ):
        """Makes an empty cache.

        Args:
          device_bytes: What states on the device may take. 0 keeps none there.
          host_bytes: What states that had to leave the device may take in the host's memory.
          folder: For states that had to leave both; the cache's own, and empty at first.
          folder_bytes: What they may take there.
          every: See above.
          exact: See above.

        Raises:
          ValueError: a value is out of its range, or the folder holds what is none of a cache's.
          OutputError: (an OSError) the folder cannot be written.
        """
        self.every = check_value("every", every, int, at_least=1)
        on_cpu = jax.default_backend() == "cpu"
        self.far = None if on_cpu else max(self.every, max(prefill.CHUNKS))
        self.exact = check_value("exact", exact, bool)
        self.stats = CacheStats()
        self._tiers = Tiers(
            check_value("device_bytes", device_bytes, int, at_least=0),
            check_value("host_bytes", host_bytes, int, at_least=0),
            check_value("folder_bytes", folder_bytes, int, at_least=0),
            _folder(folder, folder_bytes),
            self._gone,
        )
        self._root = Node((), 0)
        self._nodes: dict[KeptState, Node] = {}
        self._without_state: collections.OrderedDict[Node, None] = collections.OrderedDict()
        self._lock = threading.RLock()
        self._leaves: list[weakref.ref] | None = None  # of the parameters, which it does not hold
        self._engines: weakref.WeakSet[Any] = weakref.WeakSet()

    @property
    def device_bytes(self) -> int:
        """What kept states take on the device now."""
        return self._tiers.device.nbytes

    @property
    def host_bytes(self) -> int:
        """What kept states take in the host's memory now."""
        return self._tiers.host.nbytes

    @property
    def folder_bytes(self) -> int:
        """What kept states take in the folder now."""
        return self._tiers.disk.nbytes

    def keeps_at(self, position: int) -> bool:
        """Returns whether a state is kept after so many tokens of a text that goes on."""
        if self.far is None or position < self.far:
            return position % self.every == 0
        return position % self.far == 0

    def bind(self, params: Any, engine: Any) -> None:
        """Says whose states these are.

        Args:
          params: The parameters of a model.
          engine: What keeps states of it here until `release`, or as long as it lives.

        Raises:
          ValueError: the cache holds those of other parameters.
        """
        leaves = jax.tree.leaves(params)
        with self._lock:
            # Every one: a model that differs in a few, as by an adapter, shares the others.
            before = leaves if self._leaves is None else [known() for known in self._leaves]
            if list(map(id, before)) != list(map(id, leaves)):
                raise ValueError(
                    "the prefix cache belongs to another model; make one for each, or close this "
                    "one's engines and clear() it"
                )
            self._leaves = list(map(weakref.ref, leaves))
            self._engines.add(engine)

    def release(self, engine: Any) -> None:
        """Takes note that an engine keeps no more states here."""
        with self._lock:
            self._engines.discard(engine)

    def clear(self) -> None:
        """Forgets all states, and whose they were unless an engine goes on to keep some."""
        with self._lock:
            self._tiers.clear()
            self._nodes.clear()
            self._without_state.clear()
            self._root = Node((), 0)
            if not self._engines:
                self._leaves = None

    def find(self, tokens: Tokens, most: int, read: int = 0) -> tuple[int, AnyState] | None:
        """Returns the longest kept beginning of a text, and the state after it.

        Args:
          tokens: The text.
          most: How much of it may be skipped at most.
          read: How much of it has been read; only what is longer helps.
        """
        with self._lock:
            usable = [
                node
                for node, whole in self._walk(tokens)
                if whole and node.kept is not None and read < node.end <= most
            ]
            for node in reversed(usable):
                # What is moved to make room for one may be another one.
                state = None if node.kept is None else self._tiers.use(node.kept)
                if state is not None:
                    self.stats.tokens_saved += node.end - read
                    return node.end, state
        return None

    def count(self, tokens: Tokens, most: int, found: bool) -> None:
        """Counts a text that begins to be read, as a hit or by the reason why it is none."""
        with self._lock:
            if found:
                self.stats.hits += 1
                return
            known = [node for node, whole in self._walk(tokens) if whole and node is not self._root]
            if most < (self.every if self.exact else MIN_SAVED):
                reason = "short"
            else:
                reason = "evicted" if known else "unknown"
            self.stats.misses[reason] = self.stats.misses.get(reason, 0) + 1

    def cut(self, tokens: Tokens, read: int, most: int) -> int:
        """Returns how far a text is to be read before its state is kept, if it parts from others
        there.

        Returns:
          A length of more than `read`; `most` where there is nothing to cut for.
        """
        if self.exact:
            return most
        with self._lock:
            common = 0
            for node, whole in self._walk(tokens):
                common = (
                    node.end
                    if whole
                    else node.end
                    - len(node.tokens)
                    + _common(node.tokens, tokens[node.end - len(node.tokens) :])
                )
            common = min(common, most)
        return common if common - read >= MIN_SAVED else most

    def store(self, tokens: Tokens, state: AnyState) -> None:
        """Keeps the state after a text, if there is room, and it is not kept already."""
        with self._lock:
            node = self._node_at(tokens)
            if node.kept is not None:
                self._tiers.touch(node.kept)
                return
            kept = KeptState(state)
            self._nodes[kept] = node
            node.kept = kept
            self._without_state.pop(node, None)
            self.stats.stored += 1
            self._tiers.add(kept)

    def _walk(self, tokens: Tokens) -> Iterator[tuple[Node, bool]]:
        """Yields the nodes along a text from the root, and whether the text holds all of their
        tokens.

        Only the last one may be held in part.
        """
        node = self._root
        yield node, True
        while node.end < len(tokens):
            child = node.children.get(tokens[node.end])
            if child is None:
                return
            whole = tokens[node.end : child.end] == child.tokens
            yield child, whole
            if not whole:
                return
            node = child

    def _node_at(self, tokens: Tokens) -> Node:
        """Returns the node at the end of a text, made if there is none."""
        *_, (node, whole) = self._walk(tokens)
        if not whole:
            node = self._split(node, _common(node.tokens, tokens[node.parent.end :]))
        if node.end == len(tokens):
            return node
        child = Node(tokens[node.end :], len(tokens), node)
        node.children[child.tokens[0]] = child
        return child

    def _split(self, node: Node, length: int) -> Node:
        """Returns a node of the first tokens of another one, which goes on from it."""
        parent = node.parent
        above = Node(node.tokens[:length], parent.end + length, parent)
        parent.children[above.tokens[0]] = above
        node.tokens, node.parent = node.tokens[length:], above
        above.children[node.tokens[0]] = node
        return above

    def _gone(self, kept: KeptState) -> None:
        """Forgets a state that is kept no more; its place is remembered for a while."""
        node = self._nodes.pop(kept)
        node.kept = None
        self.stats.evicted += 1
        self._without_state[node] = None
        while len(self._without_state) > _MOST_GONE:
            self._prune(self._without_state.popitem(last=False)[0])

    def _prune(self, node: Node) -> None:
        """Removes a place at which nothing is kept, and those above that are left with nothing."""
        while node.parent is not None and node.kept is None and not node.children:
            above = node.parent
            if above.children.get(node.tokens[0]) is node:
                del above.children[node.tokens[0]]
            node = above


def _folder(folder, folder_bytes):
    if (folder is None) != (not folder_bytes):
        raise ValueError(f"folder and folder_bytes go together, got {folder!r} and {folder_bytes}")
    return None if folder is None else Folder(folder)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Returns how many tokens two sequences begin with alike."""
    shorter = min(len(one), len(other))
    low, high = 0, shorter
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
