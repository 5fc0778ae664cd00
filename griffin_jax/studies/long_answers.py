"""Questions about long texts, as lines of JSON, answered in one pass and from chunks.

The lines are LongBench's (arXiv:2308.14508). As in OPRM (arXiv:2505.07793), each chunk of a context is
read by itself, the question follows its state, and the answer is that of the chunk of which the model
is most certain, among those that do not say that the chunk has none.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.evaluation.tasks.short_answers import normalized
from griffin_jax.fields import check_fields, check_value, field
from griffin_jax.files import write_json
from griffin_jax.inference import Sample
from griffin_jax.language_model import LanguageModel
from griffin_jax.studies.answer_scores import exact_match, f1
from griffin_jax.studies.claims import check_claims, quantities_of
from griffin_jax.text_files import TextFile, read_json
from griffin_jax.tokenizer import Tokenizer

# How a context is read, and what says how right an answer is.
WAYS = ("one pass", "chunks read", "best chunk")
SCORES = ("f1", "exact match")
_CONTEXT, _INPUT = "{context}", "{input}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongAnswersStudy:
    """Settings.

    Attributes:
      title: What it is about.
      paper: What the paper did and says.
      shorter: What is run otherwise than in the paper, for captions.
      model: "griffin-tiny", a folder of a model, or a name on the Hub.
      lines: A file of JSON lines, packed or not; see `read_lines`.
      template: The prompt, with {context} and, behind it, {input}.
      limit: Lines that are answered; None for all.
      chunks: Tokens of a chunk, one size or more.
      certainty: What chooses a chunk: "entropy", the lowest one of the answer's first token, or
        "probability", the highest mean log-probability of the answer's tokens.
      unanswerable: Answers that say that a chunk has none, such as "unanswerable"; they are chosen only
        where all chunks say so.
      max_new_tokens: Tokens that are written at most; the answer is the first line with text.
      slots: Chunks that are read at once.
      claims: Statements to test; see `claims.check_claims`.
    """

    title: str = field(filled=True)
    paper: str = ""
    shorter: str = ""
    model: str = field("griffin-tiny", filled=True)
    lines: str = field(filled=True)
    template: str = field(filled=True)
    limit: int | None = field(None, at_least=1)
    chunks: tuple[int, ...] = field((1024,), filled=True)
    certainty: str = field("entropy", one_of=("entropy", "probability"))
    unanswerable: tuple[str, ...] = ()
    max_new_tokens: int = field(32, at_least=1)
    slots: int = field(16, at_least=1)
    claims: tuple[Any, ...] = ()

    def __post_init__(self):
        check_fields(self)
        for i, number in enumerate(self.chunks):
            check_value(f"chunks[{i}]", number, int, at_least=1)
        if len(set(self.chunks)) < len(self.chunks):
            raise ValueError(f"chunks {self.chunks} must differ")
        places = [self.template.find(x) for x in (_CONTEXT, _INPUT)]
        counts = [self.template.count(x) for x in (_CONTEXT, _INPUT)]
        if counts != [1, 1] or places[0] > places[1]:
            raise ValueError(
                f"template must have {_CONTEXT} once and {_INPUT} once behind it, got "
                f"{self.template!r}"
            )
        check_claims(self.claims)
        for i, claim in enumerate(self.claims):
            for score, *of in quantities_of(claim):
                way, *size = of or [""]
                known = score in SCORES and way in WAYS
                if not known or len(size) > 1 or not set(size) <= set(self.chunks):
                    raise ValueError(
                        f"claims[{i}]: the quantity {(score, *of)} must be one of {', '.join(SCORES)}, "
                        f"one of {', '.join(WAYS)}, and maybe one of chunks {self.chunks}"
                    )


@dataclasses.dataclass(frozen=True)
class Line:
    """A question.

    Attributes:
      number: The line's, from 1.
      context: The long text.
      input: The question.
      answers: All answers that are right.
    """

    number: int
    context: str
    input: str
    answers: list[str]


def read_lines(path: str, limit: int | None = None) -> list[Line]:
    """Reads lines as LongBench has them.

    Each is an object of `context` and `input`, texts, and `answers`, a list of one text or more; what
    else there is, such as `length` and `all_classes`, is not used.

    Args:
      path: The file.
      limit: So many lines at most; None for all.

    Raises:
      FileNotFoundError: there is no such file.
      TextFileError: it has no line, or one that is not such an object; the line is named.
    """
    file, lines = TextFile(path, "lines"), []
    for number, value in file.records():
        if not isinstance(value, dict):
            raise file.fault("not a JSON object", number)
        for name in ("context", "input"):
            if not isinstance(value.get(name), str):
                raise file.fault(f'no "{name}" string in it', number)
        if not value["context"].strip():
            raise file.fault('its "context" has no text', number)
        answers = value.get("answers")
        texts = isinstance(answers, list) and all(isinstance(x, str) for x in answers)
        if not (answers and texts):
            raise file.fault('no "answers" list of strings in it', number)
        for text in (value["context"], value["input"], *answers):
            file.check_text(text, number)
        lines.append(Line(number, value["context"], value["input"], answers))
        if len(lines) == limit:
            break
    if not lines:
        raise file.fault("it has no line")
    return lines


def measure(
    study: LongAnswersStudy,
    lm: LanguageModel,
    lines: list[Line],
    folder: Path,
    over: Callable[[], bool] = lambda: False,
) -> Iterator[dict[str, Any]]:
    """Yields what is answered to each line: once in one pass, and once from chunks of each size.

    Args:
      study: The settings.
      lm: The model.
      lines: The questions.
      folder: Gets a file for each line that is done, which is not done again.
      over: Whether to stop; it is asked before every line that is not done.

    Raises:
      ValueError: the model has no tokenizer, or `folder` holds answers of other settings.
    """
    if lm.tokenizer is None:
        raise ValueError(f"model {study.model!r} has no tokenizer; give one that has")
    for line in lines:
        path = folder / f"line{line.number}.json"
        settings = _settings(study, lm, line)
        if path.exists():
            found = read_json(path)
            if found.get("settings") != settings:
                raise ValueError(
                    f"{path} is of other settings, another model or another line; give another --run "
                    "folder, or delete it"
                )
        elif over():
            return
        else:
            found = {"settings": settings, "row": _answer(study, lm, line)}
            write_json(path, found, indent=None)
        yield found["row"]


def _settings(study, lm, line):
    """Returns the settings that decide a line's answers, as JSON gives them back."""
    names = ("template", "certainty", "unanswerable", "max_new_tokens", "chunks")
    fields = {name: getattr(study, name) for name in names}
    return {
        **{x: list(y) if isinstance(y, tuple) else y for x, y in fields.items()},
        "model": lm.fingerprint,
        "dtype": str(np.dtype(lm.dtype)),
        "line": dataclasses.asdict(line),
    }


