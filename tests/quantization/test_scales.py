import pathlib

import numpy as np
import pytest

from griffin_jax.quantization import codes, scales

GOLDENS = np.load(pathlib.Path(__file__).with_name("goldens.npz"))


def sequence(size):
    index = np.arange(1, size + 1)
    return (index * 7919 % 1009 / np.float32(1009)).astype(np.float32) ** 3


@pytest.mark.parametrize("key", [key for key in GOLDENS.files if key.startswith("mean|")])
def test_the_mean_has_the_bits_of_pytorchs_mean(key):
    size = int(key.partition("|")[2])
    assert scales.mean(sequence(size)).view(np.int32) == GOLDENS[key]


def test_the_second_level_is_off_by_at_most_half_a_step_of_its_code_book():
    absmax = np.random.default_rng(0).random(3000, np.float32)
    restored = scales.dequantize_scales(
        *scales.quantize_scales(absmax)[:2],
        codes.dynamic_map(),
        scales.quantize_scales(absmax)[2],
    )
    step = np.diff(codes.dynamic_map()).max()
    assert np.abs(restored - absmax).max() <= step / 2 * 1.01


def test_the_dynamic_map_is_increasing_and_symmetric_but_for_its_largest_value():
    book = codes.dynamic_map()
    assert (np.diff(book) > 0).all()
    assert book[-1] == 1
    np.testing.assert_array_equal(book[:127], -book[254:127:-1])
