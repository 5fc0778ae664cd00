"""What clients send wrong: OpenAI's error object, and a status that is the client's."""

import json
import socket

import pytest

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = [{"role": "user", "content": "a"}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "strin"}}}

# Path, the body's fields, and words of the message, of which the first is the field.
WRONG = [
    (COMPLETIONS, {"prompt": 3}, "prompt must be text"),
    (COMPLETIONS, {"skip_special_tokens": False}, "skip_special_tokens is not supported"),
    (COMPLETIONS, {"grammar": "start: start"}, "the rules of the text: no text obeys them"),
    (CHAT, {"messages": USER, "verbosity": "low"}, "verbosity is not supported"),
    (CHAT, {"messages": USER, "best_of": 2}, "best_of is not supported"),
    (COMPLETIONS, {"prompt": []}, "prompt must be text"),
    (COMPLETIONS, {"prompt": [1, "a"]}, "prompt"),
    (COMPLETIONS, {"prompt": [[]]}, "is empty"),
    (COMPLETIONS, {"prompt": [True]}, "prompt"),
    (COMPLETIONS, {"prompt": [[1], 2]}, "prompt"),
    (COMPLETIONS, {"prompt": [10**40]}, "prompt"),
    (COMPLETIONS, {"prompt": [9999]}, "ids are 0 to 260"),
    (COMPLETIONS, {"prompt": [-1]}, "ids are 0 to 260"),
    (COMPLETIONS, {"prompt": {"a": 1}}, "prompt must be text"),
    (COMPLETIONS, {"prompt": "\ud800"}, "surrogate"),
    (COMPLETIONS, {"prompt": "a" * 5000}, "4096 are the most"),
    (COMPLETIONS, {"max_tokens": 513}, "512 are the most"),
    (COMPLETIONS, {"max_tokens": -1}, "max_tokens must be a whole number of at least 0"),
    (COMPLETIONS, {"max_tokens": 1.5}, "max_tokens"),
    (COMPLETIONS, {"max_tokens": "5"}, "max_tokens"),
    (COMPLETIONS, {"max_tokens": 10**30}, "max_tokens"),
    (COMPLETIONS, {"temperature": -0.1}, "temperature"),
    (COMPLETIONS, {"temperature": True}, "temperature"),
    (COMPLETIONS, {"temperature": 1e300}, "temperature"),
    (COMPLETIONS, {"top_p": 1.01}, "top_p"),
    (COMPLETIONS, {"top_k": -2}, "top_k"),
    (COMPLETIONS, {"min_p": 2}, "min_p"),
    (COMPLETIONS, {"n": 0}, "n must be"),
    (COMPLETIONS, {"n": 65}, "64 are the most"),
    (COMPLETIONS, {"n": 3, "best_of": 2}, "best_of is 2"),
    (COMPLETIONS, {"best_of": 2, "stream": True}, "best_of"),
    (COMPLETIONS, {"presence_penalty": 2.1}, "presence_penalty"),
    (COMPLETIONS, {"repetition_penalty": 0}, "repetition_penalty"),
    (COMPLETIONS, {"logprobs": 21}, "logprobs"),
    (COMPLETIONS, {"logprobs": True}, "logprobs"),
    (COMPLETIONS, {"stop": [""]}, "stop must hold strings"),
    (COMPLETIONS, {"stop": [1]}, "stop must hold strings"),
    (COMPLETIONS, {"stop": ["a"] * 65}, "64 are the most"),
    (COMPLETIONS, {"stop_token_ids": [999]}, "stop_token_ids"),
    (COMPLETIONS, {"stop_token_ids": list(range(5, 30))}, "stop_token_ids"),
    (COMPLETIONS, {"logit_bias": {"x": 1}}, "logit_bias"),
    (COMPLETIONS, {"logit_bias": {"5": "a"}}, "logit_bias"),
    (COMPLETIONS, {"logit_bias": {"5": 101}}, "logit_bias"),
    (COMPLETIONS, {"logit_bias": {"261": 1}}, "logit_bias"),
    (COMPLETIONS, {"logit_bias": {"9" * 40: 1}}, "logit_bias"),
    (COMPLETIONS, {"logit_bias": [1]}, "logit_bias"),
    (COMPLETIONS, {"seed": "a"}, "seed"),
    (COMPLETIONS, {"seed": 2**64}, "seed"),
    (COMPLETIONS, {"min_tokens": 17}, "min_tokens is 17"),
    (COMPLETIONS, {"stream": 1}, "stream"),
    (COMPLETIONS, {"stream_options": {"include_usage": True}}, "stream_options"),
    (COMPLETIONS, {"stream": True, "stream_options": {"a": True}}, "stream_options"),
    (COMPLETIONS, {"suffix": "end"}, "suffix is not supported"),
    (COMPLETIONS, {"temprature": 1}, "did you mean temperature?"),
    (COMPLETIONS, {"messages": USER}, "unknown field"),
    (COMPLETIONS, {"repetition_penalty": 1e-30}, "repetition_penalty must be"),
    (COMPLETIONS, {"regex": "("}, "regex"),
    (COMPLETIONS, {"regex": "a", "grammar": 'start: "a"'}, "give one of"),
    (COMPLETIONS, {"regex": "(" * 5000}, "nested"),
    (COMPLETIONS, {"grammar": "no grammar"}, "grammar"),
    (COMPLETIONS, {"response_format": {"type": "xml"}}, "response_format.type"),
    (COMPLETIONS, {"response_format": {"type": "json_schema"}}, "json_schema.schema"),
    (COMPLETIONS, {"response_format": SCHEMA}, "response_format"),
    (CHAT, {}, "messages is missing"),
    (CHAT, {"messages": []}, "messages must be a list"),
    (CHAT, {"messages": "a"}, "messages must be a list"),
    (CHAT, {"messages": ["a"]}, "messages[0]"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0]: content"),
    (CHAT, {"messages": [{"role": [], "content": "a"}]}, "messages[0]: role"),
    (CHAT, {"messages": [{"role": "tool", "content": "a"}]}, "messages[0]: role"),
    (CHAT, {"messages": USER + USER}, "alternate"),
    (CHAT, {"messages": [{"role": "assistant", "content": "a"}]}, "alternate"),
    (CHAT, {"messages": [{"role": "system", "content": "a"}]}, "no user message"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "parts of type"),
    (CHAT, {"messages": [{"role": "user", "content": "\udc00"}]}, "surrogate"),
    (CHAT, {"messages": USER, "tools": [{"type": "function"}]}, "tools is not supported"),
    (CHAT, {"messages": USER, "top_logprobs": 2}, "top_logprobs goes with logprobs"),
    (CHAT, {"messages": USER, "max_tokens": 2, "max_completion_tokens": 3}, "not both"),
    (CHAT, {"messages": USER, "max_completion_tokens": 513}, "max_completion_tokens is 513; 512"),
    (CHAT, {"messages": USER, "prompt": "a"}, "unknown field"),
    ("/tokenize", {}, "give prompt or messages"),
    ("/tokenize", {"prompt": 1}, "prompt must be text"),
    ("/detokenize", {"tokens": "a"}, "tokens"),
    ("/detokenize", {}, "tokens is missing"),
    ("/v1/contexts", {}, "give text or tokens"),
    ("/v1/contexts", {"text": ""}, "text must be text, not empty"),
    ("/v1/contexts", {"tokens": [-5]}, "ids are 0 to 260"),
]


