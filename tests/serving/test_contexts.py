"""/v1/contexts: read once, go on from, export, import, forget."""

import concurrent.futures
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from griffin_jax.inference.context import _checksum
from griffin_jax.serving.context_store import owner_of_key
from tests.serving.running import running
from tests.serving.test_bad_input import refused
from tests.serving.test_completions import post

TEXT = "It was a dark night, and nobody was on the road. "


def make(client, **body):
    """A context that has been made."""
    response = client.post("/v1/contexts", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_text_goes_on_from_what_was_read(client, lm):
    made = make(client, text=TEXT)
    context = lm.read(TEXT)
    assert made["tokens"] == len(context.tokens) and made["object"] == "context"
    found = post(client, prompt="Then", context=made["id"], max_tokens=9, temperature=0)
    (expected,) = lm.sample(["Then"], 9, context=context)
    assert found["choices"][0]["text"] == expected.text
    cached = found["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == context.read
    assert found["usage"]["prompt_tokens"] == len(context.tokens) + len("Then")
    empty = post(client, prompt="", context=made["id"], max_tokens=9, temperature=0)
    assert empty["choices"][0]["text"] == lm.sample([TEXT], 9)[0].text


def test_a_context_goes_on_from_another(client, lm):
    first = make(client, text=TEXT)
    both = make(client, text="Then he came.", context=first["id"])
    found = post(client, prompt=" ", context=both["id"], max_tokens=6, temperature=0)
    tokens = [*lm.tokenizer.encode(TEXT), *lm.tokenizer.encode("Then he came. ", bos=False)]
    assert found["choices"][0]["text"] == lm.sample([tokens], 6)[0].text


def test_without_keys_all_clients_are_one(client):
    # OpenAI's own client always sends a key.
    made = make(client, text=TEXT)
    header = {"Authorization": "Bearer whatever"}
    assert client.get(f"/v1/contexts/{made['id']}", headers=header).status_code == 200


def test_a_file_goes_out_and_comes_back_in(client, lm, tmp_path):
    made = make(client, text=TEXT)
    exported = client.get(f"/v1/contexts/{made['id']}")
    assert exported.status_code == 200 and len(exported.content) == made["bytes"]
    file = tmp_path / "context.safetensors"
    file.write_bytes(exported.content)
    assert lm.load_context(file).tokens == lm.read(TEXT).tokens
    put = client.put("/v1/contexts/mine", content=exported.content)
    assert put.status_code == 200 and put.json()["tokens"] == made["tokens"]
    names = {one["id"] for one in client.get("/v1/contexts").json()["data"]}
    assert {"mine", made["id"]} <= names
    found = post(client, prompt="Then", context="mine", max_tokens=9, temperature=0)
    assert found["choices"][0]["text"] == lm.sample([TEXT + "Then"], 9)[0].text
    assert client.delete("/v1/contexts/mine").json()["deleted"]
    assert refused(client.get("/v1/contexts/mine"), 404)["code"] == "context_not_found"
    body = {"prompt": "a", "context": "mine"}
    assert refused(client.post("/v1/completions", json=body), 404)["param"] == "context"


@pytest.mark.parametrize("damage", [lambda x: b"", lambda x: x[:-9], lambda x: b"a" * 5000])
def test_a_file_that_is_no_context_leaves_nothing(client, damage):
    made = make(client, text=TEXT)
    whole = client.get(f"/v1/contexts/{made['id']}").content
    response = client.put("/v1/contexts/broken", content=damage(whole))
    error = refused(response, 400)
    assert error["code"] == "context_invalid" and "/" not in error["message"].replace("/keys", "")
    refused(client.get("/v1/contexts/broken"), 404)


def test_files_of_others_are_met_at_the_door(client):
    """Sound files, made elsewhere, of what is no state of a text."""
    made = make(client, text=TEXT)
    whole = client.get(f"/v1/contexts/{made['id']}").content
    begin = 8 + int.from_bytes(whole[:8], "little")
    facts = json.loads(whole[8:begin])["__metadata__"]
    arrays = safetensors.numpy.load(whole)

    def file(read=facts["read"], **changes):
        changed = {name: x for name, x in (arrays | changes).items() if x is not None}
        told = facts | {"read": read, "checksum": json.dumps(_checksum(changed))}
        return safetensors.numpy.save(changed, told)

    tokens, position = arrays["tokens"], arrays["state/position"]
    hidden = next(name for name in arrays if name.endswith("hidden"))
    assert client.put("/v1/contexts/other", content=file()).status_code == 200
    for words, content in (
        ("is damaged", file("null")),
        ("is damaged", file('"a"')),
        ("is damaged", file("-1", **{"state/position": np.full_like(position, -1)})),
        ("is damaged", file("true")),
        ("is damaged", file("7")),
        ("is damaged", file(**{"state/position": position - 9})),
        ("its tokens are no list", file(tokens=None)),
        ("its tokens are no list", file(tokens=tokens[None])),
        ("a token is not one of", file(tokens=tokens + 10_000)),
        ("no finite number", file(**{hidden: arrays[hidden] * np.nan})),
        ("position is missing", file(**{"state/position": None})),
    ):
        error = refused(client.put("/v1/contexts/other", content=content), 400)
        assert error["code"] == "context_invalid" and words in error["message"]
    found = post(client, prompt="Then", context="other", max_tokens=2)  # as it was
    assert found["usage"]["completion_tokens"] == 2


def test_a_disk_that_is_full_is_said_and_leaves_nothing(client, server, monkeypatch):
    made = make(client, text=TEXT)
    whole = client.get(f"/v1/contexts/{made['id']}").content

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(Path, "replace", full)
    before = sorted(server.service.contexts._folder.rglob("*"))
    for response in (
        client.post("/v1/contexts", json={"text": TEXT}),
        client.put("/v1/contexts/full", content=whole),
    ):
        error = refused(response, 507)
        assert error["code"] == "storage_failed" and "No space left" in error["message"]
    assert sorted(server.service.contexts._folder.rglob("*")) == before


def test_a_context_may_go_while_it_is_read(client, server, monkeypatch):
    service = server.service

    def goes(*arguments):
        found = find(*arguments)
        found.path.unlink()
        return found

    for ask in (
        lambda name: client.get(f"/v1/contexts/{name}"),
        lambda name: client.post("/v1/completions", json={"prompt": "a", "context": name}),
    ):
        made = make(client, text=TEXT)
        service.contexts._on_device.clear()
        with monkeypatch.context() as patch:
            find = service.contexts.find
            patch.setattr(service.contexts, "find", goes)
            assert refused(ask(made["id"]), 404)["code"] == "context_not_found"


def test_the_bytes_of_a_key_are_bounded_for_all_who_send_at_once(client, server, monkeypatch):
    made = make(client, text=TEXT)
    whole = client.get(f"/v1/contexts/{made['id']}").content
    contexts = server.service.contexts
    room = contexts._most_bytes - contexts.room(owner_of_key(None))
    monkeypatch.setattr(contexts, "_most_bytes", room + len(whole) + 100)

    def put(number):
        return client.put(f"/v1/contexts/many-{number}", content=whole).status_code

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(put, range(6))) == [200] + [413] * 5


@pytest.mark.parametrize("name", ["a" * 65, "a.b", "%2e%2e%2fa", "ä", "a b"])
def test_names_are_plain(client, name):
    response = client.put(f"/v1/contexts/{name}", content=b"a")
    assert response.status_code in (400, 404, 405)
    assert client.get(f"/v1/contexts/{name}").status_code == 404


def test_keys_have_contexts_of_their_own_within_their_bounds_and_files_last(lm, tmp_path):
    keys = frozenset({"ann", "bob"})
    options = {"contexts": str(tmp_path / "kept"), "slots": 1, "context_device_bytes": 0}
    ann, bob = ({"Authorization": f"Bearer {key}"} for key in ("ann", "bob"))
    with running(lm, keys, **options) as server, server.client() as client:
        refused(client.post("/v1/contexts", json={"text": TEXT}), 401)
        made = client.post("/v1/contexts", json={"text": TEXT}, headers=ann).json()
        again = client.post("/v1/contexts", json={"text": TEXT}, headers=ann).json()
        refused(client.get(f"/v1/contexts/{made['id']}", headers=bob), 404)
        refused(client.delete(f"/v1/contexts/{made['id']}", headers=bob), 404)
        assert client.get("/v1/contexts", headers=bob).json()["data"] == []
        assert len(server.service.contexts._on_device) == 1
    options["context_bytes"] = made["bytes"] + again["bytes"] + 10
    with running(lm, keys, **options) as server, server.client(headers=ann) as client:
        found = post(client, prompt="Then", context=made["id"], max_tokens=9, temperature=0)
        assert found["choices"][0]["text"] == lm.sample([TEXT + "Then"], 9)[0].text
        error = refused(client.post("/v1/contexts", json={"text": TEXT}), 413)
        assert "delete another one" in error["message"]
        whole = client.get(f"/v1/contexts/{made['id']}").content
        assert refused(client.put("/v1/contexts/more", content=whole), 413)
        assert client.put(f"/v1/contexts/{made['id']}", content=whole).status_code == 200
        client.delete(f"/v1/contexts/{made['id']}")
        assert client.post("/v1/contexts", json={"text": TEXT}).status_code == 200
