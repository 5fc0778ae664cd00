"""What swapped states change: nothing where nothing is swapped, and what a patch by name changes."""

import numpy as np
import pytest

from griffin_jax.language_model import LanguageModel
from griffin_jax.studies import MemoryStudy, memory, memory_report
from tests.tiny import GRIFFIN, params_of, random_tokens

STUDY = MemoryStudy(before=6, after=9, rows=3, edges=(0, 4, 9), lengths=(0, 3))


@pytest.fixture(scope="module")
def found():
    lm = LanguageModel(GRIFFIN, params_of(GRIFFIN))
    told = []
    rows = random_tokens(GRIFFIN, (3, 16))
    return lm, rows, memory.measure(lm, rows, STUDY, told.append), told


@pytest.mark.slow
def test_a_swap_changes_what_a_patch_of_the_state_changes(found):
    lm, rows, result, told = found
    assert [x["group"] for x in result["effects"]][:3] == [
        "all",
        "0 to 3 tokens",
        "beyond 3 tokens",
    ]
    assert len(told) == len(result["effects"]) and result["effects"][0]["layers"] == (0, 2)

    def losses(patch):
        logits = np.asarray(lm.trace(rows[:, :-1], patch=patch).logits, np.float64)[:, 6:]
        total = np.log(np.exp(logits).sum(axis=-1))
        return total - np.take_along_axis(logits, rows[:, 7:, None], axis=-1)[..., 0]

    def roll(h):
        return h.at[:, 5].set(h[np.array([1, 2, 0]), 5])

    change = losses({"blocks.2.rg_lru.state": roll}) - losses({})
    expected = [change[:, :4].mean(), change[:, 4:].mean()]
    (effect,) = (x for x in result["effects"] if x["layers"] == (2,) and x["group"] == "all")
    np.testing.assert_allclose(effect["loss"], expected, atol=1e-5)
    assert effect["channels"] == GRIFFIN.recurrence_width and min(effect["divergence"]) > 0
    np.testing.assert_allclose(
        result["loss"], [losses({})[:, :4].mean(), losses({})[:, 4:].mean()], rtol=1e-5
    )


def test_channels_are_grouped_without_a_rest(found):
    *_, result, _ = found
    by_group = [x["channels"] for x in result["effects"] if len(x["layers"]) == 2]
    assert by_group[0] == sum(by_group[1:]) == 2 * GRIFFIN.recurrence_width


def test_the_page_has_every_effect(found, tmp_path):
    pytest.importorskip("matplotlib")
    result = found[2] | {"command": "python -m this", "device": "a CPU", "model": "m", "title": "t"}
    png, page = memory_report.write("some", result, tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert page.read_text(encoding="utf-8").count("±") == 2 * len(result["effects"])


def test_rows_come_from_one_text_after_another():
    class Words:
        def encode(self, text):
            return [int(word) for word in text.split()]

    study = MemoryStudy(before=1, after=2, rows=3, edges=(0, 2))
    rows = memory.rows_of(["1 2 3 4 5 6 7 8 9", "11 12 13 14"], Words(), study)
    np.testing.assert_array_equal(rows, [[1, 2, 3, 4], [11, 12, 13, 14], [5, 6, 7, 8]])
    with pytest.raises(ValueError, match="the texts hold 1 rows of 4 tokens, fewer than rows=3"):
        memory.rows_of(["1 2 3 4 5"], Words(), study)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"edges": (0, 5, 5)}, r"edges must rise from 0, got \[0, 5, 5\]"),
        ({"lengths": (1, 5)}, "lengths must rise from 0"),
        ({"after": 100, "edges": (0, 200)}, "edges end at 200, beyond the 100 tokens"),
        ({"rows": 1}, "rows must be"),
    ],
)
def test_a_memory_study_that_cannot_be_is_one_line(fields, message):
    with pytest.raises(ValueError, match=message):
        MemoryStudy(**fields)
