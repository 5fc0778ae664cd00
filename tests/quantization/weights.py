"""Weights that are hard to quantize exactly: every range of float32, and values on midpoints."""

from collections.abc import Iterator

import ml_dtypes
import numpy as np

from griffin_jax.quantization import codes

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def weights(dtype: str, shape: tuple[int, int] = (4, 128)) -> Iterator[tuple[str, np.ndarray]]:
    """Named weights [out, in], cast to `dtype`; what the cast would make infinite is 7."""
    for name, values in _float32_weights(np.random.default_rng(0), shape):
        with np.errstate(over="ignore"):
            cast = values.astype(np.float32).astype(DTYPES[dtype])
        yield name, np.where(np.isfinite(cast), cast, cast.dtype.type(7))


def _float32_weights(random, shape):
    normal = random.standard_normal(shape)
    signs = random.choice([-1, 1], shape)
    yield "random", normal
    yield "heavy-tailed", random.standard_t(1.2, shape)
    yield "constant", np.full(shape, -0.37)
    yield "zero", np.where(signs > 0, 0.0, -0.0)
    yield "one block of zeros", np.where(np.arange(shape[0])[:, None] == 0, 0.0, normal)
    yield "tiny", normal * 1e-37
    yield "almost subnormal", normal * 1e-38
    yield "denormal", normal * 1e-41
    yield "huge", random.uniform(-1, 1, shape) * 3.3e38
    yield "every exponent", signs * np.exp2(random.uniform(-149, 127.9, shape))
    few = random.random(shape) < 0.1
    denormal = random.integers(-9, 10, shape) * 1.4e-45
    yield "denormal beside large", np.where(few, normal * 10.0 ** random.uniform(-3, 25), denormal)
    for quant_type in codes.CODE_BOOKS:
        points = np.append(codes.midpoints(quant_type), 1)
        scale = random.uniform(0.5, 2, (shape[0], 1)).astype(np.float32)
        near = np.resize(points.astype(np.float32), shape) * scale
        toward = np.where(signs > 0, np.float32(np.inf), np.float32(-np.inf))
        yield f"on the midpoints of {quant_type}", near
        yield f"beside the midpoints of {quant_type}", np.nextafter(near, toward)
