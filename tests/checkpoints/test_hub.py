import http.server
import sys
import threading

import pytest

from griffin_jax.checkpoints import CheckpointError
from griffin_jax.checkpoints.hub import fetch, is_hub_name

pytest.importorskip("huggingface_hub")


@pytest.mark.parametrize(
    ("text", "is_name"),
    [
        ("google/recurrentgemma-2b-it", True),
        ("org/model.v2_x", True),
        ("model", False),
        ("./org/model", False),
        ("/org/model", False),
        ("~/model", False),
        ("a/b/c", False),
        ("../model", False),
    ],
)
def test_a_hub_name_is_one_owner_and_one_model(text, is_name):
    assert is_hub_name(text) is is_name


@pytest.fixture
def stand_in_hub(tmp_path, monkeypatch):
    """A Hub on this machine with one open, one gated and no other model."""
    files = {"config.json": b"{}", "model.safetensors": b"weights", "pytorch_model.bin": b"other"}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self, send_body=True):
            owner = self.path.removeprefix("/api/models").split("/")[1]
            body, status, headers = b"{}", 200, {}
            if owner == "nobody":
                status, headers = 404, {"X-Error-Code": "RepoNotFound"}
            elif owner == "gated" and not self.path.startswith("/api"):
                status, headers = 401, {"X-Error-Code": "GatedRepo"}
            elif owner == "broken":
                status = 500
            elif "/tree/" in self.path:
                entries = [
                    f'{{"type": "file", "path": "{name}", "size": {len(data)}, "oid": "{0:040x}"}}'
                    for name, data in files.items()
                ]
                body = f"[{','.join(entries)}]".encode()
            elif self.path.startswith("/api"):
                siblings = ",".join(f'{{"rfilename": "{name}"}}' for name in files)
                body = (
                    f'{{"id": "{owner}/m", "sha": "{0:040x}", "siblings": [{siblings}]}}'.encode()
                )
            else:
                body = files[self.path.rsplit("/", 1)[1]]
                headers = {"X-Repo-Commit": "0" * 40, "ETag": f'"{len(body)}"'}
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if send_body:
                self.wfile.write(body)

        def do_HEAD(self):
            self.do_GET(send_body=False)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    use_hub(monkeypatch, tmp_path, url)
    yield url
    server.shutdown()
    server.server_close()


def use_hub(monkeypatch, tmp_path, url):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def one_line(error, name):
    with pytest.raises(error) as caught:
        fetch(name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    return str(caught.value)


def test_an_open_model_is_fetched_without_other_frameworks_files(stand_in_hub):
    folder = fetch("open/m")
    assert {f.name for f in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == b"weights"


def test_a_gated_model_says_where_to_accept_its_license(stand_in_hub):
    message = one_line(CheckpointError, "gated/m")
    assert "accept its license at https://huggingface.co/gated/m" in message
    assert "hf auth login" in message


def test_a_model_that_is_not_there_is_said_to_be_neither_here_nor_there(stand_in_hub):
    message = one_line(FileNotFoundError, "nobody/m")
    assert "neither a folder nobody/m here nor" in message


def test_a_broken_hub_is_one_line(stand_in_hub):
    assert "cannot be reached" in one_line(CheckpointError, "broken/m")


def test_no_network_is_one_line(tmp_path, monkeypatch):
    use_hub(monkeypatch, tmp_path, "http://127.0.0.1:9")
    assert "cannot be reached" in one_line(CheckpointError, "open/m")


def test_the_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'griffin_jax[hf]'" in one_line(CheckpointError, "open/m")
