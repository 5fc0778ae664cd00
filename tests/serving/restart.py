"""Starts, ends and kills a server as an operator does: python -m tests.serving.restart [--model=griffin-tiny]

It starts `experiments.serve` with no compiled program at hand, then with those of the first start; has it
read a context and ends it by SIGTERM while 50 streams are open; starts it, kills it with SIGKILL in the
middle of streams, and starts it once more. It prints a line of JSON: seconds from each start to ready, and
what became of streams and context; and fails if a stream was cut by SIGTERM, or the context was not the same.
"""

import argparse
import atexit
import concurrent.futures
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

TEXT = "It was a dark night, and the sea was rough. " * 40
ASKED = {"prompt": "In short:", "max_tokens": 24, "temperature": 0, "ignore_eos": True}


class Process:
    """A server of its own process, ready; and what it took to be that.

    Attributes:
      seconds: From its start, and those of all cores, which other work on the machine hardly changes.
    """

    def __init__(self, model: str, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "experiments.serve", f"--config.model={model}"]
        command += [f"--config.port={port}", f"--config.contexts={folder / 'contexts'}"]
        command += ["--config.drain_seconds=900"]  # a slow machine takes longer than the default
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}
        self.log = folder / "log"
        begin = time.monotonic()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log, env=environment)
        atexit.register(self.process.kill)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300)
        while not self._is_ready():
            if self.process.poll() is not None:
                sys.exit(f"the server ended: {self.log.read_text()}")
            time.sleep(0.1)  # each time costs the cores that compile a few milliseconds
        self.seconds = round(time.monotonic() - begin, 2), self._cpu_seconds()

    def _cpu_seconds(self):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return None

    def _is_ready(self):
        with contextlib.suppress(httpx.TransportError):
            return self.client.get("/health").status_code == 200
        return False

    def stream(self, tokens: int) -> str | None:
        """Returns why a stream of so many tokens ended; None where it was cut."""
        body = ASKED | {"max_tokens": tokens, "stream": True}
        reason, done = None, False
        asking = self.client.stream("POST", "/v1/completions", json=body)
        with contextlib.suppress(httpx.TransportError), asking as response:
            for line in response.iter_lines():
                done = done or line == "data: [DONE]"
                if line.startswith("data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        reason = choice["finish_reason"] or reason
        return reason if done else None

    def open_texts(self) -> int:
        """Returns how many texts are being read or written, or wait."""
        texts = self.client.get("/health").json()["texts"]
        return texts["reading"] + texts["writing"] + texts["waiting"]

    def goes_on(self, context: str) -> str:
        """Returns what the model says after a context."""
        answer = self.client.post("/v1/completions", json=ASKED | {"context": context})
        answer.raise_for_status()
        return answer.json()["choices"][0]["text"]

    def end(self, how: signal.Signals) -> int:
        """Ends it by a signal; returns the status that it ends with."""
        self.process.send_signal(how)
        return self.process.wait(120)


def main():
    """See above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="griffin-tiny")
    parser.add_argument("--streams", type=int, default=50)
    options = parser.parse_args()
    found: dict[str, object] = {"model": options.model, "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = Process(options.model, folder)
        found["first_start_seconds"] = server.seconds
        context = server.client.post("/v1/contexts", json={"text": TEXT}).json()["id"]
        said = server.goes_on(context)
        with concurrent.futures.ThreadPoolExecutor(options.streams) as pool:
            streams = [pool.submit(server.stream, 100) for _ in range(options.streams)]
            while server.open_texts() < options.streams:
                time.sleep(0.01)
            found["status_after_sigterm"] = server.end(signal.SIGTERM)
            reasons = [stream.result() for stream in streams]
        found["streams_ended_properly"] = f"{reasons.count('length')} of {len(reasons)}"
        server = Process(options.model, folder)
        found["second_start_seconds"] = server.seconds
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            streams = [pool.submit(server.stream, 500) for _ in range(8)]
            while server.open_texts() < 8:
                time.sleep(0.01)
            server.end(signal.SIGKILL)
        server = Process(options.model, folder)
        found["start_after_sigkill_seconds"] = server.seconds
        found["context_goes_on_alike"] = server.goes_on(context) == said
        server.end(signal.SIGTERM)
    print(json.dumps(found), flush=True)
    if reasons.count("length") < len(reasons) or not found["context_goes_on_alike"]:
        sys.exit("a stream was cut by SIGTERM, or a context is not what it was")


if __name__ == "__main__":
    main()
