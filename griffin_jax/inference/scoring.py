"""Log-probabilities of given continuations.

What texts have in common is read once: the state after it has a fixed size, and every continuation
goes on from a copy of it (`forking`). Continuations of a single token need no call of their own.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.devices import replicate
from griffin_jax.inference import forking, prefill, prefix_tree
from griffin_jax.inference.forking import Work
from griffin_jax.inference.head_blocks import map_positions
from griffin_jax.inference.overflow import check_finite
from griffin_jax.inference.prefix_tree import Node
from griffin_jax.models import Griffin
from griffin_jax.sharding import jit_on_mesh

Score = tuple[float, bool]


def score(
    model: Griffin,
    params: dict,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    batch_size: int = 16,
    *,
    fork: bool = True,
    on_score: Callable[[int, Score], None] | None = None,
    work: Work | None = None,
) -> list[Score]:
    """Returns how likely each continuation is after its context.

    Neither the order of the pairs nor `batch_size` matters for the result, but for the rounding of
    matrix products of other sizes.

    Args:
      model: The model.
      params: Its parameters.
      pairs: (context, continuation), token ids, neither empty.
      batch_size: Texts that run together. Texts of like length share a batch.
      fork: Read once what texts have in common. Without it every pair is read by itself.
      on_score: Called with the number of a pair and its score as soon as that is known.
      work: Where to count what was done.

    Returns:
      For each pair the log-probability of the whole continuation, and whether every token of it is
      the model's most likely one.

    Raises:
      ValueError: a context or continuation is empty, or holds an id outside the vocabulary; or
        logits are NaN or infinite, see `check_finite`.
    """
    vocab_size = model.config.vocab_size
    for i, (context, continuation) in enumerate(pairs):
        for name, part in (("context", context), ("continuation", continuation)):
            prefill.check_tokens(part, vocab_size, f"{name} {i}")
    texts = [[*context, *continuation] for context, continuation in pairs]
    inputs = [text[:-1] for text in texts]
    work = Work() if work is None else work
    work.alone += sum(map(len, inputs))
    roots = prefix_tree.build(inputs, prefix_tree.MIN_SAVED if fork else None)
    wanted = _wanted(roots, texts, [len(context) for context, _ in pairs])
    totals, greedy = np.zeros(len(pairs)), np.ones(len(pairs), bool)
    scores: list = [None] * len(pairs)

    def read(nodes, state):
        batch = [wanted[node] for node in nodes]
        state, *found = _read(model, params, nodes, batch, state, work)
        for node, want, log_probability, most_likely in zip(nodes, batch, *found, strict=True):
            for span in want.spans:
                cells = want.cells(span)
                totals[span.text] += log_probability[cells].sum(dtype=np.float64)
                greedy[span.text] &= most_likely[cells].all()
            for i in node.texts:  # the nodes before have been read
                scores[i] = (float(totals[i]), bool(greedy[i]))
                if on_score is not None:
                    on_score(i, scores[i])
        return state

    forking.walk(model, params, roots, batch_size, read)
    return scores


@dataclasses.dataclass
class _Span:
    """What a text wants to know of a node: targets from place `first` on, each in a column."""

    text: int
    first: int
    columns: list[int]


class _Wanted:
    """What is wanted of a node: after the token at a place, how likely is a target?

    Attributes:
      targets: The distinct targets of each place, by its distance from the node's beginning.
      spans: Which of them belong to which text.
    """

    def __init__(self):
        self.targets: dict[int, list[int]] = {}
        self.spans: list[_Span] = []

    def add(self, text: int, first: int, targets: Sequence[int]) -> None:
        columns = []
        for place, target in enumerate(targets, first):
            row = self.targets.setdefault(place, [])
            if target not in row:
                row.append(target)
            columns.append(row.index(target))
        self.spans.append(_Span(text, first, columns))

    @functools.cached_property
    def places(self) -> np.ndarray:
        """int[P], ascending; complete only after the last `add`."""
        return np.array(sorted(self.targets), np.int64)

    def cells(self, span: _Span) -> tuple[np.ndarray, np.ndarray]:
        """Returns where the answers of a text stand in [P, C]."""
        row = np.searchsorted(self.places, span.first)
        return row + np.arange(len(span.columns)), np.array(span.columns)


def _wanted(
    roots: Sequence[Node], texts: Sequence[Sequence[int]], begins: Sequence[int]
) -> dict[Node, _Wanted]:
    """Returns what texts, of which those from `begins` on count, want of each node on their way."""
    wanted = {}
    stack = list(roots)
    while stack:
        node = stack.pop()
        stack += node.children
        wanted.setdefault(node, _Wanted())
        for i in node.texts:
            above = node
            while above is not None and begins[i] - 1 < above.end:
                # The token at place p of the text tells of the one at p + 1.
                first = max(above.begin, begins[i] - 1)
                targets = texts[i][first + 1 : above.end + 1]
                wanted.setdefault(above, _Wanted()).add(i, first - above.begin, targets)
                above = above.parent
    return wanted


def _read(model, params, nodes, batch, state, work):
    """Returns the state after nodes, and of each the log-probabilities and greediness of its
    targets.
    """
    size = len(state.position)
    columns = _columns(
        max((len(row) for want in batch for row in want.targets.values()), default=1)
    )
    answers = [
        (np.zeros((len(want.places), columns)), np.ones((len(want.places), columns), bool))
        for want in batch
    ]
    rows = [node.tokens for node in nodes]
    pending, begin = [], 0
    for length in prefill.chunk_lengths(max(map(len, rows)), size, _chunks()):
        tokens, lengths = prefill.pad(rows, size, begin, length)
        work.count(tokens, lengths)
        chunk = prefill.put_chunk(params, tokens, lengths)
        x, state = prefill.read_features(model, params, state, *chunk)
        bounds = [np.searchsorted(want.places, (begin, begin + length)) for want in batch]
        count = max(int(b - a) for a, b in bounds)
        if count:
            places = np.zeros((size, _positions(count)), np.int32)
            targets = np.zeros((*places.shape, columns), np.int32)
            for i, (want, (a, b)) in enumerate(zip(batch, bounds, strict=True)):
                places[i, : b - a] = want.places[a:b] - begin
                for j, place in enumerate(want.places[a:b]):
                    found = want.targets[place]
                    targets[i, j, : len(found)] = found
            places, targets = (prefill.put(params, array, "batch") for array in (places, targets))
            pending.append((bounds, _measure(model, params, x, places, targets)))
        begin += length
    for bounds, found in pending:
        log_probability, most_likely = jax.device_get(found)
        for i, (a, b) in enumerate(bounds):
            check_finite(log_probability[i, : b - a], model.dtype)
            answers[i][0][a:b] = log_probability[i, : b - a]
            answers[i][1][a:b] = most_likely[i, : b - a]
    return state, *zip(*answers, strict=True)


def _chunks():
    """Lengths of calls. A CPU's time follows the tokens; accelerators read 32 as fast as 8."""
    return sorted({8, *prefill.CHUNKS}) if jax.default_backend() == "cpu" else prefill.CHUNKS


def _positions(count):
    """Returns how many places of each row are measured: a few sizes, to compile few programs."""
    return 1 if count == 1 else max(8, prefill.batch_size_for(count))


def _columns(count):
    """Returns the same for targets of a place: the next power of four."""
    return 4 ** (((count - 1).bit_length() + 1) // 2)


@functools.partial(jit_on_mesh, static_argnames="model")
def _measure(model, params, x, places, targets):
    """Returns how likely targets int32[B, P, C] are after x [B, T, D] at places int32[B, P].

    Returns:
      Log-probabilities float32[B, P, C], and bool[B, P, C], whether that target is the most likely.
    """
    x = jnp.take_along_axis(x, places[..., None], axis=1)

    def score_targets(x, targets):
        logits = model.apply({"params": params}, x, method="logits")
        chosen = jnp.take_along_axis(logits, targets, axis=-1)
        normalizer = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        return chosen - normalizer, targets == jnp.argmax(logits, axis=-1, keepdims=True)

    return replicate(map_positions(score_targets, x, targets))
