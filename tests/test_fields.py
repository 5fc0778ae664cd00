"""One checker for numbers, ranges and types, whether they come from JSON, a flag or a caller."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax import GriffinConfig, QuantizationConfig, SamplingConfig
from griffin_jax.config import TINY
from griffin_jax.fields import check_fields, check_names, check_value, field
from griffin_jax.sharding import MeshShape
from griffin_jax.training import OptimizerConfig, TrainConfig
from griffin_jax.training.lora import LoRAConfig


@dataclasses.dataclass(frozen=True)
class Settings:
    rows: int = field(8, at_least=1, at_most=64)
    share: float | None = field(None, above=0, at_most=1)
    rest: int = field(1, at_least=1, also=(-1,))
    name: str = field("x", filled=True)
    kind: str = field("a", one_of=("a", "b"))
    flag: bool = False
    many: tuple[int, ...] = ()

    def __post_init__(self):
        check_fields(self, "settings.")


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"rows": 0},
            "settings.rows must be a whole number of at least 1 and at most 64, got 0",
        ),
        ({"rows": 1.0}, "rows must be a whole number of at least 1 and at most 64, got 1.0"),
        ({"rows": True}, "rows must be a whole number .*, got True"),
        ({"rows": "8"}, "rows must be a whole number .*, got '8'"),
        ({"rows": None}, "rows must be a whole number .*, got None"),
        ({"rows": 10**30}, "rows must be .* at most 64, got 1000"),
        ({"share": math.nan}, "share must be a number above 0 and at most 1, or None, got nan"),
        ({"share": math.inf}, "share must be .*, got inf"),
        ({"share": 10**400}, "share must be"),
        ({"share": 0}, "share must be a number above 0 .*, got 0"),
        ({"share": np.float32(2)}, "share must be .* at most 1, or None, got 2.0"),
        ({"share": jnp.zeros(2)}, "share must be a number"),
        ({"rest": -2}, "rest must be a whole number of at least 1, or -1, got -2"),
        ({"name": ""}, "name must be text, not empty, got ''"),
        ({"name": b"x"}, "name must be text, not empty, got b'x'"),
        ({"kind": "c"}, "kind must be one of a, b, got 'c'"),
        ({"kind": ["a"]}, r"kind must be one of a, b, got \['a'\]"),
        ({"flag": 1}, "flag must be true or false, got 1"),
        ({"many": "12"}, "many must be a list, got '12'"),
        ({"many": (1, "2")}, r"many\[1\] must be a whole number, got '2'"),
        ({"many": 5}, "many must be a list, got 5"),
    ],
)
def test_a_wrong_value_is_one_line_that_says_what_would_be_right(values, line):
    with pytest.raises(ValueError, match=line) as error:
        Settings(**values)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_scalars_of_numpy_and_jax_become_plain_ones():
    settings = Settings(
        rows=np.int64(3), share=jnp.float32(0.5), rest=-1, flag=np.True_, many=np.arange(2)
    )
    values = dataclasses.astuple(settings)
    assert values == (3, 0.5, -1, "x", "a", True, (0, 1))
    assert [type(value) for value in values[:3]] == [int, float, int]
    assert type(settings.flag) is bool


def test_a_far_limit_is_told_to_those_who_pass_it():
    with pytest.raises(ValueError, match=r"of at least 1, got 0$"):
        check_value("size", 0, int, at_least=1, at_most=10**9)
    with pytest.raises(ValueError, match=r"at most 1,000,000,000, got 1000000000000$"):
        check_value("size", 10**12, int, at_least=1, at_most=10**9)


def test_an_unknown_name_tells_of_the_nearest():
    with pytest.raises(ValueError, match=r"config has no field 'temprature'; did you mean temper"):
        check_names("config", ["temprature"], ["temperature", "top_k"])
    with pytest.raises(ValueError, match="config has no field 'zzz'; there are temperature, top_k"):
        check_names("config", ["zzz"], ["temperature", "top_k"])


NUMBERS = [math.nan, math.inf, -math.inf, -1, "1", True, [1], 10**40]


@pytest.mark.parametrize("value", [*NUMBERS, 0, 0.5, 2**62])
@pytest.mark.parametrize(
    "name",
    [
        "vocab_size",
        "width",
        "mlp_width",
        "num_layers",
        "num_heads",
        "num_kv_heads",
        "head_size",
        "recurrence_width",
        "attention_window",
        "conv_width",
    ],
)
def test_no_odd_size_of_a_model_passes(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be a whole number"):
        TINY.replace(**{name: value})


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize("name", ["rope_fraction", "norm_eps", "logits_soft_cap"])
def test_no_odd_number_of_a_model_passes(name, value):
    if name == "logits_soft_cap" and value == 10**40:
        return  # a cap that large caps nothing
    with pytest.raises(ValueError, match=rf"^{name} must be a number"):
        TINY.replace(**{name: value})


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"rope_base": -5.0}, "rope_base must be a number above 0, got -5.0"),
        ({"rope_fraction": 7}, "rope_fraction must be a number of at least 0 and at most 1, got 7"),
        ({"norm_eps": "1e-6"}, "norm_eps must be a number of at least 0 and below 1, got '1e-6'"),
        ({"num_layers": 10**5}, "num_layers must be .* at most 10,000, got 100000"),
        ({"conv_width": 10**6}, "conv_width must be .* at most 1,024, got 1000000"),
        (
            {"attention_window": 2**31 - 1},
            "attention_window must be .* at most 16,777,216, or None",
        ),
        ({"vocab_size": 10**15}, "vocab_size must be .* at most 16,777,216, got"),
        (
            {"block_pattern": "recurrent"},
            "block_pattern must be a list, not empty, got 'recurrent'",
        ),
        ({"block_pattern": ()}, "block_pattern must be a list, not empty"),
        ({"tie_embeddings": "yes"}, "tie_embeddings must be true or false, got 'yes'"),
    ],
)
def test_a_model_that_cannot_be_names_the_field(values, line):
    with pytest.raises(ValueError, match=line):
        TINY.replace(**values)


@pytest.mark.parametrize("values", [None, 5, "x", [1]])
def test_a_model_is_described_by_a_dict(values):
    with pytest.raises(ValueError, match="expected a dict of fields"):
        GriffinConfig.from_dict(values)


TRAIN = {"model": TINY, "optimizer": OptimizerConfig(warmup_steps=1), "steps": 9}
TRAIN |= {"batch_size": 2, "seq_len": 16}


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"steps": 0}, "steps must be"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"batch_size": -1}, "batch_size must be"),
        ({"log_every": 0}, "log_every must be a whole number of at least 1, got 0"),
        ({"eval_every": 0}, "eval_every must be"),
        ({"eval_batches": 0}, "eval_batches must be"),
        ({"checkpoint_every": 0}, "checkpoint_every must be"),
        ({"max_seconds": -5}, "max_seconds must be a number of at least 0, or None, got -5"),
        ({"max_seconds": math.nan}, "max_seconds must be"),
        ({"dtype": "float64"}, "dtype must be one of float32, float16, bfloat16, got 'float64'"),
        ({"remat": "some"}, "remat must be one of"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**32}, "seed must be"),
        ({"dropout": 1}, "dropout must be a number of at least 0 and below 1, got 1"),
        ({"ema": math.nan}, "ema must be"),
        ({"z_loss": -1e-4}, "z_loss must be"),
        ({"model": {}}, "model must be a GriffinConfig, got {}"),
        ({"lora": {"rank": 4}}, "lora must be a LoRAConfig, or None"),
        ({"mesh": "x"}, "mesh must be a MeshShape"),
    ],
)
def test_a_run_that_cannot_be_names_the_field(values, line):
    with pytest.raises(ValueError, match=line):
        TrainConfig(**(TRAIN | values))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: OptimizerConfig(learning_rate=-1), "optimizer.learning_rate must be"),
        (lambda: OptimizerConfig(learning_rate=math.nan), "optimizer.learning_rate .* got nan"),
        (lambda: OptimizerConfig(warmup_steps=-1), "optimizer.warmup_steps must be"),
        (lambda: OptimizerConfig(warmup_steps=0.5), "optimizer.warmup_steps must be a whole"),
        (lambda: OptimizerConfig(clip_norm=0), "optimizer.clip_norm must be a number above 0"),
        (lambda: OptimizerConfig(b1=1.0), "optimizer.b1 must be"),
        (lambda: LoRAConfig(rank=2.0), "lora.rank must be a whole number"),
        (lambda: LoRAConfig(alpha="32"), "lora.alpha must be a number"),
        (lambda: LoRAConfig(targets="q_proj"), "lora.targets must be a list"),
        (lambda: MeshShape(data=0), "mesh.data must be a whole number of at least 1, or -1, got 0"),
        (lambda: MeshShape(model=1.0), "mesh.model must be a whole number"),
        (lambda: QuantizationConfig(llm_int8_threshold=math.nan), "llm_int8_threshold must be"),
        (lambda: QuantizationConfig(bnb_4bit_quant_type=4), "bnb_4bit_quant_type must be one of"),
        (lambda: SamplingConfig(temperature="0.8"), "temperature must be a number .*got '0.8'"),
        (lambda: SamplingConfig(temperature=None), "temperature must be a number"),
        (lambda: SamplingConfig(temperature=1e30), "temperature must be .* at most 1,000,000"),
        (lambda: SamplingConfig(top_k=2.0), "top_k must be a whole number of at least 1, or None"),
        (lambda: SamplingConfig(top_k=True), "top_k must be a whole number"),
        (lambda: SamplingConfig(top_p=-0.5), "top_p must be a number above 0 and at most 1"),
        (lambda: SamplingConfig(min_p="0.1"), "min_p must be"),
        (lambda: SamplingConfig(repetition_penalty=1e-30), "repetition_penalty must be"),
    ],
)
def test_every_config_of_the_library_meets_the_same_check(make, line):
    with pytest.raises(ValueError, match=line):
        make()


def test_quantization_means_nf4_unless_a_file_says_otherwise():
    assert QuantizationConfig().bnb_4bit_quant_type == "nf4"
    assert QuantizationConfig.from_dict({"load_in_4bit": True}).bnb_4bit_quant_type == "fp4"
