"""POST /v1/completions against the model itself."""

import json

import numpy as np
import pytest

from griffin_jax.inference import SamplingConfig
from griffin_jax.inference.decode import row_keys
from griffin_jax.tokenizer import StreamDecoder
from tests.inference.tiny_model import plain_logits

PROMPT = "It was a dark"
WARM = {"temperature": 1.0, "seed": 5}


def post(client, **body):
    """The answer to a request that is well."""
    response = client.post("/v1/completions", json={"prompt": PROMPT, **body})
    assert response.status_code == 200, response.text
    return response.json()


def events(client, path="/v1/completions", **body):
    """The events of a stream, which ends as it should."""
    with client.stream("POST", path, json={"stream": True, **body}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_an_answer_is_the_lone_one(client, lm):
    found = post(client, max_tokens=20, temperature=0)
    (alone,) = lm.sample([PROMPT], 20)
    choice = found["choices"][0]
    assert choice["text"] == alone.text
    assert choice["finish_reason"] == alone.finish_reason
    tokens = len(lm.tokenizer.encode(PROMPT))
    assert found["usage"] == {
        "prompt_tokens": tokens,
        "completion_tokens": len(alone.tokens),
        "total_tokens": tokens + len(alone.tokens),
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert (found["object"], found["model"]) == ("text_completion", "tiny")


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.3, "top_k": 12, "min_p": 0.01},
        {"presence_penalty": 1.5, "frequency_penalty": -0.5, "repetition_penalty": 1.1},
    ],
)
def test_settings_draw_as_the_model_draws_with_them(client, lm, settings):
    found = post(client, max_tokens=16, seed=3, **settings)
    sampling = SamplingConfig(**{"temperature": 1.0, **settings})
    (alone,) = lm.sample([PROMPT], 16, sampling=sampling, seed=3)
    assert found["choices"][0]["text"] == alone.text


def test_top_p_of_nothing_is_greedy_and_a_bias_can_forbid(client, lm):
    greedy = lm.sample([PROMPT], 8)[0]
    assert post(client, max_tokens=8, top_p=0)["choices"][0]["text"] == greedy.text
    first = greedy.tokens[0]
    found = post(client, max_tokens=8, temperature=0, logit_bias={str(first): -100}, logprobs=0)
    assert found["choices"][0]["logprobs"]["tokens"][0] != lm.tokenizer.token_name(first)


def test_choices_have_streams_of_their_own_and_prompts_do_not_disturb_each_other(client, lm):
    found = post(client, prompt=[PROMPT, "The sea"], n=2, max_tokens=9, **WARM)
    texts = [choice["text"] for choice in found["choices"]]
    keys = row_keys(5, 2)
    with lm.engine(slots=1) as engine:
        expected = [
            engine.submit(prompt, 9, sampling=SamplingConfig(temperature=1.0), seed=key)
            for prompt in (PROMPT, "The sea")
            for key in keys
        ]
        assert texts == [request.result().text for request in expected]
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]
    alone = post(client, prompt="The sea", n=2, max_tokens=9, **WARM)
    assert [choice["text"] for choice in alone["choices"]] == texts[2:]


def test_best_of_returns_the_likeliest(client):
    whole = post(client, n=5, max_tokens=6, logprobs=0, **WARM)["choices"]
    best = post(client, n=2, best_of=5, max_tokens=6, logprobs=0, **WARM)["choices"]
    means = {
        choice["text"]: np.mean(choice["logprobs"]["token_logprobs"] or [-np.inf])
        for choice in whole
    }
    assert [c["text"] for c in best] == sorted(means, key=means.get, reverse=True)[:2]


def test_log_probabilities_are_the_models_own(client, lm):
    found = post(client, max_tokens=6, temperature=0, logprobs=3)["choices"][0]
    (alone,) = lm.sample([PROMPT], 6, logprobs=3)
    reported = found["logprobs"]
    np.testing.assert_allclose(reported["token_logprobs"], alone.logprobs, atol=1e-5)
    names = [lm.tokenizer.token_name(token) for token in alone.tokens]
    assert reported["tokens"] == names
    for top, expected in zip(reported["top_logprobs"], alone.top_logprobs, strict=True):
        assert list(top) == [lm.tokenizer.token_name(token) for token, _ in expected]
    decoder, place = StreamDecoder(lm.tokenizer), 0
    for token, offset in zip(alone.tokens, reported["text_offset"], strict=True):
        assert offset == place
        place += len(decoder.push([token]))


