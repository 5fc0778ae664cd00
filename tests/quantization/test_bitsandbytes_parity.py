"""Against the real bitsandbytes and transformers, on the CPU."""

import jax
import numpy as np
import pytest

from griffin_jax.quantization import QuantizationConfig, dequantize, quantize
from griffin_jax.quantization.bitsandbytes import from_arrays, to_arrays
from tests.quantization.test_tensor import assert_bits_equal, bits
from tests.quantization.weights import weights

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch")
functional = pytest.importorskip("bitsandbytes.functional")
quantization_config = pytest.importorskip("transformers.utils.quantization_config")

from tests.quantization.record_goldens import quantized, to_bits, to_torch  # noqa: E402

NAME = "layer.weight"


@pytest.fixture(autouse=True)
def one_thread_without_compilation():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")
    torch.set_num_threads(threads)


def assert_equals_bitsandbytes(weight, quant_type, block_size, double, message):
    tensor = quantize(weight, quant_type, block_size=block_size, double_quant=double)
    for what, theirs in quantized(weight, quant_type, block_size, double).items():
        if what.startswith("values in "):
            ours = dequantize(tensor, what.removeprefix("values in "))
        else:
            ours = np.reshape(getattr(tensor, what), theirs.shape)
        assert_bits_equal(ours, theirs, f"{message} {what}")


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_hard_weights_quantize_bit_for_bit_alike(dtype, quant_type, double):
    for shape in ((64, 256), (9, 77)):
        for name, weight in weights(dtype, shape):
            assert_equals_bitsandbytes(weight, quant_type, 64, double, name)


@pytest.mark.parametrize("block_size", [32, 64, 128, 256, 512, 1024, 2048, 4096])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_every_block_size_quantizes_bit_for_bit_alike(quant_type, block_size):
    random = np.random.default_rng(block_size)
    weight = random.standard_t(3, (6, 4096)).astype(np.float32)
    assert_equals_bitsandbytes(weight, quant_type, block_size, True, "whole blocks:")


def test_a_large_weight_double_quantizes_bit_for_bit_alike():
    weight = np.random.default_rng(0).standard_normal((1200, 2048), np.float32)
    assert weight.size // 64 > 2**15
    assert_equals_bitsandbytes(weight, "nf4", 64, True, "more scales than PyTorch adds at once:")


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("storage", ["uint8", "float16", "bfloat16", "float32"])
def test_the_stored_arrays_are_those_of_bitsandbytes(storage, quant_type, double):
    weight = np.random.default_rng(0).standard_normal((32, 192), np.float32)
    packed, state = functional.quantize_4bit(
        to_torch(weight),
        blocksize=64,
        quant_type=quant_type,
        compress_statistics=double,
        quant_storage=getattr(torch, storage),
    )
    theirs = {NAME: packed}
    theirs |= {f"{NAME}.{key}": value for key, value in state.as_dict(packed=True).items()}
    ours = to_arrays(quantize(weight, quant_type, double_quant=double), NAME, storage)

    assert set(ours) == set(theirs)
    for key, array in theirs.items():
        assert (ours[key].dtype.name, ours[key].shape) == (
            str(array.dtype).removeprefix("torch."),
            tuple(array.shape),
        )
        np.testing.assert_array_equal(bits(ours[key]), to_bits(array), err_msg=key)


@pytest.mark.parametrize("double", [False, True])
def test_bitsandbytes_reads_our_arrays_and_we_read_its(double):
    weight = np.random.default_rng(0).standard_normal((32, 192), np.float32)
    ours = to_arrays(quantize(weight, double_quant=double), NAME)
    tensors = {key: torch.from_numpy(array.copy()) for key, array in ours.items()}
    packed = tensors.pop(NAME)
    state = functional.QuantState.from_dict(tensors, torch.device("cpu"))
    values = functional.dequantize_4bit(packed, state)
    np.testing.assert_array_equal(values.numpy(), dequantize(from_arrays(ours, NAME)))

    packed, state = functional.quantize_4bit(
        to_torch(weight), quant_type="nf4", blocksize=64, compress_statistics=double
    )
    arrays = {f"{NAME}.{key}": value.numpy() for key, value in state.as_dict(packed=True).items()}
    read = from_arrays(arrays | {NAME: packed.numpy()}, NAME)
    jax.tree.map(np.testing.assert_array_equal, read, quantize(weight, double_quant=double))


@pytest.mark.parametrize(
    "options",
    [
        {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float16"},
        {"bnb_4bit_use_double_quant": True, "bnb_4bit_quant_storage": "bfloat16"},
        {"llm_int8_skip_modules": ["lm_head", "model.layers.1"]},
    ],
)
def test_the_configuration_is_the_json_of_transformers(options):
    theirs = quantization_config.BitsAndBytesConfig(load_in_4bit=True, **options).to_dict()
    theirs["quant_method"] = theirs["quant_method"].value
    assert QuantizationConfig.from_dict(theirs).to_dict() == theirs
    again = quantization_config.BitsAndBytesConfig.from_dict(
        QuantizationConfig.from_dict(theirs).to_dict()
    )
    assert again.to_dict() == theirs


@pytest.mark.parametrize(
    "pattern", ["lm_head", "model.layers.1", "up_proj", r"model\.layers\.\d\.", "proj"]
)
def test_modules_are_skipped_where_transformers_skips_them(pattern):
    from transformers.quantizers.quantizers_utils import should_convert_module

    config = QuantizationConfig(llm_int8_skip_modules=[pattern])
    modules = [
        "lm_head",
        "model.layers.1.mlp_block.up_proj",
        "model.layers.12.temporal_block.q_proj",
    ]
    for module in modules:
        assert config.skips(module) != should_convert_module(module, [pattern])
