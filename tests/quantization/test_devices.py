"""On a machine with an accelerator: `JAX_PLATFORMS=cuda,cpu pytest tests/quantization`."""

import jax
import numpy as np
import pytest

from griffin_jax.quantization import dequantize, quantize
from tests.quantization.weights import DTYPES, weights

pytestmark = pytest.mark.skipif(jax.default_backend() == "cpu", reason="no accelerator here")


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_accelerator_makes_the_same_bytes_and_values_as_the_cpu(dtype, quant_type, double_quant):
    for name, weight in weights(dtype):
        made = []
        for device in (jax.devices("cpu")[0], jax.devices()[0]):
            with jax.default_device(device):
                tensor = quantize(
                    jax.device_put(weight, device), quant_type, double_quant=double_quant
                )
                made.append([*jax.tree.leaves(tensor), dequantize(tensor)])
        for on_cpu, on_accelerator in zip(*made, strict=True):
            np.testing.assert_array_equal(
                np.atleast_1d(on_accelerator).view(np.uint8),
                np.atleast_1d(on_cpu).view(np.uint8),
                err_msg=name,
            )
