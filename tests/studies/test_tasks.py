"""Tasks: examples have one right answer each, of any length, and depend on a seed alone."""

import dataclasses

import jax
import numpy as np
import pytest

from griffin_jax.studies import TASKS, Task
from griffin_jax.studies.task import distinct, draw_batch

SMALL = {
    "selective_copying": {"vocab_size": 8, "length": 24, "data_tokens": 5},
    "induction_heads": {"vocab_size": 8, "length": 12},
    "associative_recall": {"vocab_size": 33, "length": 24, "pairs": 6},
    "phonebook": {"length": 100, "letters": 5, "name": 3, "number": 4},
    "needle": {"length": 30, "fillers": 4, "keys": 6, "values": 5, "number": 3, "others": 4},
}


def solve_selective_copying(inputs):
    return inputs[inputs > 1]


def solve_induction_heads(inputs):
    return inputs[1 + np.flatnonzero(inputs == 0)[:1]]


def solve_associative_recall(inputs):
    known, found = {}, []
    for key, value in inputs[:12].reshape(6, 2):
        known[key] = value
    for token in inputs[12:]:
        if token:
            found.append(known[token])
    return np.array(found)


def solve_phonebook(inputs):
    """Looks up the name behind the last separator, as `inputs` ends with its number but for a digit."""
    begin = np.flatnonzero(inputs == 2)[0]
    book = [entry for entry in "".join(map(chr, inputs[:begin])).split(chr(0)) if entry]
    numbers = dict(entry.split(chr(1)) for entry in book)
    name = "".join(map(chr, inputs[-8:-5]))
    return np.array([ord(digit) for digit in numbers[name]])


def solve_needle(inputs):
    """Looks up the key behind the mark, which stands in the text once, before a whole value."""
    begin = np.flatnonzero(inputs == 0)[0]
    (place,) = np.flatnonzero(inputs[:begin] == inputs[begin + 1])
    assert ((inputs[:begin] > 0) & (inputs[:begin] <= 6)).sum() == 5  # keys
    assert ((inputs[:begin] > 6) & (inputs[:begin] <= 11)).sum() == 15  # tokens of their values
    return inputs[place + 1 : place + 4]


SOLVERS = {
    "selective_copying": solve_selective_copying,
    "induction_heads": solve_induction_heads,
    "associative_recall": solve_associative_recall,
    "phonebook": solve_phonebook,
    "needle": solve_needle,
}


def drawn(task, count, seed=0):
    return {x: np.asarray(y) for x, y in _drawn(task, jax.random.key(seed), count).items()}


_drawn = jax.jit(draw_batch, static_argnums=(0, 2))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("longer", [1, 3])
def test_every_example_has_the_answer_that_its_inputs_tell(name, longer):
    task = TASKS[name](**SMALL[name])
    task = dataclasses.replace(task, length=longer * task.length)
    assert isinstance(task, Task)
    batch, answers = drawn(task, 20), set()
    parts = (batch[x] for x in ("inputs", "targets", "mask", "positions"))
    for inputs, targets, mask, positions in zip(*parts, strict=True):
        assert inputs.shape == targets.shape == mask.shape == (task.length,)
        assert inputs.min() >= 0 and inputs.max() < task.vocab_size
        np.testing.assert_array_equal(positions, range(task.length))
        answer = targets[mask > 0]
        np.testing.assert_array_equal(answer, SOLVERS[name](inputs))
        answers.add(tuple(answer))
    assert len(answers) > 3


@pytest.mark.parametrize(
    "name, fewest, counts", [("associative_recall", 1, 6), ("phonebook", 3, 6)]
)
def test_rows_of_any_number_are_answered_by_what_is_in_them(name, fewest, counts):
    task = TASKS[name](**SMALL[name] | {"fewest": fewest})
    batch, sizes = drawn(task, 60), set()
    for inputs, targets, mask in zip(batch["inputs"], batch["targets"], batch["mask"], strict=True):
        np.testing.assert_array_equal(targets[mask > 0], SOLVERS[name](inputs))
        sizes.add(int((inputs == 1).sum() if name == "phonebook" else mask.sum()))
    assert len(sizes) == counts  # all that there may be


