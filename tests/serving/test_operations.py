"""Keys, bounds, draining, clients that leave, logs and metrics, devices that fail."""

import concurrent.futures
import json
import logging
import re
import socket
import threading
import time

import jax
import pytest

from griffin_jax.inference.pool import Pool
from griffin_jax.inference.reader import Reader
from griffin_jax.serving.errors import RequestError
from griffin_jax.serving.keys import Keys
from griffin_jax.serving.records import _Lines
from griffin_jax.serving.service import DRAINING, READY
from griffin_jax.serving.settings import KEY_VARIABLE, ServerSettings, read_keys
from tests.serving.running import running
from tests.serving.test_bad_input import refused
from tests.serving.test_completions import events

LONG = {"prompt": "The sea", "max_tokens": 512, "temperature": 0, "ignore_eos": True}


def until(true, seconds=30):
    """Waits for what is to come."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.01)


def test_keys_are_asked_for(lm):
    with running(lm, frozenset({"secret", "other"}), slots=1) as server, server.client() as client:
        assert refused(client.get("/v1/models"), 401)["code"] == "invalid_api_key"
        body = {"prompt": "a", "max_tokens": 1}
        for header in ("Bearer wrong", "Bearer", "secret", "Basic secret", "Bearer sécret"):
            headers = {"Authorization": header.encode()}
            refused(client.post("/v1/completions", json=body, headers=headers), 401)
            refused(client.post("/tokenize", json={"prompt": "a"}, headers=headers), 401)
        for path in ("/", "/health", "/version", "/openapi.json", "/metrics", "/static/app.js"):
            assert client.get(path).status_code == 200
        found = client.post("/v1/completions", json=body, headers={"Authorization": "bearer other"})
        assert found.status_code == 200


def test_where_keys_come_from(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text("one\n\n two \n")
    assert read_keys(ServerSettings(api_key_file=str(file))) == {"one", "two"}
    monkeypatch.setenv(KEY_VARIABLE, "three")
    assert read_keys(ServerSettings(api_key_file=str(file))) == {"one", "two", "three"}
    monkeypatch.setenv(KEY_VARIABLE, " ")
    with pytest.raises(ValueError, match=f"{KEY_VARIABLE} is empty"):
        read_keys(ServerSettings())
    monkeypatch.delenv(KEY_VARIABLE)
    assert read_keys(ServerSettings()) == frozenset()
    file.write_text("\n")
    with pytest.raises(ValueError, match="the API key file is empty"):
        read_keys(ServerSettings(api_key_file=str(file)))
    file.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="no UTF-8"):
        read_keys(ServerSettings(api_key_file=str(file)))
    file.write_text("a key")
    with pytest.raises(ValueError, match="printable ASCII without blanks"):
        read_keys(ServerSettings(api_key_file=str(file)))
    with pytest.raises(OSError, match="nothing"):
        read_keys(ServerSettings(api_key_file=str(tmp_path / "nothing")))


def test_a_file_of_keys_is_read_again_when_it_changes(tmp_path, monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    file = tmp_path / "keys"
    file.write_text("one")
    settings = ServerSettings(api_key_file=str(file))
    keys = Keys(read_keys(settings), settings)
    new = tmp_path / "new"
    new.write_text("two\nthree")
    new.replace(file)
    assert keys.known() == {"one"}  # not looked at with every request
    now[0] += 1
    assert keys.known() == {"two", "three"}
    # What is no file of keys takes none away, be it empty or gone, and is said once.
    for change in (lambda: file.write_text(""), file.unlink):
        change()
        caplog.clear()
        for _ in range(3):
            now[0] += 1
            assert keys.known() == {"two", "three"}
        assert [record.message for record in caplog.records] == ["API keys not read again"]
    file.write_text("four")
    now[0] += 1
    assert keys.known() == {"four"}


def test_a_full_queue_says_when_to_come_again(client, server):
    worker = server.service.worker
    with worker.places(worker.most_open):
        response = client.post("/v1/completions", json={"prompt": "a"})
        assert refused(response, 429)["code"] == "queue_full"
        assert 1 <= int(response.headers["retry-after"]) <= 60
    many = client.post("/v1/completions", json={"prompt": ["a"] * 33, "n": 2})
    assert "64 are the most" in refused(many, 400)["message"]
    assert worker.num_open == 0


def test_a_client_that_leaves_frees_its_place(server):
    worker = server.service.worker
    for stream in (True, False):
        body = json.dumps(LONG | {"stream": stream}).encode()
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
        connection.sendall(head.encode() + body)
        until(lambda: worker.engine.load().writing)
        connection.close()
        until(lambda: not worker.num_open and not worker.engine.load().writing)
    assert worker.engine.stats.ended["cancelled"] >= 2


def test_time_is_bounded(lm):
    with running(
        lm,
        slots=1,
        most_seconds=0.2,
        body_seconds=0.3,
        unread_seconds=0.5,
        most_new_tokens=100_000,
    ) as server:
        with server.client() as client:
            found = client.post("/v1/completions", json=LONG | {"max_tokens": 100_000}).json()
            assert found["choices"][0]["finish_reason"] == "length"
            assert found["choices"][0]["stop_reason"] == "deadline"
            assert 0 < found["usage"]["completion_tokens"] < 100_000
        connection_to = "127.0.0.1", int(server.url.rpartition(":")[2])
        connection = socket.create_connection(connection_to)
        connection.sendall(
            b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b'Content-Length: 100\r\n\r\n{"prompt"'
        )
        answer = b""
        while piece := connection.recv(4096):
            answer += piece
        assert answer.startswith(b"HTTP/1.1 408") and b"body_timeout" in answer
        connection.close()
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Several megabytes, of which nobody takes any.
            body = json.dumps({"prompt": "😀" * 65_000}).encode()
            head = b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            length = b"Content-Length: %d\r\n\r\n" % len(body)
            connections = server.server.server_state.connections
            with socket.socket() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.connect(connection_to)
                connection.sendall(head + length + body)
                until(lambda: connections)
                until(lambda: not connections)


def test_draining_ends_what_is_open_and_takes_nothing_new(lm):
    with running(lm, slots=4) as server:
        with concurrent.futures.ThreadPoolExecutor(8) as pool, server.client() as client:
            streams = [pool.submit(events, client, **LONG | {"max_tokens": 300}) for _ in range(8)]
            until(lambda: server.service.worker.num_open == 8)
            loop = server.service.worker._loop
            loop.call_soon_threadsafe(server.server.end, "a test")
            until(lambda: server.service.state == DRAINING)
            with server.client() as late:
                response = late.post("/v1/completions", json={"prompt": "a"})
                assert refused(response, 503)["code"] == "draining"
                assert response.headers["retry-after"]
                assert late.get("/health").status_code == 503
            for stream in streams:
                found = stream.result()
                assert found[-1]["choices"][0]["finish_reason"] == "length"
        until(lambda: server.server.should_exit)


def test_a_device_that_fails_fails_its_requests_alone(server, client, monkeypatch):
    service, draw, broken = server.service, Pool.draw, threading.Event()

    def breaks(pool, *args, **options):
        if not broken.is_set() and pool.active:
            broken.set()
            raise jax.errors.JaxRuntimeError("INTERNAL: the device is on fire")
        return draw(pool, *args, **options)

    before = service.worker.failures
    monkeypatch.setattr(Pool, "draw", breaks)
    error = refused(client.post("/v1/completions", json=LONG | {"max_tokens": 4}), 500)
    assert error["code"] == "device_error" and "fire" not in error["message"]
    assert service.worker.failures == before + 1
    assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 200
    until(lambda: client.get("/health").json()["status"] == READY)
    assert client.get("/health").json()["device_failures"] == before + 1
    assert "griffin_device_errors_total{" in client.get("/metrics").text


def test_an_engine_that_fails_goes_on(server, client, monkeypatch):
    service, read, broken = server.service, Reader.read, threading.Event()

    def breaks(reader):
        if not broken.is_set() and reader.requests:
            broken.set()
            raise TypeError("a mistake of the engine's")
        return read(reader)

    monkeypatch.setattr(Reader, "read", breaks)
    error = refused(client.post("/v1/completions", json=LONG | {"max_tokens": 4}), 500)
    assert error["code"] == "device_error" and service.worker.alive
    assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 200
    until(lambda: client.get("/health").json()["status"] == READY)


def test_metrics_count(client):
    text = {"prompt": "Some words to be counted", "max_tokens": 7, "temperature": 0}

    def value(name):
        found = re.search(rf"^{name}{{[^}}]*}} (\S+)$", client.get("/metrics").text, re.MULTILINE)
        return float(found[1])

    names = {
        "griffin_generation_tokens_total": 7,
        "griffin_time_to_first_token_seconds_count": 1,
        "griffin_request_generation_tokens_sum": 7,
        "griffin_slots": 0,
    }
    before = {name: value(name) for name in names}
    client.post("/v1/completions", json=text | {"ignore_eos": True})
    until(
        lambda: (
            value("griffin_request_generation_tokens_sum")
            > before["griffin_request_generation_tokens_sum"]
        )
    )
    for name, more in names.items():
        assert value(name) == before[name] + more
    client.post("/v1/completions", json={"temperature": -1})
    page = client.get("/metrics").text
    assert 'griffin_errors_total{kind="invalid_request_error",model_name="tiny"}' in page
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "state_bytes",
        "prefix_cache_hits_total",
    ):
        assert f"griffin_{name}{{" in page
    assert "process_open_fds" in page


def test_a_line_is_logged_for_each_request_and_holds_no_text(client, server, caplog):
    with caplog.at_level(logging.INFO, logger="griffin_jax.serving.requests"):
        headers = {"X-Request-Id": "abc-1"}
        body = {"prompt": "a secret", "max_tokens": 3, "temperature": 0, "ignore_eos": True}
        response = client.post("/v1/completions", json=body, headers=headers)
        assert response.headers["x-request-id"] == "abc-1"
        client.post("/v1/completions", json={"n": 0})
        until(lambda: len(caplog.records) >= 2)
    first, second = (json.loads(_Lines().format(record)) for record in caplog.records[:2])
    assert first["id"] == "abc-1" and first["status"] == 200 and first["reasons"] == ["length"]
    assert first["completion_tokens"] == 3 and first["prompt_tokens"] == 9
    assert first["first_token_seconds"] <= first["seconds"]
    assert "secret" not in caplog.text and "secret" not in json.dumps(first)
    assert second["status"] == 400 and second["error"] == "invalid_request_error"


def test_texts_are_logged_where_that_is_asked_for(lm, caplog):
    with (
        running(lm, slots=1, log_text=True) as server,
        server.client() as client,
        caplog.at_level(logging.INFO, logger="griffin_jax.serving.requests"),
    ):
        answer = client.post("/v1/completions", json={"prompt": "a secret", "max_tokens": 3})
        until(lambda: caplog.records)
    fields = caplog.records[-1].fields
    assert fields["prompts"] == ["a secret"]
    assert fields["answers"] == [answer.json()["choices"][0]["text"]]


def test_other_sites_may_ask_only_where_that_is_allowed(client, lm):
    origin = {"Origin": "https://example.org"}
    asking = origin | {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    assert "access-control-allow-origin" not in client.get("/v1/models", headers=origin).headers
    assert client.options("/v1/completions", headers=asking).status_code == 405
    with (
        running(lm, slots=1, allow_origins=("https://example.org",)) as server,
        server.client() as own,
    ):
        allowed = own.options("/v1/completions", headers=asking)
        assert allowed.headers["access-control-allow-origin"] == "https://example.org"
        other = own.options("/v1/completions", headers=asking | {"Origin": "https://a.org"})
        assert "access-control-allow-origin" not in other.headers


def test_places_are_all_or_none(server):
    worker = server.service.worker
    with worker.places(worker.most_open - 1), pytest.raises(RequestError), worker.places(2):
        pass
    assert worker.num_open == 0
