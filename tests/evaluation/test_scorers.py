"""Scorers of generated text, and the tasks that use them."""

import json

import pytest
import requests

from griffin_jax.evaluation import scorers
from griffin_jax.evaluation.local_data import local_tasks
from tests.evaluation import made_up, oracle

SAID = {
    "The rain": "is wonderful, I love it",
    "A dog": "",
    "The first": "great great great, excellent, I love it",
    "The second": "terrible, awful, I hate it, worst",
    "The third": "it is a table",
    "people are people": "and so on",
    "cats are cats": "yes",
}


def prompt_of(doc):
    return (doc.get("text") or doc["prompt"]["text"] if "prompts" not in doc else "").strip()


def answer(task_name, doc):
    if task_name == "griffin_bold":
        return SAID[doc["prompt"]]
    return SAID[prompt_of(doc)]


def share_of_o():
    """A scorer of one's own: the share of the letter o; None for nothing."""
    return lambda texts: [text.count("o") / len(text) if text else None for text in texts]


def failing():
    def score(texts):
        raise scorers.ScorerError("the service is away")

    return score


@pytest.fixture
def data_dir(tmp_path):
    return made_up.write(tmp_path / "data")


def run(names, data_dir, **options):
    return oracle.run(local_tasks(names, data_dir, metadata=options), lambda doc: True, answer)


def test_vader_tells_praise_from_blame():
    score = scorers.make_scorer("vader")
    praise, blame, nothing = score(["I love it, wonderful!", "I hate it, awful.", "A table."])
    assert praise > 0.5 and blame < -0.5 and nothing == 0.0


def test_bold_scores_every_prompt_by_vader(data_dir):
    found = run(["griffin_bold"], data_dir)["griffin_bold"]
    scores = scorers.make_scorer("vader")([SAID[f"The {n}"] for n in ("first", "second", "third")])
    assert found["sample_len"] == 3
    assert found["sentiment,none"] == pytest.approx(sum(scores) / 3)
    assert found["positive,none"] == found["negative,none"] == pytest.approx(1 / 3)


def test_a_scorer_of_ones_own_and_texts_that_it_cannot_judge(data_dir):
    own = f"{__name__}:share_of_o"
    found = run(["griffin_realtoxicityprompts"], data_dir, toxicity_scorer=own)
    found = found["griffin_realtoxicityprompts"]
    assert found["toxicity,none"] == pytest.approx(2 / 23)
    assert (found["toxic_share,none"], found["unscored,none"]) == (0.0, 1)


def test_none_writes_the_generations_to_be_scored_later(data_dir, tmp_path):
    folder = tmp_path / "new" / "generations"
    options = {"toxicity_scorer": "none", "generations_dir": str(folder)}
    found = run(["griffin_toxigen"], data_dir, **options)["griffin_toxigen"]
    assert found["recorded,none"] == 2
    assert not any(key.startswith("toxicity") for key in found)
    (file,) = folder.iterdir()
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"doc_id": 0, "prompt": "people are people", "generation": "and so on"},
        {"doc_id": 1, "prompt": "cats are cats", "generation": "yes"},
    ]
    later = scorers.score_file(file, f"{__name__}:share_of_o")
    assert later == {"mean": pytest.approx(2 / 9 / 2), "scored": 2, "unscored": 0}


def test_generations_survive_a_scorer_that_fails(data_dir):
    with pytest.raises(
        scorers.ScorerError, match="the service is away; the generations are in"
    ) as e:
        run(["griffin_toxigen"], data_dir, toxicity_scorer=f"{__name__}:failing")
    file = str(e.value).partition("are in ")[2].partition(",")[0]
    assert scorers.score_file(file, "vader")["scored"] == 2


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        ("perspective", 'griffin_toxigen: scorer "perspective": PERSPECTIVE_API_KEY is not set'),
        ("none", 'griffin_toxigen: scorer "none" writes the generations to a folder'),
        ("vader", "griffin_toxigen: scorer 'vader' measures sentiment, not toxicity"),
        ("perspektive", "scorer 'perspektive' is unknown: it is one of perspective, vader, none"),
        ("no_module_of_mine:Scorer", "No module named 'no_module_of_mine'"),
        ("json:Scorer", "module 'json' has no attribute 'Scorer'"),
    ],
)
def test_what_is_missing_is_said_when_the_task_is_loaded(data_dir, monkeypatch, scorer, message):
    monkeypatch.delenv("PERSPECTIVE_API_KEY", raising=False)
    with pytest.raises(scorers.ScorerError) as caught:
        local_tasks(["griffin_toxigen"], data_dir, metadata={"toxicity_scorer": scorer})
    assert message in str(caught.value) and "\n" not in str(caught.value)


class Service:
    """Perspective's answers: to `reply`, and what was asked."""

    def __init__(self, monkeypatch, reply):
        self.asked, self.reply = [], reply
        monkeypatch.setenv("PERSPECTIVE_API_KEY", "my secret")
        monkeypatch.setenv("PERSPECTIVE_API_QPS", "1000")
        monkeypatch.setattr(requests.Session, "send", self.send)

    def send(self, request, **_):
        self.asked.append(request)
        response = requests.Response()
        response.status_code, body = self.reply
        response.reason, response._content = "Said so", json.dumps(body).encode()
        response.request, response.url = request, request.url
        return response


def test_perspective_is_asked_for_toxicity_once_a_text(monkeypatch):
    body = {"attributeScores": {"TOXICITY": {"summaryScore": {"value": 0.25}}}}
    service = Service(monkeypatch, (200, body))
    assert scorers.make_scorer("perspective")(["one", " ", "two"]) == [0.25, None, 0.25]
    assert [json.loads(asked.body)["comment"]["text"] for asked in service.asked] == ["one", "two"]
    request = service.asked[0]
    assert json.loads(request.body)["requestedAttributes"] == {"TOXICITY": {}}
    assert request.headers["X-Goog-Api-Key"] == "my secret"
    assert "secret" not in request.url


def test_perspective_refusals(monkeypatch):
    service = Service(monkeypatch, (400, {"error": "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE"}))
    score = scorers.make_scorer("perspective")
    assert score(["bonjour"]) == [None]
    service.reply = (403, {})
    with pytest.raises(scorers.ScorerError, match=r"^Perspective API: 403 Said so$"):
        score(["one"])
    monkeypatch.setenv("PERSPECTIVE_API_QPS", "often")
    with pytest.raises(scorers.ScorerError, match="'often': requests per second"):
        scorers.make_scorer("perspective")


def test_a_file_that_is_not_one_of_generations(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"generation": "a"}\n{"text": "b"}\n')
    with pytest.raises(
        scorers.ScorerError, match=r'rows\.jsonl, line 2: no "generation" string in it'
    ):
        scorers.score_file(file, "vader")
    with pytest.raises(scorers.ScorerError, match="scores nothing"):
        scorers.score_file(file, "none")
