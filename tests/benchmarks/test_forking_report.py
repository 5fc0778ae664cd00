"""The page about forked states."""

import pytest

from griffin_jax.benchmarks import forking_report


def content(**changes):
    row = {
        "name": "forked",
        "seconds": 2.0,
        "first_seconds": 9.0,
        "questions_per_second": 5.0,
        "tokens": 1_500,
        "tokens_padded": 2_000,
        "calls": 3,
    }
    return {
        "setting": "10 questions",
        "subjects": 2,
        "questions": 10,
        "examples_tokens": 1_000,
        "questions_tokens": 500,
        "rows": [row, row | {"name": "transformers", "tokens": None, "tokens_padded": None}],
        "differences": {"transformers": 2e-6},
    } | changes


def test_examples_are_read_once_for_each_of_57_subjects():
    tokens = 500 * 57 + 50 * 14_042
    assert forking_report.whole_seconds(content()) == pytest.approx(tokens / (1_500 / 2))


def test_a_page_has_a_section_for_each_file(tmp_path):
    documents = [("a.json", content()), ("b.json", content(setting="another model"))]
    (page,) = forking_report.write(documents, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "| forked | 1,500 | 2,000 | 2.0 | 9.0 | 5.00 |" in text
    assert "| transformers |  |  | 2.0 |" in text
    assert "another model" in text
    assert "all 14,042 questions take 16.2 minutes" in text


def test_a_missing_field_is_named(tmp_path):
    broken = content()
    del broken["subjects"]
    with pytest.raises(ValueError, match=r"a\.json has no field 'subjects'"):
        forking_report.write([("a.json", broken)], tmp_path)
