"""What the comparison of greedy texts says of texts that are known."""

import jax.numpy as jnp
import numpy as np

from griffin_jax.kernels import choice
from griffin_jax.language_model import LanguageModel
from tests.kernels import greedy_texts


def test_texts_part_where_they_first_differ(monkeypatch):
    reference = np.array([[1, 1, 1], [2, 2, 2], [3, 3, 3]])  # [T, B]
    margins = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]], np.float32)
    kernels, plain = reference.copy(), reference.copy()
    kernels[1:, 1] = 7
    kernels[2, 2] = 8
    plain[0, 0] = 9
    texts = iter([(reference, margins), (kernels, None), (plain, None)])
    monkeypatch.setattr(greedy_texts, "greedy", lambda *_: next(texts))
    lm = LanguageModel(greedy_texts.shape(3), {"weight": jnp.ones(2, jnp.bfloat16)})
    by_kernels, by_definitions = greedy_texts.compare(lm, rows=3, tokens=3, prompt=2)
    np.testing.assert_array_equal(by_kernels.first, [3, 1, 2])
    np.testing.assert_allclose(by_kernels.margins, [0.5, 0.9])
    np.testing.assert_array_equal(by_definitions.first, [0, 3, 3])
    assert str(by_definitions) == (
        "2 of 3 equal, 2.0 tokens to the first difference, margins there 0.1000, at most 0.1000"
    )


def test_definitions_serve_instead_of_any_kernel_of_a_platform():
    served = {"fast_gpu": None, "fast_tpu": None, "fast_cpu": None, "reference": None}
    assert choice.choose("product", served) != "reference"
    with greedy_texts.definitions():
        assert choice.choose("product", served) == "reference"
