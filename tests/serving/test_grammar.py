"""Texts that have to obey: whatever the model would rather write, what ends by itself is valid."""

import json
import re

import numpy as np
import pytest

from griffin_jax.serving.errors import invalid
from griffin_jax.serving.grammar import Compiler, Progress
from tests.inference.tiny_model import CONFIG, ByteTokenizer
from tests.serving.random_rules import conforms, random_regex, random_schema
from tests.serving.test_bad_input import refused
from tests.serving.test_completions import events, post

LARK = 'start: "it is " ("day" | "night") "."'


@pytest.fixture(scope="module")
def compiler():
    return Compiler(ByteTokenizer(), CONFIG.vocab_size)


def test_a_regular_expression_holds(client):
    regex = "[a-c]{3}-[0-9]{2}"
    found = post(client, regex=regex, max_tokens=30, temperature=1.5, seed=1)
    assert re.fullmatch(regex, found["choices"][0]["text"])
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["usage"]["completion_tokens"] == 6


def test_a_grammar_holds_in_a_stream_and_each_choice_is_its_own(client):
    body = {"prompt": "a", "grammar": LARK, "max_tokens": 30, "temperature": 2, "seed": 3, "n": 4}
    whole = [choice["text"] for choice in post(client, **body)["choices"]]
    assert set(whole) <= {"it is day.", "it is night."}
    parts = [event["choices"][0] for event in events(client, **body)]
    for index, text in enumerate(whole):
        assert "".join(part["text"] for part in parts if part["index"] == index) == text


def test_an_object_is_an_object(client):
    body = {"max_tokens": 300, "seed": 2, "response_format": {"type": "json_object"}}
    choice = post(client, logit_bias={str(5 + ord("}")): 8}, **body)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert isinstance(json.loads(choice["text"]), dict)
    text = post(client, response_format={"type": "text"}, max_tokens=3)
    assert len(text["choices"]) == 1


def test_a_grammar_counts_what_was_forbidden_and_ends_that_are_ignored(client):
    body = {"regex": "a{2}", "max_tokens": 9, "temperature": 0}
    for more in ({"ignore_eos": True}, {"logit_bias": {str(5 + ord("a")): -100}}, {"stop": "zz"}):
        choice = post(client, **body, **more)["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == ("aa", "stop")
    cut = post(client, **body | {"max_tokens": 1})["choices"][0]
    assert (cut["text"], cut["finish_reason"]) == ("a", "length")


def test_a_grammar_that_becomes_too_complex_is_no_failure_of_the_device(
    client, server, monkeypatch
):
    allowed, before = Progress.allowed, server.service.worker.failures

    def fails(rules, tokens):
        if len(tokens) > 2:
            raise invalid("the rules of the text: too many")
        return allowed(rules, tokens)

    monkeypatch.setattr(Progress, "allowed", fails)
    response = client.post("/v1/completions", json={"prompt": "x", "regex": "a{9}"})
    assert "too many" in refused(response, 400)["message"]
    assert server.service.worker.failures == before
    assert 'kind="RequestError"' not in client.get("/metrics").text


def test_a_mask_is_what_may_follow(compiler):
    rules = compiler.compile(compiler_source("ab?"), "regex", ByteTokenizer().stop_ids)
    one, other = rules.begin(), rules.begin()
    a, b = 5 + ord("a"), 5 + ord("b")
    ends = set(ByteTokenizer().stop_ids)
    assert bits(one.allowed([])) == {a} == bits(other.allowed([]))
    assert bits(one.allowed([a])) == {b} | ends
    assert bits(one.allowed([a, b])) <= ends
    assert bits(other.allowed([a])) == {b} | ends


def test_random_rules_hold(client):
    """A few here; `python -m tests.serving.random_rules` does very many."""
    rng = np.random.default_rng(0)
    ended = 0
    for seed in range(6):
        schema, regex = random_schema(rng), random_regex(rng)
        wanted = {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": schema},
            }
        }
        for rule in (wanted, {"regex": regex}):
            choice = post(client, seed=seed, max_tokens=200, temperature=1, **rule)["choices"][0]
            if choice["finish_reason"] == "stop":
                ended += 1
                if "regex" in rule:
                    assert re.fullmatch(regex, choice["text"])
                else:
                    assert conforms(json.loads(choice["text"]), schema)
    assert ended >= 8


def compiler_source(regex):
    import llguidance

    return llguidance.LLMatcher.grammar_from_regex(regex)


def bits(mask):
    """The tokens of a mask."""
    words = mask.view(np.uint32)
    return {t for t in range(32 * len(words)) if words[t // 32] >> np.uint32(t % 32) & np.uint32(1)}
