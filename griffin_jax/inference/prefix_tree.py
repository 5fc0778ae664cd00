"""What many texts have in common, so that a model reads it once."""

import dataclasses
import itertools
from collections.abc import Sequence

# A fork costs a call of its own. It has to save at least so many tokens.
MIN_SAVED = 64

Tokens = Sequence[int]


@dataclasses.dataclass(eq=False)
class Node:
    """Tokens that all texts below have in common.

    Attributes:
      tokens: The tokens at begin ... end of each of these texts.
      begin: How many tokens come before: where the parent ends, or 0.
      parent: What comes before; None at the beginning of the texts.
      children: How texts go on after the last of `tokens`.
      texts: Numbers of the texts whose last token is one of `tokens`.
    """

    tokens: Tokens
    begin: int
    parent: "Node | None"
    children: list["Node"] = dataclasses.field(default_factory=list)
    texts: list[int] = dataclasses.field(default_factory=list)

    @property
    def end(self) -> int:
        return self.begin + len(self.tokens)


def build(texts: Sequence[Tokens], min_saved: int | None = MIN_SAVED) -> list[Node]:
    """Returns a tree over texts whose every path from a root to a leaf is a text.

    A text that another one begins with has no leaf of its own: it ends within the other's path.
    The tree does not depend on the order of the texts.

    Args:
      texts: Token ids, none empty.
      min_saved: Texts part at an inner node where that spares the model at least so many tokens.
        Other common beginnings are repeated in every child. None: every text has a path to itself.

    Returns:
      The roots: nodes that begin at token 0.
    """
    if min_saved is None:
        return [Node(text, 0, None, texts=[i]) for i, text in enumerate(texts)]
    keys = [tuple(text) for text in texts]
    order = sorted(range(len(texts)), key=keys.__getitem__)
    roots = []
    # Each entry: texts lo:hi of the order agree on their first `common` tokens, the nodes to make
    # of them are children of `parent`, and texts `ended` end on the way there.
    stack = [(0, len(order), 0, None, [])] if order else []
    while stack:
        lo, hi, common, parent, ended = stack.pop()
        first, last = keys[order[lo]], keys[order[hi - 1]]
        begin = parent.end if parent else 0
        while common < len(first) and common < len(last) and first[common] == last[common]:
            common += 1
        here = lo
        while here < hi and len(keys[order[here]]) == common:
            here += 1
        ended = ended + order[lo:here]
        branches = _branches([keys[i] for i in order[here:hi]], common)
        siblings = parent.children if parent else roots
        if not branches:
            siblings.append(Node(first[begin:common], begin, parent, texts=ended))
            continue
        saved = (len(branches) - 1) * (common - begin)
        if saved >= max(min_saved, 1):
            parent = Node(first[begin:common], begin, parent, texts=ended)
            siblings.append(parent)
            ended = []
        for number, (a, b) in reversed(list(enumerate(branches))):
            stack.append((here + a, here + b, common, parent, [] if number else ended))
    return roots


def _branches(keys, place):
    """Ranges of sorted keys that have the same token at `place`."""
    bounds = [i for i, key in enumerate(keys) if i == 0 or key[place] != keys[i - 1][place]]
    return list(itertools.pairwise([*bounds, len(keys)]))


def batches(nodes: Sequence[Node], batch_size: int) -> list[list[Node]]:
    """Returns nodes in batches of like length, longest first; all but short ones are over half as long."""
    return group_by_length(nodes, [len(node.tokens) for node in nodes], batch_size)


def group_by_length(items: Sequence, lengths: Sequence[int], batch_size: int) -> list[list]:
    """Returns items in batches, longest first, each more than half as long as the longest beside it.

    Items of up to 32 count as equally long.
    """
    order = sorted(range(len(items)), key=lambda i: -lengths[i])
    groups, longest = [], 0
    for i in order:
        length = max(lengths[i], 32)
        if not groups or len(groups[-1]) == batch_size or 2 * length <= longest:
            groups.append([])
            longest = length
        groups[-1].append(items[i])
    return groups
