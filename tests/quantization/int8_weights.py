"""Weights that are hard to quantize to 8 bits exactly: every range of float16, and values on ties."""

from collections.abc import Iterator

import numpy as np

from tests.quantization.weights import DTYPES


def weights(dtype: str, shape: tuple[int, int] = (6, 96)) -> Iterator[tuple[str, np.ndarray]]:
    """Named weights [out, in] that float16 can hold, cast to `dtype`."""
    random = np.random.default_rng(0)
    normal = random.standard_normal(shape)
    signs = random.choice([-1, 1], shape)
    cases = {
        "random": normal,
        "heavy-tailed": np.clip(random.standard_t(1.2, shape), -60000, 60000),
        "constant": np.full(shape, -0.37),
        "zero": np.where(signs > 0, 0.0, -0.0),
        "one row of zeros": np.where(np.arange(shape[0])[:, None] == 1, 0.0, normal),
        "subnormal in float16": normal * 2.0**-22,
        "on the edge of float16's subnormal numbers": normal * 2.0**-14,
        "between float16's subnormal numbers": random.integers(-99, 99, shape) * 2.0**-25,
        "below float16's smallest": normal * 2.0**-27,
        "far below": normal * 1e-38,
        "huge": random.uniform(-1, 1, shape) * 65000,
        "every exponent": signs * np.exp2(random.uniform(-26, 15.9, shape)),
        # An integer and a half of what the largest of the row stands for.
        "on ties": (random.integers(-126, 126, shape) + 0.5) / 127,
        "powers of two on ties": (random.integers(-126, 126, shape) + 0.5) / 128,
    }
    for name, values in cases.items():
        values = values.astype(np.float32)
        if name.endswith("on ties"):
            values[:, 0] = 127 / 128 if name.startswith("powers") else 1
        yield name, values.astype(DTYPES[dtype])
