"""/v1/contexts: read once, go on from, export, import, forget."""

import pytest

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
