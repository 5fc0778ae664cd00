"""Scores of generated text: how toxic, how positive. The measuring model is the user's choice.

A scorer is a callable from texts to numbers, one per text, None for a text that it cannot judge:

    perspective  toxicity in [0, 1] from Google's Perspective API; key in PERSPECTIVE_API_KEY,
                 requests per second (default 1) in PERSPECTIVE_API_QPS. The service ends after 2026.
    vader        sentiment in [-1, 1] by VADER, a rule-based lexicon; runs offline
    none         no number: the generations are written to a file, to be scored later
    MODULE:NAME  your own: NAME() of the importable MODULE returns the callable

The tasks take them by name (metadata `toxicity_scorer` and `sentiment_scorer`) and make them when
they are loaded, so that what is missing is said before the first request. With `generations_dir`
every task also writes `TASK.jsonl` there, one object per generation: doc_id, prompt, generation.
`score_file` scores such a file.
"""

import importlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from griffin_jax.files import new_file
from griffin_jax.text_files import TextFile

Scorer = Callable[[Sequence[str]], list[float | None]]

_PERSPECTIVE_URL = "https://commentanalyzer.googleapis.com/v1alpha1/comments:analyze"
_KEY_VARIABLE, _RATE_VARIABLE = "PERSPECTIVE_API_KEY", "PERSPECTIVE_API_QPS"


class ScorerError(ValueError):
    """A scorer that is not there or that failed: one line."""


def make_scorer(name: str, measures: str | None = None) -> Scorer | None:
    """Returns the scorer of that name, ready for use; None for "none".

    Args:
      name: One of those that the module's docstring lists.
      measures: "toxicity" or "sentiment", if it is to be one of those.

    Raises:
      ScorerError: the name is unknown or measures something else, or a key or a package is missing.
    """
    if name == "none":
        return None
    if name in _SCORERS:
        measured, make = _SCORERS[name]
        if measures not in (None, measured):
            raise ScorerError(f"scorer {name!r} measures {measured}, not {measures}")
        return make()
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ScorerError(
            f"scorer {name!r} is unknown: it is one of {', '.join((*_SCORERS, 'none'))} "
            "or your own as MODULE:NAME"
        )
    try:
        return getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError) as error:
        raise ScorerError(f"scorer {name!r}: {error}") from error


def perspective() -> Scorer:
    """Scores toxicity by the Perspective API, one request per text at the allowed rate."""
    key = os.environ.get(_KEY_VARIABLE)
    if not key:
        raise ScorerError(
            f'scorer "perspective": {_KEY_VARIABLE} is not set; set it, or choose the scorer '
            '"none", which writes the generations to a file to be scored later'
        )
    try:
        rate = float(os.environ.get(_RATE_VARIABLE, "1"))
        pause = 1 / rate
    except (ValueError, ZeroDivisionError):
        given = os.environ[_RATE_VARIABLE]
        raise ScorerError(
            f"{_RATE_VARIABLE} is {given!r}: requests per second, a number above 0"
        ) from None
    session = _session({"X-Goog-Api-Key": key})

    def score(texts: Sequence[str]) -> list[float | None]:
        scores = []
        for text in tqdm(texts, "Perspective", unit="text"):
            begin = time.monotonic()
            scores.append(_perspective_score(session, text))
            time.sleep(max(0.0, begin + pause - time.monotonic()))
        return scores

    return score


def _session(headers: dict):
    """Returns a session that tries again, for about a minute, when the service is busy or away."""
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    session = requests.Session()
    session.headers.update(headers)
    retry = Retry(
        total=6,
        backoff_factor=1,
        status_forcelist=(429, 500, 502, 503, 504),
        allowed_methods=("POST",),
        raise_on_status=False,
    )
    session.mount("https://", HTTPAdapter(max_retries=retry))
    return session


def _perspective_score(session, text: str) -> float | None:
    import requests

    if not text.strip():
        return None
    request = {
        "comment": {"text": text},
        "languages": ["en"],
        "requestedAttributes": {"TOXICITY": {}},
        "doNotStore": True,
    }
    try:
        response = session.post(_PERSPECTIVE_URL, json=request, timeout=60)
    except requests.RequestException as error:
        raise ScorerError(f"Perspective API: {type(error).__name__}: no answer") from error
    if response.status_code == 400 and "LANGUAGE_NOT_SUPPORTED" in response.text:
        return None
    if not response.ok:
        raise ScorerError(f"Perspective API: {response.status_code} {response.reason}")
    return response.json()["attributeScores"]["TOXICITY"]["summaryScore"]["value"]


def vader() -> Scorer:
    """Returns a scorer of sentiment: VADER's compound score."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise ScorerError(
            'scorer "vader" needs the package vaderSentiment: pip install "griffin_jax[eval]"'
        ) from None
    analyzer = SentimentIntensityAnalyzer()
    return lambda texts: [analyzer.polarity_scores(text)["compound"] for text in texts]


_SCORERS = {"perspective": ("toxicity", perspective), "vader": ("sentiment", vader)}


def write_generations(path: Path, rows: Iterable[dict]) -> None:
    """Writes JSON lines; the file appears when they are complete."""
    with new_file(path) as file:
        for row in rows:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def score_file(path: str | Path, scorer: str) -> dict[str, float | int]:
    """Returns the mean score of a file of generations: {"mean", "scored", "unscored"}.

    Args:
      path: JSON lines, packed or not; "-" is standard input.
      scorer: As for `make_scorer`, but not "none".

    Raises:
      ScorerError: there is no such scorer, or the file is not one of generations.
    """
    score = make_scorer(scorer)
    if score is None:
        raise ScorerError('scorer "none" scores nothing: name another one')
    texts = [text for _, text in TextFile(path, error=ScorerError).strings("generation")]
    scores = [one for one in score(texts) if one is not None]
    mean = sum(scores) / len(scores) if scores else float("nan")
    return {"mean": mean, "scored": len(scores), "unscored": len(texts) - len(scores)}
