"""`experiments.serve` as a process: how it starts, what it refuses, how it ends."""

import concurrent.futures
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
TEXT = "It was a dark night, and"


def command(*flags):
    """The words of the command."""
    return [sys.executable, "-m", "experiments.serve", *flags]


def free_port():
    """A port on which nothing listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def started(*flags):
    """A server of griffin-tiny that is ready: its process, a client, and the seconds that it took."""
    port, begin = free_port(), time.monotonic()
    process = subprocess.Popen(
        command(f"--config.port={port}", "--config.slots=4", *flags),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            while True:
                assert process.poll() is None, process.stderr.read()
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/health").status_code == 200:
                        break
                assert time.monotonic() < begin + 300
                time.sleep(0.05)
            yield process, client, time.monotonic() - begin
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.slow
def test_it_serves_drains_and_keeps_contexts(tmp_path):
    kept = f"--config.contexts={tmp_path / 'contexts'}"
    with started(kept) as (process, client, _):
        body = {"prompt": TEXT, "max_tokens": 8, "temperature": 0}
        before = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
        made = client.post("/v1/contexts", json={"text": TEXT}).json()
        process.send_signal(signal.SIGKILL)
        process.wait()
    with started(kept, "--config.drain_seconds=900") as (process, client, _):
        body = {"prompt": "", "context": made["id"], "max_tokens": 8, "temperature": 0}
        assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] == before
        url = client.base_url

        def stream(seed):
            body = {"prompt": TEXT, "max_tokens": 24, "seed": seed, "stream": True}
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as response:
                return [line for line in response.iter_lines() if line]

        with concurrent.futures.ThreadPoolExecutor(50) as pool:
            streams = [pool.submit(stream, seed) for seed in range(50)]
            until = time.monotonic() + 60

            def taken():
                """How many of the streams the server has taken, or has ended."""
                texts = client.get("/health").json()["texts"]
                ended = sum(one.done() for one in streams)
                return ended + sum(texts[where] for where in ("waiting", "reading", "writing"))

            while taken() < 50:
                assert time.monotonic() < until
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            for one in streams:
                lines = one.result()
                assert lines[-1] == "data: [DONE]"
                last = json.loads(lines[-2].removeprefix("data: "))
                assert last["choices"][0]["finish_reason"] in ("length", "stop")
        assert process.wait(30) == 0
        logged = [json.loads(x) for x in process.stderr.read().splitlines() if x.startswith("{")]
        ended = [line["event"] for line in logged]
        assert "ending" in ended and "draining" in ended
        assert next(x["open_texts"] for x in logged if x["event"] == "draining") > 40


@pytest.mark.slow
def test_what_is_wrong_is_one_line_before_anything_starts(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cases = {
            f"--config.port={port}": f"port={port}: Address already in use",
            "--config.host=203.0.113.7": "host=203.0.113.7",
            f"--config.model={tmp_path}": str(tmp_path),
            f"--config.api_key_file={keys}": "the API key file is empty",
            f"--config.api_key_file={tmp_path}/none": "No such file",
            "--config.mesh.model=3": "mesh",
            "--config.sluts=4": "did you mean slots?",
            "--config.slots=0": "slots must be a whole number of at least 1",
            f"--config.contexts={keys}/a": "keys",
        }
        running = {
            flag: subprocess.Popen(
                command(flag, *(() if "port" in flag else ("--config.port=0",))),
                cwd=ROOT,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ,
            )
            for flag in cases
        }
        for flag, process in running.items():
            _, told = process.communicate(timeout=300)
            lines = [line for line in told.splitlines() if line.startswith("error: ")]
            assert process.returncode == 1 and len(lines) == 1, (flag, told)
            assert cases[flag] in lines[0], (flag, told)
            assert "Traceback" not in told