def _answer(study, lm, line):
    before, rest = study.template.split(_CONTEXT)
    # Parts are tokenized by themselves, so that chunks and the one pass read the same tokens.
    before = lm.tokenizer.encode(before, bos=True)
    context = lm.tokenizer.encode(line.context, bos=False, special="text")
    question = lm.tokenizer.encode(rest.replace(_INPUT, line.input), bos=False)
    whole = _read(study, lm, [before + context], question)[0]
    row = {
        "line": line.number,
        "tokens": len(context),
        "one pass": whole | scores(whole["text"], line.answers),
        "sizes": [],
    }
    for size in study.chunks:
        parts = [context[i : i + size] for i in range(0, len(context), size)]
        found = [whole]
        if len(parts) > 1:
            found = _read(study, lm, [before + part for part in parts], question)
        found = [one | scores(one["text"], line.answers) for one in found]
        place = choose(found, study.certainty, study.unanswerable)
        best = max(range(len(found)), key=lambda i: (found[i]["f1"], found[i]["exact match"]))
        row["sizes"].append(
            {
                "size": size,
                "chunks": len(parts),
                "chosen": place,
                "chunks read": found[place],
                "best chunk": found[best],
                "skipped": sum(says_none(x["text"], study.unanswerable) for x in found),
            }
        )
    return row


def scores(text: str, answers: list[str]) -> dict[str, float]:
    """Returns the "f1" and "exact match" of an answer."""
    return {"f1": f1(text, answers), "exact match": exact_match(text, answers)}


def says_none(text: str, unanswerable: tuple[str, ...]) -> bool:
    """Returns whether an answer says that there is none in its chunk, or says nothing."""
    answer = normalized(text)
    return not answer or answer in {normalized(x) for x in unanswerable}


def choose(
    found: list[Mapping[str, Any]], certainty: str, unanswerable: tuple[str, ...] = ()
) -> int:
    """Returns the place of the answer that the model is most certain of.

    Args:
      found: Answers with their "text", "entropy" and "probability".
      certainty: "entropy" or "probability".
      unanswerable: Answers that are chosen only where there are no others.
    """
    told = [i for i, x in enumerate(found) if not says_none(x["text"], unanswerable)]
    sign = -1 if certainty == "entropy" else 1

    def certain(i):
        value = found[i][certainty]
        return -math.inf if value is None else sign * value

    return max(told or range(len(found)), key=certain)


def _read(study, lm, texts, question):
    """Returns the answers after each text, with their certainty: the question forks its state."""
    found = []
    with lm.engine(slots=study.slots, seconds=None) as engine:
        for begin in range(0, len(texts), study.slots):  # so many states are kept at a time
            some = texts[begin : begin + study.slots]
            contexts = _contexts(engine, [(text, None) for text in some])
            asked = _contexts(engine, [(question, context) for context in contexts])
            requests = [
                engine.submit([], study.max_new_tokens, context=context) for context in asked
            ]
            engine.run()
            for context, request in zip(asked, requests, strict=True):
                text, logprobs = first_line(lm.tokenizer, request.result())
                found.append(
                    {
                        "text": text,
                        "entropy": _entropy(lm, context),
                        # None of an answer without a token.
                        "probability": float(np.mean(logprobs)) if logprobs else None,
                    }
                )
    return found


def first_line(tokenizer: Tokenizer, sample: Sample) -> tuple[str, list[float]]:
    """Returns the first line with text of what was written, and the log-probabilities up to its end."""
    for count in range(1, len(sample.tokens) + 1):
        line, end, _ = tokenizer.decode(sample.tokens[:count]).lstrip().partition("\n")
        if end:
            return line.strip(), sample.logprobs[:count]
    return sample.text.strip(), sample.logprobs


def _contexts(engine, texts):
    """Returns what texts leave behind, each after a context or None."""
    requests = [
        engine.submit(text, 0, context=context, keep_context=True, name="text")
        for text, context in texts
    ]
    engine.run()
    return [request.context() for request in requests]


def _entropy(lm, context):
    """Returns the entropy of the token after a context, in nats."""
    logits, _ = lm.apply([context.tokens[context.read :]], context.state, last_only=True)
    likely = jax.nn.log_softmax(logits[0])
    return float(-jnp.sum(jnp.exp(likely) * likely))
