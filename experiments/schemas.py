"""The fields of every command's config: types and bounds. What each is for, configs/ say beside it.

The functions here give the dataclass of a config by its values, for only benchmarks have several.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from griffin_jax.checkpoints import WRITTEN
from griffin_jax.config import DTYPES
from griffin_jax.fields import field
from griffin_jax.inference.sampling import SamplingConfig
from griffin_jax.quantization import PACKINGS, QuantizationConfig
from griffin_jax.serving.settings import ServerSettings
from griffin_jax.sharding import MeshShape

_SEED = {"at_least": 0, "below": 2**32}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(SamplingConfig):
    """The config of `experiments.sample`."""

    model: str = field("griffin-tiny", filled=True)
    adapter: str | None = field(None, filled=True)
    dtype: str | None = field(None, one_of=DTYPES)
    allow_nan: bool = False
    chat: bool = False
    max_new_tokens: int = field(128, at_least=0, at_most=2**31 - 1)
    seed: int = field(0, **_SEED)
    stop: tuple[str, ...] = ()
    mesh: MeshShape = dataclasses.field(default_factory=MeshShape)
    batch_size: int = field(16, at_least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serve(ServerSettings):
    """The config of `experiments.serve`.

    Attributes:
      model: "griffin-tiny", a folder of a model, a name on the Hub; or random:recurrentgemma-9b and the
        like, a shape with random weights, to measure speed with.
      adapter: A folder with a LoRA adapter for the model, as `train` or PEFT writes it.
      quantization: "nf4" or "fp4" packs linear weights on the way; a folder in 4 bits loads as it is.
      dtype: The dtype of activations; None is what a 4-bit folder says, and otherwise bfloat16 on accelerators
        and float32 on CPUs.
      mesh: How devices share the model (griffin_jax.sharding.MeshShape); -1 along one axis is the rest.
    """

    model: str = field("griffin-tiny", filled=True)
    adapter: str | None = field(None, filled=True)
    quantization: str | None = field(None, one_of=("nf4", "fp4"))
    dtype: str | None = field(None, one_of=DTYPES)
    mesh: MeshShape = dataclasses.field(default_factory=MeshShape)


@dataclasses.dataclass(frozen=True)
class Pack:
    """The config of `experiments.pack`."""

    model: str = field("griffin-tiny", filled=True)
    format: str = field("huggingface", one_of=tuple(sorted(WRITTEN)))
    block_size: int = field(64, one_of=(32, 64, 128, 256, 512, 1024, 2048, 4096))
    quantization: QuantizationConfig = dataclasses.field(default_factory=QuantizationConfig)


@dataclasses.dataclass(frozen=True)
class Convert:
    """The config of `experiments.convert`."""

    model: str = field("griffin-tiny", filled=True)
    format: str = field("huggingface", one_of=tuple(sorted(WRITTEN)))
    dtype: str | None = field(None, one_of=DTYPES)
    dequantize: bool = False


@dataclasses.dataclass(frozen=True)
class QuantizationQuality:
    """The config of `experiments.quantization_quality`."""

    model: str = field("griffin-tiny", filled=True)
    dtype: str = field("float32", one_of=DTYPES)
    max_bytes: int = field(0, at_least=0)
    rows: int = field(8, at_least=1)
    chunk: int = field(256, at_least=1)
    capacity: int | None = field(None, at_least=1)
    packings: tuple[Any, ...] = field((), filled=True)


@dataclasses.dataclass(frozen=True)
class CompareTraining:
    """The config of `experiments.compare_training`."""

    runs: tuple[str, ...] = field((), filled=True)
    text: str = field("", filled=True)
    edges: tuple[int, ...] = field((), filled=True)
    dtype: str = field("bfloat16", one_of=DTYPES)
    chunk: int = field(1024, at_least=1)
    cache: tuple[int, ...] = (768, 256)


@dataclasses.dataclass(frozen=True)
class Inspect:
    """The config of `experiments.inspect`."""

    model: str = field("griffin-tiny", filled=True)
    dtype: str | None = field(None, one_of=DTYPES)
    token: int = field(1, at_least=0)
    max_tokens: int = field(512, at_least=2)


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """The config of `experiments.evaluate`."""

    suite: str = field("quality", filled=True)
    rows: tuple[Any, ...] = field((), filled=True)
    average: Any = None
    model: str = field("griffin-tiny", filled=True)
    quantization: str | None = field(None, one_of=tuple(PACKINGS))
    dtype: str | None = field(None, one_of=DTYPES)
    mesh: MeshShape = dataclasses.field(default_factory=MeshShape)
    tasks: str = ""
    limit: int | None = field(None, at_least=1)
    generation_limit: int | None = field(None, at_least=1)
    data_dir: str | None = None
    chat: bool = False
    run_generated_code: bool = False
    toxicity_scorer: str = field("perspective", filled=True)
    sentiment_scorer: str = field("vader", filled=True)
    stack_layers: bool | None = None
    batch_size: int = field(32, at_least=1)
    max_length: int | None = field(None, at_least=1)
    max_gen_toks: int = field(1024, at_least=1)
    gen_toks_cap: int | None = field(None, at_least=1)
    fork: bool = True
    seed: int = field(0, **_SEED)
    log_samples: bool = False


@dataclasses.dataclass(frozen=True)
class CompileTPU:
    """The config of `experiments.compile_tpu`."""

    topology: str = field("v5e:1x1", filled=True)
    mesh: MeshShape = dataclasses.field(default_factory=MeshShape)
    model: str = field("recurrentgemma-9b", filled=True)
    weights: str = field("nf4", one_of=("bf16", *PACKINGS))
    job: str = field("decode", one_of=("decode", "prefill", "train", "lora"))
    batch_size: int = field(1, at_least=1)
    tokens: int = field(2048, at_least=1)
    stack_layers: bool = True
    remat: str = field("block", one_of=("none", "dots", "block"))
    loss_chunks: int = field(8, at_least=1)
    microbatches: int = field(1, at_least=1)
    static: bool = True
    rows: tuple[Any, ...] = ()
    benchmarks: str = "docs/benchmarks"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """The fields of every benchmark's config."""

    kind: str = field(
        one_of=(
            "decode",
            "generation",
            "latency",
            "throughput",
            "engine",
            "kernels",
            "training",
        )
    )
    accelerator: bool = True
    isolate: bool = False
    copy_bytes: int = field(0, at_least=0)
    matrix: int = field(0, at_least=0)
    seed: int = field(0, **_SEED)
    repeats: int = field(5, at_least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelsBenchmark(Benchmark):
    """A benchmark of several models, one after another."""

    models: tuple[str, ...] = field(filled=True)
    shapes: dict[str, Any] = dataclasses.field(default_factory=dict)
    burst: int = field(32, at_least=1)
    stack_layers: bool | None = None
    mesh: MeshShape = dataclasses.field(default_factory=MeshShape)
    prompt: int = field(at_least=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decode(ModelsBenchmark):
    """The config of a benchmark of the kind `decode`."""

    tokens: int = field(at_least=2)
    positions: tuple[int, ...] = ()
    stream: bool = False
    long_prompt: int = field(0, at_least=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation(ModelsBenchmark):
    """The config of a benchmark of the kind `generation`."""

    prompt: int = field(at_least=1)
    tokens: int = field(at_least=2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latency(ModelsBenchmark):
    """The config of a benchmark of the kind `latency`."""

    prompt: int = field(at_least=1)
    tokens: tuple[int, ...] = field(filled=True)
    most: tuple[int, ...] = field(filled=True)
    repeat_most: int = field(at_least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Throughput(ModelsBenchmark):
    """The config of a benchmark of the kind `throughput`."""

    prompt: int = field(at_least=1)
    tokens: int = field(at_least=1)
    batch_sizes: tuple[int, ...] = field(filled=True)
    prefill_tokens: int = field(at_least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineWork(Benchmark):
    """The config of a benchmark of the kind `engine`."""

    models: tuple[str, ...] = field(filled=True)
    shapes: dict[str, Any] = dataclasses.field(default_factory=dict)
    burst: int = field(16, at_least=1)
    stack_layers: bool | None = None
    mesh: MeshShape = dataclasses.field(default_factory=MeshShape)
    workloads: tuple[str, ...] = field(filled=True)
    slots: int = field(at_least=1)
    rows: tuple[int, ...] = ()
    offline: tuple[tuple[int, ...], ...] = field(filled=True)
    offline_requests: int | None = field(None, at_least=1)
    static_batch: int = field(at_least=0)
    full: tuple[int, ...] = field(filled=True, at_least=1)
    concurrent: tuple[int, ...] = field(filled=True)
    arrivals: int = field(at_least=2)
    arriving: tuple[int, ...] = field(filled=True)
    conversations: int = field(at_least=1)
    turns: int = field(at_least=2)
    uncached: int = field(at_least=1)
    system: int = field(at_least=1)
    said: int = field(at_least=1)
    answered: int = field(at_least=1)
    cache_bytes: int = field(at_least=0)
    first: tuple[int, ...] = field(filled=True)
    firsts: int = field(at_least=1)
    every: tuple[int, ...] = field(at_least=1)
    clients: tuple[int, ...] = field(filled=True, at_least=1)
    rounds: int = field(at_least=1)
    served: tuple[int, ...] = field(filled=True, at_least=1)
    document: int = field(at_least=1)
    forks: int = field(at_least=1)
    speculated: tuple[int, ...] = field(filled=True)
    draft: int = field(at_least=1, at_most=63)
    draft_model: str | None = None
    steady: int = field(at_least=10)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernels(Benchmark):
    """The config of a benchmark of the kind `kernels`."""

    model: str = field(filled=True)
    shapes: dict[str, Any] = dataclasses.field(default_factory=dict)
    operations: tuple[str, ...] = field(filled=True)
    dtype: str = field(one_of=DTYPES)
    quant_type: str = field(one_of=("nf4", "fp4"))
    rows: tuple[int, ...] = field(filled=True)
    time: int = field(at_least=1)
    chunk: int = field(at_least=1)
    spread_bytes: int = field(at_least=1)
    seconds: float = field(at_least=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(Benchmark):
    """The config of a benchmark of the kind `training`."""

    model: dict[str, Any]
    lengths: tuple[int, ...] = field(filled=True)
    tokens: int = field(at_least=1)
    variants: tuple[str, ...] = field(filled=True)
    dtype: str = field(one_of=DTYPES)
    document: int = field(0, at_least=0)
    mesh: MeshShape = dataclasses.field(default_factory=lambda: MeshShape(data=-1))


_BENCHMARKS = {
    "decode": Decode,
    "generation": Generation,
    "latency": Latency,
    "throughput": Throughput,
    "engine": EngineWork,
    "kernels": Kernels,
    "training": Training,
}


def study(values: Mapping[str, Any]) -> type:
    """The config of `experiments.study`, whose kind decides; its package needs the extra [train]."""
    from experiments import study_schema

    kinds = study_schema.KINDS
    kind = values.get("kind")
    return kinds.get(kind, study_schema.Named) if isinstance(kind, str) else study_schema.Named


def train(values: Mapping[str, Any]) -> type:
    """Returns the dataclass of the config of `experiments.train`; its package needs the extra [train]."""
    from experiments import train_schema

    return train_schema.Train


def benchmark(values: Mapping[str, Any]) -> type:
    """Returns the dataclass of the config of `experiments.benchmark`, whose kind decides."""
    kind = values.get("kind")
    return _BENCHMARKS.get(kind, Benchmark) if isinstance(kind, str) else Benchmark


def _always(schema: type) -> Callable[[Mapping[str, Any]], type]:
    return lambda values: schema


COMMANDS: dict[str, Callable[[Mapping[str, Any]], type]] = {
    "sample": _always(Sample),
    "serve": _always(Serve),
    "train": train,
    "pack": _always(Pack),
    "convert": _always(Convert),
    "evaluate": _always(Evaluate),
    "benchmark": benchmark,
    "quantization_quality": _always(QuantizationQuality),
    "compare_training": _always(CompareTraining),
    "compile_tpu": _always(CompileTPU),
    "inspect": _always(Inspect),
    "study": study,
}