def refused(response, status):
    """The error of an answer, whose form is checked."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and "\n" not in error["message"]
    return error


@pytest.mark.parametrize(("path", "body", "words"), WRONG)
def test_a_wrong_field_is_one_line_that_names_it(client, path, body, words):
    error = refused(client.post(path, content=json.dumps(body), headers=JSON), 400)
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"prompt": NaN}', "NaN is no JSON"),
        (b'{"temperature": -Infinity}', "Infinity is no JSON"),
        (b'{"temperature": 1e999}', "temperature"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "JSON"),
        (b'{"prompt": "a", "prompt": "b"}', "twice"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"logit_bias": ' + b'{"a":' * 500 + b"1" + b"}" * 501, "logit_bias"),
    ],
)
def test_a_body_that_is_no_json(client, body, words):
    assert words in refused(client.post(COMPLETIONS, content=body, headers=JSON), 400)["message"]


def test_other_faults_have_statuses_of_their_own(client):
    for path in ("/v1/nothing", "/v1/completions/", "/metrics/"):  # none sends a client elsewhere
        error = refused(client.post(path, json={"prompt": "a"}), 404)
        assert error["code"] == "not_found" and f"there is no '{path}'" in error["message"]
    assert refused(client.get(COMPLETIONS), 405)["code"] == "method_not_allowed"
    error = refused(client.options(COMPLETIONS), 405)
    assert error["message"] == "'/v1/completions' takes POST, not 'OPTIONS'"
    assert refused(client.delete("/v1/models"), 405)["code"] == "method_not_allowed"
    assert client.head("/v1/models").status_code == 200 and not client.head("/v1/models").content
    packed = client.post(COMPLETIONS, content=b"a", headers=JSON | {"Content-Encoding": "gzip"})
    assert "Content-Encoding, 'gzip', is not supported" in refused(packed, 415)["message"]
    other = client.post(COMPLETIONS, json={"model": "other", "prompt": "a"})
    assert refused(other, 404)["code"] == "model_not_found"
    form = client.post(COMPLETIONS, content=b"{}", headers={"Content-Type": "text/plain"})
    assert "Content-Type: application/json" in refused(form, 400)["message"]
    large = client.post(COMPLETIONS, content=b" " * (9 * 2**20), headers=JSON)
    refused(large, 413)


def test_a_body_without_a_length_has_a_bound_too(client):
    def pieces():
        for _ in range(9):
            yield b" " * 2**20

    refused(client.post(COMPLETIONS, content=pieces(), headers=JSON), 413)


def test_a_null_is_a_field_that_is_not_there(client):
    fields = (
        "temperature",
        "stop",
        "seed",
        "logit_bias",
        "n",
        "stream",
        "user",
        "logprobs",
        "suffix",
    )
    body = {"prompt": "a", "max_tokens": 1, **dict.fromkeys(fields)}
    assert client.post(COMPLETIONS, json=body).status_code == 200


def test_what_changes_nothing_is_taken(client):
    body = {"prompt": "a", "max_tokens": 1, "user": "me", "metadata": {"a": "b"}, "store": False}
    assert client.post(COMPLETIONS, json=body).status_code == 200
    # What other servers' clients send along, with the values that ask for nothing.
    body = {"messages": USER, "max_tokens": 1, "tools": [], "best_of": 1, "length_penalty": 1.0}
    body |= {"verbosity": "medium", "chat_template_kwargs": {}, "skip_special_tokens": True}
    assert client.post(CHAT, json=body).status_code == 200


def test_an_old_client_and_a_body_in_pieces_are_answered(server):
    """HTTP/1.0, by which some proxies speak: the answer ends with the connection, a stream, too."""
    body = json.dumps({"prompt": "a", "max_tokens": 3, "stream": True, "temperature": 0}).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    head = b"POST /v1/completions HTTP/%s\r\nHost: a\r\nContent-Type: application/json\r\n"
    old = head % b"1.0" + b"Content-Length: %d\r\n\r\n" % len(body) + body
    new = head % b"1.1" + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    answers = []
    for request in (old, new):
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as sent:
            sent.settimeout(60)
            sent.sendall(request)
            answers.append(b"".join(iter(lambda: sent.recv(65536), b"")))
    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 200") and b"data: [DONE]" in answer
    assert b"transfer-encoding" not in answers[0].lower() and b"chunked" in answers[1].lower()
