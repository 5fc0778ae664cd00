"""Lines of JSON answered from chunks: what is read, chosen, scored and kept."""

import dataclasses
import json

import numpy as np
import pytest

import griffin_jax
from griffin_jax.inference import Sample
from griffin_jax.studies import LongAnswersStudy, long_answers, long_answers_report
from griffin_jax.studies.answer_scores import exact_match, f1
from griffin_jax.text_files import TextFileError

TEMPLATE = "Text: {context}\nQuestion: {input}\nAnswer:"
STUDY = LongAnswersStudy(
    title="t", lines="some.jsonl", template=TEMPLATE, chunks=(3, 100), max_new_tokens=3, slots=2
)
GIVEN = {"context": "One two three four five six seven eight.", "input": "What?", "answers": ["a"]}


def _claim(*quantity):
    return {"says": "More.", "if": ((quantity, ">", 1, ("f1", "one pass")),)}


@pytest.fixture(scope="module")
def lm():
    return griffin_jax.load("griffin-tiny", dtype="float32")


@pytest.fixture
def lines(tmp_path):
    def give(*lines):
        path = tmp_path / "some.jsonl"
        texts = (x if isinstance(x, str) else json.dumps(x) for x in lines)
        path.write_text("".join(f"{x}\n" for x in texts), encoding="utf-8")
        return str(path)

    return give


