"""Whatever is sent, nobody gets a 500, nothing hangs, and the server is there afterward."""

import json
import re
import socket

import hypothesis
import numpy as np
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serving.running import running
from tests.serving.test_operations import until

pytestmark = pytest.mark.slow
SECONDS = 20  # in which an answer has to be there


@pytest.fixture(scope="module")
def small(lm):
    """A server of short answers."""
    bounds = {"most_new_tokens": 8, "most_prompt_tokens": 200, "most_choices": 8}
    with running(lm, slots=4, body_seconds=0.3, **bounds) as found:
        yield found


@pytest.fixture(scope="module")
def api(small):
    """The description of its API, by which requests are made."""
    return schemathesis.openapi.from_url(f"{small.url}/openapi.json")


def test_requests_by_the_description(api):
    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
    ]
    operations = [found.ok() for found in api.get_all_operations()]
    assert len(operations) > 12
    for operation in operations:

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(
            max_examples=40,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        def run(case):
            case.call_and_validate(checks=checks)

        run()


def valid(path=b"/v1/completions", body=None, close=True):
    """A request that is well, as bytes."""
    body = json.dumps({"prompt": "a", "max_tokens": 2}).encode() if body is None else body
    return (
        b"POST "
        + path
        + b" HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        + b"Connection: close\r\n" * close
        + b"Content-Length: "
        + str(len(body)).encode()
        + b"\r\n\r\n"
        + body
    )


def answers(url, data, silence=1.0):
    """The statuses of what comes back, until the server is silent for so many seconds."""
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), SECONDS) as one:
        came, ended = b"", False
        try:
            one.sendall(data)
            one.settimeout(silence)
            while not ended:
                try:
                    piece = one.recv(65536)
                except TimeoutError:  # it waits for more, or for another request
                    one.shutdown(socket.SHUT_WR)
                    one.settimeout(SECONDS)
                    continue
                came, ended = came + piece, not piece
        except (ConnectionResetError, BrokenPipeError):  # it may hang up on nonsense
            pass
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d\d\d) ", came)]


HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
CRAFTED = [
    valid(close=False) * 4 + valid(),  # pipelining
    valid(close=False)
    + HEALTH.replace(b"close", b"keep-alive")
    + valid(b"/tokenize", b'{"prompt": "a"}'),
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 100 + b"\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFF\r\na",
    b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /%ff%fe%00 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /v1/models/%ff HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /v1/contexts/..%2f..%2fetc HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /static/../app.py HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /static/..%2fapp.py HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer \xff\xfe\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nRange: bytes=5-2,-1,a\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    b"\r\n" * 1000,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    valid(body=b'{"prompt": "\xc3\x28"}'),
    valid(body=b'{"prompt": ' + b'["' * 3000 + b'"]' * 3000 + b"}"),
    valid(body=b'{"prompt": [' + b"1," * 100_000 + b"1]}"),
    valid(body=b'{"prompt": [' + b"9" * 4000 + b"]}"),
    valid(body=b'{"prompt": "a", "temperature": 1e-320, "top_p": 5e-324}'),
    valid(body=b'{"prompt": "a", "logit_bias": {"1": 1e-400}}'),
    valid(body=b'{"prompt": "a", "max_tokens": 2, "seed": -9223372036854775808}'),
    valid(body=b'{"prompt": "a", "regex": "' + b"(a|" * 60 + b"b" + b")" * 60 + b'"}'),
    valid(body=b'{"prompt": "a", "regex": "' + b"(a{1000}){1000}" + b'"}'),
    valid(body=b'{"prompt": "a", "grammar": "start: ' + b"a" * 30000 + b'"}'),
    valid(body=b'{"prompt": "a", "grammar": "start: start start"}'),
    valid(b"/tokenize", b'{"prompt": "' + b"<bos>" * 10_000 + b'"}'),
]


@pytest.mark.parametrize("number", range(len(CRAFTED)))
def test_crafted_bytes(small, number):
    found = answers(small.url, CRAFTED[number], SECONDS if number < 2 else 1.0)
    assert all(status < 500 for status in found), found
    if number < 2:
        assert found == [200] * (5 if number == 0 else 3)
    assert answers(small.url, HEALTH, SECONDS) == [200]


def test_mutated_bytes(small):
    rng = np.random.default_rng(0)
    whole = [valid(), valid(b"/v1/chat/completions", CHAT), valid(b"/tokenize", b'{"prompt": "a"}')]
    for _ in range(150):
        data = bytearray(whole[rng.integers(len(whole))])
        for _ in range(rng.integers(1, 6)):
            at = int(rng.integers(len(data)))
            kind = rng.integers(0, 4)
            if kind == 0:
                data[at] = int(rng.integers(256))
            elif kind == 1:
                del data[at : at + int(rng.integers(1, 9))]
            elif kind == 2:
                data[at:at] = bytes(rng.integers(0, 256, rng.integers(1, 9)).tolist())
            else:
                data[at:at] = data[at : at + int(rng.integers(1, 30))]
            data = data or bytearray(b"a")
        found = answers(small.url, bytes(data))
        assert all(status < 500 for status in found), (found, bytes(data))
    assert answers(small.url, HEALTH, SECONDS) == [200]
    until(lambda: small.service.worker.num_open == 0)


CHAT = json.dumps({"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}).encode()
