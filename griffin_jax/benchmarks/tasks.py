"""The jobs that a config asks for, each of which measures one thing."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from griffin_jax.benchmarks import decode, engine, generation, kernels, machine, throughput
from griffin_jax.benchmarks.machine import Limits
from griffin_jax.benchmarks.memory import OutOfMemory
from griffin_jax.benchmarks.stacks import Unavailable, open_stack
from griffin_jax.benchmarks.stacks.griffin import GriffinStack
from griffin_jax.benchmarks.subject import OURS, Subject
from griffin_jax.sharding import MeshShape, mesh_unless_one

Row = dict[str, Any]
KINDS = ("decode", "generation", "latency", "throughput", "engine", "kernels", "training")


@dataclasses.dataclass(frozen=True)
class Job:
    """One piece of work in one process.

    Attributes:
      kind: "limits", or one of `KINDS`.
      model: What is measured, as `Subject.parse` reads it; empty where no model is.
      config: The config's fields, as plain values.
      limits: The limits of the device, of a "limits" job that came before.
    """

    kind: str
    model: str
    config: dict[str, Any]
    limits: dict[str, float] | None = None

    @property
    def leaves_device_alone(self) -> bool:
        """True if JAX only counts, and the accelerator's memory belongs to another framework."""
        return self.model.endswith("@transformers")

    def to_json(self) -> str:
        """Returns the job as JSON, for `from_json` in another process."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Job":
        """Returns the inverse of `to_json`."""
        return cls(**json.loads(text))


def jobs(config: Mapping[str, Any], limits: dict[str, float]) -> list[Job]:
    """Returns the jobs of a config, after the one that measures `limits`.

    Raises:
      ValueError: the config's kind is unknown, or a model in it is none.
    """
    values = dict(config)
    if values.get("kind") not in KINDS:
        raise ValueError(
            f"config.kind must be one of {', '.join(KINDS)}, got {values.get('kind')!r}"
        )
    if values["kind"] in ("kernels", "training"):
        return [Job(values["kind"], "", values, limits)]
    for text in values["models"]:
        Subject.parse(text, values.get("shapes"))
    for name in values.get("workloads", ()):
        if name not in engine.WORKLOADS:
            known = ", ".join(engine.WORKLOADS)
            raise ValueError(f"config.workloads names {name!r}; there are {known}")
    return [Job(values["kind"], text, values, limits) for text in values["models"]]


def run(job: Job) -> Iterator[Row]:
    """Yields rows of a job, as they come. What a stack or the memory does not allow is a row, too.

    Every row has "what" it holds and a "status": "ok", "out of memory" or "unavailable", the last
    two with a "message".
    """
    limits = None if job.limits is None else Limits(**job.limits)
    config = job.config
    if job.kind == "limits":
        yield _limits(config)
        return
    if job.kind == "training":
        from griffin_jax.benchmarks import training

        for row in training.measure(config):
            yield {"what": "training", "status": "out of memory" if "error" in row else "ok"} | row
        return
    if job.kind == "kernels":
        for row in kernels.measure(config, limits):
            yield {"status": "ok"} | row
        return
    subject = Subject.parse(job.model, config.get("shapes"))
    about = subject.to_dict()
    try:
        options: dict[str, Any] = {}
        if subject.stack == OURS:
            options = {name: config[name] for name in ("burst", "stack_layers")}
            options["mesh"] = mesh = mesh_unless_one(MeshShape(**config["mesh"]))
            limits = limits if mesh is None else limits.times(mesh.size)
        stack = open_stack(subject, config["seed"], **options)
        about = stack.about
        for row in _MEASURES[job.kind](subject, stack, limits, config):
            yield about | {"status": "ok"} | row
    except OutOfMemory as error:
        yield about | {"what": job.kind, "status": "out of memory", "message": str(error)}
    except Unavailable as error:
        yield about | {"what": job.kind, "status": "unavailable", "message": str(error)}


def _limits(config):
    if config.get("accelerator") and jax.default_backend() == "cpu":
        raise ValueError(
            "this config measures an accelerator, and JAX finds a CPU alone: give a small one, such as "
            "--config=configs/bench_decode.py:tiny, or install jax[cuda13] or jax[tpu]"
        )
    mesh_unless_one(MeshShape(**config.get("mesh", {})))  # one that does not fit ends here
    limits = machine.measure_limits(config.get("copy_bytes"), config.get("matrix"))
    return {"what": "limits", "machine": machine.describe(), "limits": limits.to_dict()}


def _decode(subject, stack, limits, config) -> Iterator[Row]:
    yield from _generation(subject, stack, limits, config)
    if not isinstance(stack, GriffinStack):
        return
    if config["prompt"]:
        yield decode.measure_prefill(subject, stack, limits, config["prompt"], 1, config["repeats"])
    for index, position in enumerate(config["positions"]):
        profile = config["profile"] and not index
        yield decode.measure_decoding(
            subject, stack, limits, position, config["tokens"], profile=profile
        )
    if config["stream"]:
        position = config["positions"][0] if config["positions"] else 0
        yield decode.measure_streaming(
            subject, stack, position, config["tokens"], config["repeats"]
        )
    if config["long_prompt"]:
        yield from decode.read_long_prompt(subject, stack, limits, config["long_prompt"])


def _generation(subject, stack, limits, config) -> Iterator[Row]:
    if config["prompt"]:
        yield generation.measure_generation(
            subject,
            stack,
            limits,
            prompt=config["prompt"],
            tokens=config["tokens"],
            repeats=config["repeats"],
        )


def _latency(subject, stack, limits, config) -> Iterator[Row]:
    most = dict(zip(config["models"], config["most"], strict=True))
    texts = {str(Subject.parse(text, config.get("shapes"))): n for text, n in most.items()}
    return generation.measure_latency(
        subject,
        stack,
        limits,
        prompt=config["prompt"],
        tokens=list(config["tokens"]),
        most=texts[str(subject)],
        repeats=config["repeats"],
        repeat_most=config["repeat_most"],
    )


def _throughput(subject, stack, limits, config) -> Iterator[Row]:
    return throughput.measure_throughput(
        subject,
        stack,
        limits,
        batch_sizes=config["batch_sizes"],
        prompt=config["prompt"],
        tokens=config["tokens"],
        prefill_tokens=config["prefill_tokens"],
        repeats=config["repeats"],
    )


def _engine(subject, stack, limits, config) -> Iterator[Row]:
    del subject, limits
    return engine.measure(stack.lm, config)


_MEASURES: dict[str, Callable[..., Iterator[Row]]] = {
    "decode": _decode,
    "generation": _generation,
    "latency": _latency,
    "throughput": _throughput,
    "engine": _engine,
}
