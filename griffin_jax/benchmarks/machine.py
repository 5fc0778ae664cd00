"""The machine that figures come from, and what it can do at best: measured, not looked up."""

import dataclasses
import functools
import os
import platform
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

from griffin_jax.benchmarks.memory import limit_bytes
from griffin_jax.benchmarks.timing import measure
from griffin_jax.host import processor

_PACKAGES = ("jax", "jaxlib", "flax", "numpy")


@dataclasses.dataclass(frozen=True)
class Limits:
    """The bandwidth and the matrix rates that a device reaches, which bound a model.

    Attributes:
      bytes_per_second: The bandwidth of a copy within the device's memory, bytes read and bytes written.
      flops_per_second: The rate of a square bfloat16 matrix product, accumulated in float32.
      float32_flops_per_second: The rate of a square float32 one, at full precision.
    """

    bytes_per_second: float
    flops_per_second: float
    float32_flops_per_second: float

    def floor_seconds(self, num_bytes: float, flops: float, dtype: str = "bfloat16") -> float:
        """Returns the least time for so many bytes and FLOPs, each at its limit and both at
        once.
        """
        return max(num_bytes / self.bytes_per_second, flops / self._rate(dtype))

    def times(self, devices: int) -> "Limits":
        """Returns what so many devices reach together."""
        return Limits(*(devices * value for value in dataclasses.astuple(self)))

    def shares(
        self, seconds: float, num_bytes: float, flops: float, dtype: str = "bfloat16"
    ) -> dict[str, float]:
        """Returns what of both limits was reached, between 0 and 1 but for measuring errors."""
        return {
            "bytes": num_bytes,
            "flops": flops,
            "bandwidth_share": num_bytes / seconds / self.bytes_per_second,
            "matmul_share": flops / seconds / self._rate(dtype),
        }

    def _rate(self, dtype):
        return self.float32_flops_per_second if dtype == "float32" else self.flops_per_second

    def to_dict(self) -> dict[str, float]:
        """Returns plain values for JSON."""
        return dataclasses.asdict(self)


def measure_limits(copy_bytes: int | None = None, size: int | None = None) -> Limits:
    """Measures both limits on the default device.

    Args:
      copy_bytes: The size of the array that is copied; None or 0 is more than a cache holds.
      size: Rows and columns of the matrices that are multiplied; None or 0 is what fills a device.
    """
    default_bytes, default_size = _sizes(jax.default_backend())
    copy_bytes = copy_bytes or default_bytes
    size = size or default_size
    seconds = _seconds_each(lambda x: x + 1, jnp.ones(copy_bytes // 4, jnp.float32))
    rates = {}
    for dtype in ("bfloat16", "float32"):
        # They have unit norm, so that products of products neither vanish nor overflow.
        keys = jax.random.split(jax.random.key(0))
        a, b = (jax.random.normal(key, (size, size), dtype) * size**-0.5 for key in keys)
        rates[dtype] = 2 * size**3 / _seconds_each(functools.partial(_product, b), a)
    return Limits(2 * copy_bytes / seconds, rates["bfloat16"], rates["float32"])


def are_limits(platform: str, copy_bytes: int | None = None, size: int | None = None) -> bool:
    """Returns whether `measure_limits` with these arguments shows what a device can do.

    A copy that stays in a cache and a product that does not fill the device show something else: a
    run may ask for them to be done with it, and nothing is a share of what they come to.
    """
    default_bytes, default_size = _sizes(platform)
    return (copy_bytes or default_bytes) >= default_bytes and (size or default_size) >= default_size


def _sizes(platform):
    """Returns how many bytes are more than a cache holds, and what size of matrices fills a device."""
    return (2**28, 2048) if platform == "cpu" else (2**31, 8192)


def _seconds_each(step, x):
    """Returns the seconds of one `step`, many of which follow one another on the device in one
    dispatch.
    """
    steps = 2 if jax.default_backend() == "cpu" else 20
    run = jax.jit(lambda x: jax.lax.fori_loop(0, steps, lambda _, x: step(x), x), donate_argnums=0)

    def call():
        nonlocal x
        x = run(x)
        return x

    return measure(call, warmup=1, repeats=5).median / steps


def _product(b, a):
    precision = "highest" if a.dtype == jnp.float32 else None
    return jnp.matmul(a, b, precision=precision, preferred_element_type=jnp.float32).astype(a.dtype)


def describe() -> dict[str, Any]:
    """Returns the machine and the versions of what matters on it, for the record."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "device_bytes": limit_bytes(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
