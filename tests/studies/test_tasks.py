"""Tasks: examples have one right answer each, of any length, and depend on a seed alone."""

import dataclasses

import numpy as np
import pytest

from griffin_jax.studies import TASKS, TaskRows

SMALL = {
    "selective_copying": {"vocab_size": 8, "length": 24, "data_tokens": 5},
    "induction_heads": {"vocab_size": 8, "length": 12},
    "associative_recall": {"vocab_size": 33, "length": 24, "pairs": 6},
    "phonebook": {"length": 100, "letters": 5, "name": 3, "number": 4},
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


SOLVERS = {
    "selective_copying": solve_selective_copying,
    "induction_heads": solve_induction_heads,
    "associative_recall": solve_associative_recall,
    "phonebook": solve_phonebook,
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("longer", [1, 3])
def test_every_example_has_the_answer_that_its_inputs_tell(name, longer):
    task = TASKS[name](**SMALL[name])
    task = dataclasses.replace(task, length=longer * task.length)
    rows, answers = TaskRows(task, seed=1, split="train"), set()
    for index in range(20):
        row = rows.row(0, index)
        assert row["inputs"].shape == row["targets"].shape == row["mask"].shape == (task.length,)
        assert row["inputs"].min() >= 0 and row["inputs"].max() < task.vocab_size
        answer = row["targets"][row["mask"] > 0]
        np.testing.assert_array_equal(answer, SOLVERS[name](row["inputs"]))
        answers.add(tuple(answer))
    assert len(answers) > 3


def test_rows_depend_on_seed_split_and_number_alone():
    task = TASKS["induction_heads"]()

    def inputs(seed, split, epoch, index):
        return TaskRows(task, seed, split).row(epoch, index)["inputs"].tolist()

    first = inputs(0, "train", 0, 7)
    assert inputs(0, "train", 0, 7) == first
    others = (1, "train", 0, 7), (0, "test", 0, 7), (0, "train", 1, 7), (0, "train", 0, 8)
    assert all(inputs(*other) != first for other in others)


def test_the_examples_of_a_phonebook_count_where_they_are_to():
    task = TASKS["phonebook"](**SMALL["phonebook"], train_examples=True)
    row = TaskRows(task, 0, "train").row(0, 0)
    assert row["mask"].sum() == 3 * task.number
    alone = TaskRows(dataclasses.replace(task, train_examples=False), 0, "train").row(0, 0)
    np.testing.assert_array_equal(alone["inputs"], row["inputs"])
    assert alone["mask"].sum() == task.number and alone["mask"][-4:].sum() == 3


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
        ("phonebook", {"length": 30}, "length 30 is shorter than 3 entries"),
        ("phonebook", {"letters": 2, "name": 1}, "2 letters make 2 names of 1, for 70 entries"),
        ("induction_heads", {"length": 2}, "length must be"),
    ],
)
def test_a_task_that_cannot_be_is_one_line(name, knobs, message):
    with pytest.raises(ValueError, match=message) as caught:
        TASKS[name](**knobs)
    assert "\n" not in str(caught.value)
