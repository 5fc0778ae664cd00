"""Which kernels a step of many rows goes through on a Hopper GPU, seen in the traced program."""

import functools
import importlib
import re

import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util
from jax.sharding import AbstractMesh, AxisType

from griffin_jax.checkpoints.random_weights import abstract_weights
from griffin_jax.config import preset
from griffin_jax.devices import AXES
from griffin_jax.kernels import choice
from griffin_jax.kernels.mosaic_gpu import backend, dense_plan, plan
from griffin_jax.models import Griffin, init_state
from griffin_jax.quantization import QuantizationConfig

SHAPE = {
    "width": 512,
    "mlp_width": 512,
    "num_heads": 2,
    "recurrence_width": 256,
    "head_size": 256,
    "attention_window": 64,
    "num_layers": 3,
    "vocab_size": 64,
}
CONFIG = preset("tiny").replace(**SHAPE)
KERNEL_NAMES = "attention_rows|attention_sum|recurrent_step|packed_matmul|dense_matmul|add_and_norm"
STEPS = {"attention_rows", "recurrent_step"}
SUMS = {"attention_sum", "add_and_norm"}
TWO = AbstractMesh((1, 1, 2, 1), AXES, axis_types=(AxisType.Auto,) * 4)


@pytest.fixture(scope="module", params=["nf4", "bfloat16"])
def weights(request):
    nf4 = QuantizationConfig(bnb_4bit_quant_type="nf4") if request.param == "nf4" else None
    flat = abstract_weights(CONFIG, "bfloat16", nf4)
    return request.param, traverse_util.unflatten_dict(flat, sep="/")


@pytest.fixture
def launched(monkeypatch, weights):
    """The kernels of Mosaic GPU in a call with tokens of this shape, by name."""
    monkeypatch.setattr(backend, "missing", lambda: None)
    monkeypatch.setattr(choice, "platform", lambda: "gpu")
    model = Griffin(CONFIG, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)

    def trace(rows, time):
        def call(params, tokens, state):
            return model.apply({"params": params}, tokens, state)

        state = jax.eval_shape(lambda: init_state(CONFIG, rows, jnp.bfloat16))
        tokens = single(rows, time, dtype=jnp.int32)
        traced = str(jax.make_jaxpr(call)(weights[1], tokens, state))
        return set(re.findall(rf"\bname=({KERNEL_NAMES})", traced))

    return trace


@pytest.mark.parametrize("rows", [2, 16, 64, 128])
def test_a_step_of_many_rows_goes_through_the_kernels(launched, weights, rows):
    products = (
        {"packed_matmul"} if weights[0] == "nf4" else {"dense_matmul"} if rows < 65 else set()
    )
    sums = SUMS if products else {"attention_sum"}
    assert launched(rows, 1) == STEPS | sums | products


@pytest.mark.parametrize("rows", [1, 16])
def test_so_does_each_of_two_devices_by_its_part(launched, weights, rows):
    products = {"packed_matmul"} if weights[0] == "nf4" else {"dense_matmul"}
    with jax.sharding.use_abstract_mesh(TWO):
        assert launched(rows, 1) == STEPS | products


def test_a_prompt_has_their_products_alone(launched, weights):
    assert launched(2, 8) == ({"packed_matmul"} if weights[0] == "nf4" else set())


def half(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)


def single(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


ROWS = single(16, dtype=jnp.int32)
GATE = [half(16, 256, 256), half(16, 256)]
GATED = plan.plan(16, (12288, 12288), 4096, 4, gated=True)
TOKENS, RING = half(16, 24, 256), half(16, 2048, 256)
BRANCHES = half(16, 4096), half(16, 4096), [half(4096), half(4096)]
STATE = half(16, 3, 4096), single(16, 4096)
TAPS = [half(4, 4096), half(4096)]
DENSE = dense_plan.dense_plan(16, (12288, 12288), 4096, gated=True)
WEIGHTS = [[single(12288, 2048, dtype=jnp.uint8)] * 2, [single(12288, 64)] * 2, [half(12288)] * 2]
KERNELS = {
    "attention_kernel.attend_to_rings": ({"parts": 8}, [TOKENS, RING, RING, ROWS, ROWS, ROWS]),
    "recurrent_kernel.recurrent_step": (
        {"operand": True},
        [*BRANCHES, *STATE, TAPS, [GATE, GATE], half(4096), ROWS],
    ),
    "norm_kernel.add_and_norm": (
        {"eps": 1e-6, "operand": True},
        [half(16, 4096), single(2, 16, 4096), half(4096), half(4096)],
    ),
    "attention_sum_kernel.add_up": (
        {"heads": 16, "dtype": jnp.dtype("bfloat16"), "operand": True},
        [single(16, 8, 16, 256), single(16, 8, 2, 64)],
    ),
    "dense_kernel.multiply": (
        {"plan": DENSE},
        [half(16, 4096), [half(12288, 4096)] * 2, [half(12288)] * 2],
    ),
    "packed_kernel.multiply": (
        {"plan": GATED, "quant_type": "nf4", "fetched": (2, 1024)},
        [single(16, 4096, dtype=jnp.float16), *WEIGHTS, single(4096, 6144, dtype=jnp.uint8)],
    ),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_this_version_of_jax_lowers_the_kernels_for_a_gpu(kernel):
    options, shapes = KERNELS[kernel]
    module, name = kernel.split(".")
    function = getattr(importlib.import_module(f"griffin_jax.kernels.mosaic_gpu.{module}"), name)
    traced = jax.jit(functools.partial(function, **options)).trace(*shapes)
    assert "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()
