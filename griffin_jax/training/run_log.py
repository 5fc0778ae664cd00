"""Logs of a run: metrics.jsonl, TensorBoard, a progress bar, a plot."""

import importlib.util
import json
import time
from pathlib import Path

import jax
from tqdm import tqdm

from griffin_jax.files import naming_errors, new_file, write_text
from griffin_jax.paths import make_folder
from griffin_jax.text_files import TextFile


class Throughput:
    """Tokens per second over whole steps, without compilation and other pauses."""

    def __init__(self, tokens_per_step: int):
        self._tokens_per_step = tokens_per_step
        self._last: float | None = None
        self._steps = self._total_steps = 0
        self._seconds = self._total_seconds = 0.0

    def step(self) -> None:
        """Notes that a step has ended. The first one after a pause only starts the clock."""
        now = time.perf_counter()
        if self._last is not None:
            self._steps += 1
            self._seconds += now - self._last
        self._last = now

    def pause(self) -> None:
        """Stops the clock until the next step has ended."""
        self._last = None

    def interval(self) -> float | None:
        """Returns the tokens per second since the last call of this."""
        rate = self._rate(self._steps, self._seconds)
        self._total_steps += self._steps
        self._total_seconds += self._seconds
        self._steps, self._seconds = 0, 0.0
        return rate

    def overall(self) -> float | None:
        """Returns the tokens per second of the whole run."""
        return self._rate(self._total_steps + self._steps, self._total_seconds + self._seconds)

    def _rate(self, steps: int, seconds: float) -> float | None:
        return steps * self._tokens_per_step / seconds if steps else None


class RunLog:
    """Writes a run's metrics into `folder` and shows them."""

    def __init__(self, folder: Path, first_step: int, steps: int):
        """Goes on with the metrics.jsonl that is there, from which later steps are cut.

        Of several processes the first writes here, the others into folders of their own.
        """
        process = jax.process_index()
        folder = Path(folder) / f"process_{process}" if process else Path(folder)
        folder = make_folder(folder, "run")
        self._path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(self._path) if line["step"] <= first_step]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._path.open("a", encoding="utf-8")
        self._board = None
        if importlib.util.find_spec("tensorboardX"):
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)
        self._progress = tqdm(
            initial=first_step, total=steps, unit="step", mininterval=1.0, disable=process > 0
        )

    def step(self) -> None:
        """Moves the progress bar."""
        self._progress.update()

    def write(self, step: int, **metrics: float | None) -> None:
        """Writes one line of metrics; those that are None are left out."""
        metrics = {name: value for name, value in metrics.items() if value is not None}
        with naming_errors(self._path):
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._file.flush()
        if self._board:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)

    def show(self, **metrics: str) -> None:
        """Sets what stands at the right of the progress bar."""
        self._progress.set_postfix(metrics, refresh=False)

    def close(self) -> None:
        """Closes all files and draws loss.png if Matplotlib is there."""
        self._progress.close()
        self._file.close()
        if self._board:
            self._board.close()
        if importlib.util.find_spec("matplotlib"):
            plot_loss(read_metrics(self._path), self._path.with_name("loss.png"))


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Returns the lines of a metrics.jsonl; a last line that a killed run left unfinished is
    dropped.

    Raises:
      TextFileError: another line is damaged.
    """
    if not path.exists():
        return []
    file = TextFile(path)
    lines = []
    for number, line in enumerate(file.text().split("\n")[:-1], start=1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise file.fault(f"not JSON: {error}; remove the line", number) from None
    return lines


def plot_loss(lines: list[dict[str, float]], path: Path) -> None:
    """Draws training and held-out loss in nats per token over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in ("loss", "heldout_loss"):
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=name.replace("_", " "))
    axes.set(xlabel="step", ylabel="nats per token")
    if axes.lines:
        axes.legend()
    with new_file(path) as file:
        figure.savefig(file, dpi=150, format="png")