def test_lines_are_as_longbench_has_them(lines):
    also = {"length": 8, "all_classes": None, "dataset": "qasper", "language": "en", "_id": "x"}
    path = lines(GIVEN | also, "", GIVEN | {"answers": ["b", "c"], "input": ""})
    one, other = long_answers.read_lines(path)
    assert (one.number, one.context, one.input) == (1, GIVEN["context"], "What?")
    assert (other.number, other.input, other.answers) == (3, "", ["b", "c"])
    assert long_answers.read_lines(path, limit=1) == [one]


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: not a JSON object"),
        ({"input": "", "answers": ["a"]}, 'line 2: no "context" string'),
        (GIVEN | {"context": " "}, 'line 2: its "context" has no text'),
        ({"context": "x", "answers": ["a"]}, 'line 2: no "input" string'),
        (GIVEN | {"answers": []}, 'line 2: no "answers" list of strings'),
        (GIVEN | {"answers": "a"}, 'line 2: no "answers" list of strings'),
        (GIVEN | {"answers": [1]}, 'line 2: no "answers" list of strings'),
        (GIVEN | {"input": "\ud800"}, "line 2: .* half a character"),
    ],
)
def test_a_line_that_is_none_is_named(lines, line, message):
    with pytest.raises(TextFileError, match=f"some.jsonl, {message}") as caught:
        long_answers.read_lines(lines(GIVEN, line))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none_is_named(lines, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.jsonl: there is no such file"):
        long_answers.read_lines(str(tmp_path / "none.jsonl"))
    with pytest.raises(TextFileError, match=r"some.jsonl: it has no line"):
        long_answers.read_lines(lines())


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"chunks": (0,)}, r"chunks\[0\] must be"),
        ({"chunks": (5, 5)}, "must differ"),
        ({"template": "{input} {context}"}, "template must have {context} once and {input} once"),
        ({"template": "{context}"}, "template must have"),
        ({"certainty": "luck"}, "certainty must be"),
        (
            {"claims": (_claim("f1", "chunks read", 4),)},
            r"claims\[0\]: the quantity .* chunks \(3, 100\)",
        ),
        ({"claims": (_claim("f1", "two passes"),)}, r"claims\[0\]: the quantity"),
        ({"claims": (_claim("f2", "one pass"),)}, r"claims\[0\]: the quantity"),
    ],
)
def test_settings_that_cannot_be_are_one_line(fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        dataclasses.replace(STUDY, **fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "answer, accepted, exact, overlap",
    [
        ("The Cat!", ["a cat"], 1.0, 1.0),
        ("black cat", ["dog", "cat"], 0.0, 2 / 3),
        ("cat cat sat", ["cat cat cat"], 0.0, 2 / 3),
        ("dog", ["cat"], 0.0, 0.0),
        ("", ["the"], 1.0, 1.0),
    ],
)
def test_scores_are_those_of_squad(answer, accepted, exact, overlap):
    assert exact_match(answer, accepted) == exact
    assert f1(answer, accepted) == pytest.approx(overlap)


def test_the_most_certain_answer_is_chosen_that_is_one():
    texts, entropies, probabilities = ("No answer.", "b", "", "d"), (0, 3, 1, 2), (0, -1, None, -2)
    found = [
        {"text": text, "entropy": entropy, "probability": probability}
        for text, entropy, probability in zip(texts, entropies, probabilities, strict=True)
    ]
    assert long_answers.choose(found, "entropy") == 0
    assert long_answers.choose(found, "entropy", ("no answer",)) == 3
    assert long_answers.choose(found, "probability", ("no answer",)) == 1
    assert long_answers.choose([found[2], found[0]], "probability", ("no answer",)) == 1


def test_an_answer_is_the_first_line_with_text(lm):
    tokens = lm.tokenizer.encode("\n\nTwo words.\nMore", bos=False)
    sample = Sample(lm.tokenizer.decode(tokens), tokens, [-1.0 * x for x in range(len(tokens))], "")
    text, logprobs = long_answers.first_line(lm.tokenizer, sample)
    assert text == "Two words." and len(logprobs) < len(tokens)
    assert lm.tokenizer.decode(tokens[: len(logprobs)]).endswith(".\n")


@pytest.mark.slow
def test_chunks_are_answered_as_their_prompts_alone(lm, lines, tmp_path):
    (line,) = long_answers.read_lines(lines(GIVEN))
    (row,) = long_answers.measure(STUDY, lm, [line], tmp_path / "run")
    tokens = lm.tokenizer.encode(line.context, bos=False)
    assert row["tokens"] == len(tokens)
    small, whole = row["sizes"]
    assert (small["size"], small["chunks"]) == (3, -(-len(tokens) // 3)) and small["chunks"] > 2
    assert (whole["chunks"], whole["chosen"]) == (1, 0)
    assert whole["chunks read"] == whole["best chunk"] == row["one pass"]
    before, after = lm.tokenizer.encode("Text: ", bos=True), "\nQuestion: What?\nAnswer:"
    parts = [tokens[small["chosen"] * 3 :][:3], tokens]
    for part, found in zip(parts, (small["chunks read"], row["one pass"]), strict=True):
        prompt = [*before, *part, *lm.tokenizer.encode(after, bos=False)]
        (sample,) = lm.sample([prompt], 3)
        text, logprobs = long_answers.first_line(lm.tokenizer, sample)
        assert found["text"] == text
        np.testing.assert_allclose(found["probability"], np.mean(logprobs), rtol=1e-4)
        logits = np.asarray(lm.apply([prompt])[0][0, -1], np.float64)
        likely = np.exp(logits - logits.max())
        likely /= likely.sum()
        np.testing.assert_allclose(found["entropy"], -(likely * np.log(likely)).sum(), rtol=1e-4)

    # What is done is kept: nothing is asked again, and other settings are refused.
    again = long_answers.measure(STUDY, lm, [line, line], tmp_path / "run", over=lambda: True)
    assert list(again) == [row, row]
    other = dataclasses.replace(STUDY, max_new_tokens=4)
    with pytest.raises(ValueError, match=r"line1.json is of other settings"):
        next(long_answers.measure(other, lm, [line], tmp_path / "run"))
    assert not list(long_answers.measure(STUDY, lm, [line], tmp_path / "new", over=lambda: True))


def test_the_page_has_every_size_and_the_verdict(tmp_path):
    pytest.importorskip("matplotlib")
    answers = [{"f1": x, "exact match": 0.0} for x in (0.25, 0.5, 0.75)]
    one, read, best = answers
    sizes = [
        {"size": x, "chunks": 2, "skipped": 1, "chunks read": read, "best chunk": best}
        for x in STUDY.chunks
    ]
    claims = _claim("f1", "chunks read", 100), _claim("f1", "chunks read")
    study = dataclasses.replace(STUDY, claims=claims)
    found = {"rows": [{"tokens": 10, "one pass": one, "sizes": sizes}], "total": 1}
    verdicts = long_answers_report.verdicts(study, found)
    assert [x["verdict"] for x in verdicts] == ["holds", "holds"]
    verdicts = long_answers_report.verdicts(study, found | {"total": 2})
    assert [x["verdict"] for x in verdicts] == ["not finished", "not finished"]
    found |= dataclasses.asdict(study) | {"device": "a CPU", "command": "x", "verdicts": verdicts}
    png, page = long_answers_report.write("some", found, tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    text = page.read_text(encoding="utf-8")
    assert "| 3 | 2.0 | 1 | 25.0% | 50.0% | 75.0% |" in text and "Means of 1 of 1 lines" in text