def test_examples_depend_on_their_key_alone():
    task = TASKS["induction_heads"](**SMALL["induction_heads"])
    first, again, other = (drawn(task, 20, seed)["inputs"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len({tuple(row) for row in [*first, *other]}) == 40


@pytest.mark.parametrize("size, count", [(9, 9), (9, 4), (2, 1)])
def test_distinct_numbers_are_different_and_all_come(size, count):
    keys = jax.random.split(jax.random.key(0), 200)
    found = np.asarray(jax.vmap(lambda key: distinct(key, size, count))(keys))
    assert all(len(set(row)) == count for row in found)
    assert set(found.ravel()) == set(range(size))
    assert set(found[:, 0]) == set(range(size))  # in any order


@pytest.mark.parametrize("place, begin", [(0.0, 0), (1.0, 22), (0.5, 11)])
def test_a_needle_stands_where_it_is_put(place, begin):
    task = TASKS["needle"](**SMALL["needle"] | {"place": place, "others": 0})
    for inputs in drawn(task, 5)["inputs"]:
        np.testing.assert_array_equal(np.flatnonzero(inputs[:26] == inputs[27]), [begin])
    # A needle of another key that stands there is not cut: this one comes behind it.
    batch = drawn(dataclasses.replace(task, others=4), 20)
    for inputs, targets, mask in zip(batch["inputs"], batch["targets"], batch["mask"], strict=True):
        np.testing.assert_array_equal(targets[mask > 0], solve_needle(inputs))
        at = np.flatnonzero(inputs[:26] == inputs[27])[0]
        assert 0 <= at - round(place * 22) <= 3


def test_needles_are_anywhere():
    task = TASKS["needle"](**SMALL["needle"] | {"others": 0})
    places = {int(np.argmax(x[:26] == x[27])) for x in drawn(task, 300)["inputs"]}
    assert places == set(range(23))


def test_the_examples_of_a_phonebook_count_where_they_are_to():
    task = TASKS["phonebook"](**SMALL["phonebook"], train_examples=True)
    mask = drawn(task, 1)["mask"][0]
    assert mask.sum() == 3 * task.number
    alone = drawn(dataclasses.replace(task, train_examples=False), 1)
    np.testing.assert_array_equal(alone["inputs"], drawn(task, 1)["inputs"])
    alone = alone["mask"][0]
    assert alone.sum() == task.number and alone[-4:].sum() == 3


@pytest.mark.parametrize(
    "name, knobs, message",
    [
        ("selective_copying", {"length": 9, "data_tokens": 5}, "length 9 is shorter than 5 data"),
        ("associative_recall", {"length": 17, "pairs": 6}, "length 17 is shorter than 6 pairs"),
        (
            "associative_recall",
            {"vocab_size": 9, "pairs": 6},
            "vocab_size 9 has 4 keys for 6 pairs",
        ),
        ("associative_recall", {"pairs": 6, "fewest": 7}, "fewest 7 is more than pairs 6"),
        ("phonebook", {"length": 100, "fewest": 9}, "fewest 9 must be from 3 to the 8 entries"),
        ("phonebook", {"length": 30}, "length 30 is shorter than 3 entries"),
        ("phonebook", {"letters": 2, "name": 1}, "2 letters make 2 names of 1, for 70 entries"),
        ("needle", {"length": 23, "others": 4, "number": 3}, "length 23 is .* give at least 24"),
        ("needle", {"keys": 3, "others": 3}, "keys 3 are too few for a needle and 3 others"),
        ("needle", {"place": 1.5}, "place must be"),
        ("induction_heads", {"length": 2}, "length must be"),
    ],
)
def test_a_task_that_cannot_be_is_one_line(name, knobs, message):
    with pytest.raises(ValueError, match=message) as caught:
        TASKS[name](**knobs)
    assert "\n" not in str(caught.value)
