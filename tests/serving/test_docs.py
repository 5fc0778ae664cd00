"""The examples of docs/serving run as they stand, but for the port."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import griffin_jax
from griffin_jax.inference import prefill
from tests.serving.running import running

PAGE = Path(__file__).parents[2] / "docs" / "serving" / "README.md"


@pytest.mark.slow
def test_the_examples_run(capsys, monkeypatch):
    monkeypatch.setattr(prefill, "CHUNKS", (32, 256))  # fewer programs
    text = PAGE.read_text(encoding="utf-8")
    python = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    curl = re.search(r"```bash\n(curl.*?)```", text, re.DOTALL)[1]
    assert len(python) == 4
    lm = griffin_jax.load("griffin-tiny")
    with running(lm, slots=4, waiting=16, name="griffin-tiny") as server:
        names: dict = {}
        for block in python:
            source = block.replace("http://127.0.0.1:8000", server.url)
            exec(compile(source, str(PAGE), "exec"), names)
        answer = names["answer"]
        assert answer.usage.prompt_tokens_details.cached_tokens > 100
        assert [x["id"] for x in server.client().get("/v1/contexts").json()["data"]][-1] == "mine"
        shown = capsys.readouterr().out
        assert re.search(r"^[A-Z][a-z]{2,8}, [1-9][0-9]$", shown, re.MULTILINE)
        if shutil.which("curl"):
            command = curl.replace("http://127.0.0.1:8000", server.url)
            run = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
            assert '"object":"text_completion"' in run.stdout
