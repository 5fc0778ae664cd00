"""Timing, compilation, limits, memory and the profiler."""

import time

import jax
import jax.numpy as jnp
import pytest

from griffin_jax.benchmarks import kernel_profile, machine, memory
from griffin_jax.benchmarks.machine import Limits
from griffin_jax.benchmarks.timing import Timing, compilation, measure
from griffin_jax.kernels import choice

LIMITS = Limits(bytes_per_second=100.0, flops_per_second=1000.0, float32_flops_per_second=500.0)


def test_a_timing_is_the_median_with_its_range():
    timing = Timing.of([3.0, 1.0, 2.0], per=10)
    assert (timing.median, timing.low, timing.high, timing.repeats) == (0.2, 0.1, 0.3, 3)
    assert timing.spread == pytest.approx(1.0)
    assert timing.divided(2).median == 0.1


def test_a_measured_call_waits_for_what_it_returns_and_is_warmed_up():
    calls = []

    def call():
        calls.append(time.perf_counter())
        time.sleep(0.01)
        return jnp.zeros(3)

    timing = measure(call, warmup=2, repeats=3)
    assert len(calls) == 5
    assert timing.low >= 0.01


def test_compilation_is_counted_once():
    double = jax.jit(lambda x: 2 * x + 1)
    x = jnp.ones(7)
    with compilation() as first:
        double(x)
    with compilation() as second:
        double(x)
    assert first.programs == 1
    assert first.seconds > 0
    assert (second.programs, second.seconds) == (0, 0.0)


def test_limits_bound_by_the_scarcer_of_bandwidth_and_matrix_rate():
    assert LIMITS.floor_seconds(200, 1000) == 2.0
    assert LIMITS.floor_seconds(100, 3000) == 3.0
    assert LIMITS.floor_seconds(100, 3000, "float32") == 6.0
    shares = LIMITS.shares(4.0, 200, 1000, "float32")
    assert (shares["bandwidth_share"], shares["matmul_share"]) == (0.5, 0.5)


def test_the_devices_limits_are_measured():
    limits = machine.measure_limits(copy_bytes=2**20, size=64)
    assert min(limits.to_dict().values()) > 0
    assert machine.describe()["device"] == jax.devices()[0].device_kind


@pytest.mark.parametrize(
    "error",
    [jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating"), MemoryError()],
)
def test_running_out_of_memory_is_one_line(error):
    with pytest.raises(memory.OutOfMemory) as caught, memory.meeting_limits():
        raise error
    assert "\n" not in str(caught.value)
    assert str(caught.value)


def test_other_errors_stay_what_they_are():
    with pytest.raises(jax.errors.JaxRuntimeError), memory.meeting_limits():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


@pytest.mark.slow
def test_the_profile_names_what_ran_and_counts_launches():
    @jax.jit
    def product(x):
        return jnp.dot(x, x)

    x = jnp.ones((256, 256))
    product(x).block_until_ready()
    kernels = kernel_profile.profile(lambda: [product(x) for _ in range(3)])
    assert sum(kernel.launches for kernel in kernels) >= 3
    assert all(kernel.seconds >= 0 for kernel in kernels)
    text = kernel_profile.format_profile(kernels, per=3, top=1)
    assert "all" in text.splitlines()[-1]


class Event:
    def __init__(self, name, start, duration):
        self.name, self.start_ns, self.duration_ns = name, start, duration


def test_a_kernels_time_is_without_that_of_what_ran_inside_of_it():
    events = [Event("loop", 0, 10), Event("a", 1, 4), Event("b", 6, 2), Event("c", 12, 1)]
    times = dict(kernel_profile._self_times(events))
    assert times == {"loop": 4, "a": 4, "b": 2, "c": 1}


def test_the_kernels_of_an_operation_can_be_listed():
    with choice.recorded() as record:
        choice.choose("sum", {"fast_gpu": None, "plain": None})
    assert record == {"sum": ("fast_gpu", "plain")}
    choice.choose("product", {"plain": None})
    assert "product" not in record