@pytest.mark.parametrize("length", [1, 2, 9, 60])
def test_echo_scores_every_token_of_the_prompt(client, lm, length):
    tokens = lm.tokenizer.encode("Some words, and more of them. " * 3)[:length]
    found = post(client, prompt=tokens, echo=True, logprobs=1, max_tokens=1, temperature=0)
    reported = found["choices"][0]["logprobs"]
    logits = plain_logits(tuple(tokens)).astype(np.float64)
    logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    expected = [logprobs[i, token] for i, token in enumerate(tokens[1:])]
    assert reported["token_logprobs"][0] is None and reported["top_logprobs"][0] is None
    np.testing.assert_allclose(reported["token_logprobs"][1:-1], expected, atol=1e-5)
    for place, top in enumerate(reported["top_logprobs"][1:-1]):
        ((name, value),) = top.items()
        assert name == lm.tokenizer.token_name(int(logprobs[place].argmax()))
        greedy = tokens[place + 1] == logprobs[place].argmax()
        assert (value == reported["token_logprobs"][place + 1]) == greedy
    assert found["choices"][0]["text"].startswith(lm.tokenizer.decode(tokens))
    (alone,) = lm.sample([tokens], 1)
    assert found["choices"][0]["text"] == lm.tokenizer.decode(tokens) + alone.text
    stopped = alone.finish_reason == "stop"
    count = length + len(alone.tokens) + stopped
    assert all(len(values) == count for values in reported.values())
    assert count == length + 1  # clients cut one off


def test_echo_without_new_tokens_is_the_prompt(client):
    found = post(client, echo=True, max_tokens=0)
    assert found["choices"][0]["text"] == PROMPT
    assert found["usage"]["completion_tokens"] == 0


def test_a_stream_joins_to_the_whole(client):
    body = {"prompt": PROMPT, "max_tokens": 24, "n": 2, "logprobs": 2, **WARM}
    whole = post(client, **body)
    found = events(client, **body, stream_options={"include_usage": True})
    assert found[-1]["choices"] == [] and found[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        own = [
            event["choices"][0]
            for event in found[:-1]
            if event["choices"][0]["index"] == choice["index"]
        ]
        assert "".join(part["text"] for part in own) == choice["text"]
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        assert all(part["finish_reason"] is None for part in own[:-1])
        for name in ("tokens", "token_logprobs", "text_offset"):
            joined = [x for part in own for x in part["logprobs"][name]]
            if name == "token_logprobs":
                np.testing.assert_allclose(joined, choice["logprobs"][name], atol=1e-5)
            else:
                assert joined == choice["logprobs"][name]
    assert all(event["usage"] is None for event in found[:-1])


def test_a_streamed_echo_begins_with_the_prompt(client):
    body = {"prompt": PROMPT, "max_tokens": 3, "echo": True, "logprobs": 1, "temperature": 0}
    found = [event["choices"][0] for event in events(client, **body)]
    whole = post(client, **body)["choices"][0]
    assert "".join(part["text"] for part in found) == whole["text"]
    offsets = [x for part in found for x in part["logprobs"]["text_offset"]]
    assert offsets == whole["logprobs"]["text_offset"]


def test_a_stop_string_is_neither_in_the_answer_nor_in_a_stream(client, lm):
    text = lm.sample([PROMPT], 40, temperature=1.0, seed=1)[0].text
    stop = text[10:12]
    body = {"prompt": PROMPT, "max_tokens": 40, "temperature": 1.0, "seed": 1, "stop": [stop, "zq"]}
    found = post(client, **body)["choices"][0]
    assert (found["text"], found["finish_reason"]) == (text[: text.find(stop)], "stop")
    parts = [event["choices"][0]["text"] for event in events(client, **body)]
    assert "".join(parts) == found["text"]


def test_ends_can_be_ignored_asked_for_and_put_off(client, lm):
    base = {"temperature": 3.0, "max_tokens": 60}
    seed = next(
        seed
        for seed in range(50)
        if lm.sample([PROMPT], 60, temperature=3.0, seed=seed)[0].finish_reason == "stop"
    )
    ended = post(client, seed=seed, **base)
    written = ended["usage"]["completion_tokens"]
    assert ended["choices"][0]["finish_reason"] == "stop" and written < 60
    longer = post(client, seed=seed, ignore_eos=True, **base)
    assert longer["usage"]["completion_tokens"] == 60
    put_off = post(client, seed=seed, min_tokens=written + 1, **base)
    assert put_off["usage"]["completion_tokens"] > written
    greedy = lm.sample([PROMPT], 5)[0]
    one = post(client, temperature=0, max_tokens=5, stop_token_ids=[greedy.tokens[1]])
    assert (one["usage"]["completion_tokens"], one["choices"][0]["finish_reason"]) == (1, "stop")


def test_what_was_read_before_is_told(lm, server, client):
    prompt = lm.tokenizer.encode("A beginning of its own. " * 80)
    first = post(client, prompt=prompt, max_tokens=1)["usage"]["prompt_tokens_details"]
    again = post(client, prompt=prompt, max_tokens=1)["usage"]["prompt_tokens_details"]
    assert first["cached_tokens"] == 0
    assert again["cached_tokens"] == (len(prompt) - 1) // 512 * 512 > 0


def test_without_a_seed_answers_differ(client):
    texts = {post(client, max_tokens=12, temperature=2)["choices"][0]["text"] for _ in range(3)}
    assert len(texts) > 1
