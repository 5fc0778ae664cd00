"""The tree of what texts have in common, over random texts of few tokens."""

import numpy as np
import pytest

from griffin_jax.inference import prefix_tree


def all_nodes(roots):
    stack, found = list(roots), []
    while stack:
        found.append(stack.pop())
        stack += found[-1].children
    return found


def path_of(node):
    tokens = ()
    while node is not None:
        tokens = (*node.tokens, *tokens)
        node = node.parent
    return tokens


def random_texts(seed, count=60):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 2, rng.integers(1, 12)).tolist() for _ in range(count)]


@pytest.mark.parametrize("min_saved", [None, 0, 5, 20, 10**6])
@pytest.mark.parametrize("seed", range(5))
def test_every_text_ends_in_one_node_whose_path_begins_with_it(seed, min_saved):
    texts = random_texts(seed)
    nodes = all_nodes(prefix_tree.build(texts, min_saved))
    assert sorted(i for node in nodes for i in node.texts) == list(range(len(texts)))
    for node in nodes:
        assert node.tokens
        assert node.begin == (node.parent.end if node.parent else 0)
        assert all(child.parent is node for child in node.children)
        assert len(node.children) != 1
        for i in node.texts:
            assert path_of(node)[: len(texts[i])] == tuple(texts[i])
            assert node.begin < len(texts[i]) <= node.end
        if not node.children:  # what is read is there for a text that reads all of it
            assert any(len(texts[i]) == node.end for i in node.texts)


@pytest.mark.parametrize("seed", range(5))
def test_with_every_fork_each_distinct_beginning_is_read_once(seed):
    texts = random_texts(seed)
    nodes = all_nodes(prefix_tree.build(texts, 1))
    beginnings = {tuple(text[:n]) for text in texts for n in range(1, len(text) + 1)}
    assert sum(len(node.tokens) for node in nodes) == len(beginnings)


def test_texts_part_where_that_saves_enough():
    texts = [[1] * 10 + [i] for i in range(2, 6)]
    (root,) = prefix_tree.build(texts, 30)  # three of four times ten tokens
    assert (len(root.tokens), len(root.children)) == (10, 4)
    leaves = prefix_tree.build(texts, 31)
    assert [len(leaf.tokens) for leaf in leaves] == [11] * 4


def test_the_tree_does_not_depend_on_the_order_of_the_texts():
    texts = random_texts(0)
    order = np.random.default_rng(1).permutation(len(texts))

    def shape(roots):
        return [(tuple(node.tokens), shape(node.children)) for node in roots]

    shuffled = prefix_tree.build([texts[i] for i in order], 4)
    assert shape(shuffled) == shape(prefix_tree.build(texts, 4))


def test_a_chain_of_texts_that_each_begin_the_next_is_one_node():
    texts = [list(range(n)) for n in range(1, 3000)]
    (root,) = prefix_tree.build(texts, 1)
    assert list(root.tokens) == texts[-1]
    assert sorted(root.texts) == list(range(len(texts)))


def test_batches_are_of_like_length_longest_first():
    lengths = [5, 100, 40, 33, 300, 299, 150, 149, 7, 1]
    groups = prefix_tree.group_by_length(lengths, lengths, 3)
    assert groups == [[300, 299], [150, 149, 100], [40, 33, 7], [5, 1]]
