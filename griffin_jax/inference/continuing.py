"""Continuing many texts, of which what they have in common is read once."""

import contextlib
from collections.abc import Callable, Sequence

import numpy as np

from griffin_jax.inference import forking, prefill, prefix_tree
from griffin_jax.inference.forking import Fork, Work
from griffin_jax.inference.prefix_tree import Node
from griffin_jax.inference.sampler import Context, Sample, Sampler
from griffin_jax.inference.sampling import SamplingConfig

# A batch goes on as a smaller one where that is but one such part of it.
_FEW = 4


def continue_texts(
    sampler: Sampler,
    prompts: Sequence[Sequence[int]],
    batch_size: int = 16,
    *,
    sampling: SamplingConfig | None = None,
    max_new_tokens: int = 64,
    seeds: Sequence[int] | None = None,
    stop: Sequence[str] = (),
    fork: bool = True,
    on_sample: Callable[[int, Sample], None] | None = None,
    work: Work | None = None,
) -> list[Sample]:
    """What the model writes after each prompt; as one `Sampler.generate` of each alone.

    Args:
      sampler: The model.
      prompts: Token ids, none empty.
      batch_size: Texts that run together. Prompts of like length share a batch.
      sampling: How tokens are drawn; greedily by default.
      max_new_tokens: At most this many for each.
      seeds: One for each prompt; 0 by default.
      stop: Strings that end a text.
      fork: Read once what prompts have in common. Without it each is read by itself.
      on_sample: Called with the number of a prompt and what was written after it, once that is
        known.
      work: Where to count what reading the prompts took.

    Raises:
      ValueError: a prompt is empty or holds an id outside the vocabulary, or another value is out
        of its range.
    """
    for i, prompt in enumerate(prompts):
        prefill.check_tokens(prompt, sampler.model.config.vocab_size, f"prompt {i}")
    work = Work() if work is None else work
    work.alone += sum(map(len, prompts))
    seeds = [0] * len(prompts) if seeds is None else seeds
    samples: list = [None] * len(prompts)
    model, params = sampler.model, sampler.params

    def visit(nodes: Sequence[Node], fork: Fork | None) -> None:
        """Writes what comes after texts that end in `nodes`, then reads on where texts part."""
        # A text goes on from where its last node begins, not from within the node.
        ends = [(i, node) for node in nodes for i in node.texts]
        lengths = [len(prompts[i]) - node.begin for i, node in ends]
        for batch in prefix_tree.group_by_length(ends, lengths, batch_size):
            write(batch, fork)
        parting = [node for node in nodes if node.children]
        for batch in prefix_tree.batches(parting, batch_size):
            rows = [node.tokens for node in batch]
            room = max(node.end for node in batch)
            state = forking.enter(model, params, batch, fork, room)
            count(rows)
            state = prefill.read(model, params, state, rows)
            after = Fork({node: row for row, node in enumerate(batch)}, state)
            visit([child for node in batch for child in node.children], after)

    def write(batch, fork):
        context = None
        if fork is not None:
            context = Context(
                state=prefill.take_rows(
                    fork.state, np.array([fork.rows[node.parent] for _, node in batch], np.int32)
                ),
                tokens=tuple(tuple(prompts[i][: node.begin]) for i, node in batch),
                read=tuple(node.begin for _, node in batch),
            )
        rows = [prompts[i][node.begin :] for i, node in batch]
        count(rows)
        generation = sampler.start(
            rows,
            context=context,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            seed=[seeds[i] for i, _ in batch],
            stop=stop,
        )
        numbers = [i for i, _ in batch]
        while numbers:
            going = _rows_left_when_few(generation, len(numbers), params)
            for row, (i, sample) in enumerate(zip(numbers, generation.samples(), strict=True)):
                if row not in going:
                    samples[i] = sample
                    if on_sample is not None:
                        on_sample(i, sample)
            numbers = [numbers[row] for row in going]
            if going:
                generation = generation.take(going)

    def count(rows):
        size = prefill.batch_size_for(len(rows), sampler.params)
        begin = 0
        for length in prefill.chunk_lengths(max(map(len, rows)), size):
            work.count(*prefill.pad(rows, size, begin, length))
            begin += length

    # The last token of a prompt is the one that the first new token is drawn after: it is read with
    # the new ones, so that no text may end before it where others go on.
    unforked = [Node(prompt, 0, None, texts=[i]) for i, prompt in enumerate(prompts)]
    visit(_tree(prompts) if fork else unforked, None)
    return samples


def _rows_left_when_few(generation, rows, params):
    """Runs a batch of so many rows until few of them are left; returns which."""
    size = prefill.batch_size_for(rows, params)
    # Closed here, so that what the burst under way raises is raised here, too.
    with contextlib.closing(generation.bursts()) as bursts:
        for _ in bursts:
            if _FEW * prefill.batch_size_for(len(generation.unfinished), params) <= size:
                break
    return generation.unfinished


def _tree(prompts):
    """The tree of all but the last tokens; prompts of one token have no part in it."""
    longer = [i for i, prompt in enumerate(prompts) if len(prompt) > 1]
    roots = prefix_tree.build([prompts[i][:-1] for i in longer])
    stack = list(roots)
    while stack:
        node = stack.pop()
        stack += node.children
        node.texts = [longer[i] for i in node.texts]
    return roots + [Node(p, 0, None, texts=[i]) for i, p in enumerate(prompts) if len(p) == 1]
