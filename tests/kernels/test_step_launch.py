"""Phases of programs: in one launch and in several, what comes of them is the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from griffin_jax.kernels.step_gpu.launch import Phase, launch
from tests.kernels.lowering import for_gpu

ON_GPU = jax.default_backend() == "gpu"
PROGRAMS = 2048  # more than a GPU runs at once
SIZE = 16


def run(x, together, interpret=not ON_GPU):
    """Three phases: neighbours add up twice, from either side, and the input is overwritten."""
    length = PROGRAMS * SIZE
    like = jax.ShapeDtypeStruct((length,), jnp.float32)

    def add(source, target, step):
        def body(refs, i, wait):
            places = i * SIZE + jnp.arange(SIZE, dtype=jnp.int32)
            wait()
            # From programs far away, the ones that start last among them.
            other = jax.lax.rem(places + step, jnp.int32(length))
            refs[target][pl.ds(i * SIZE, SIZE)] = refs[source][places] + refs[source][other]

        return PROGRAMS, body

    def overwrite(refs, i, wait):
        wait()
        rows = pl.ds(i * SIZE, SIZE)
        refs["x"][rows] = -refs["x"][rows]

    phases = [
        Phase([add("x", "once", length - SIZE)], outputs={"once": like}),
        Phase(
            [add("once", "twice", length // 2), (PROGRAMS, overwrite)],
            outputs={"twice": like},
            updates={"x": x},
        ),
        Phase([add("twice", "thrice", SIZE)], outputs={"thrice": like}),
    ]
    arrays = {"counts": jnp.zeros(2, jnp.int32)}
    return launch(phases, arrays, together=together, name="add", interpret=interpret)


@pytest.mark.parametrize("together", [None, (1, 2), (2, 1), (1, 1, 1)])
def test_a_phase_reads_what_the_one_before_it_wrote(together):
    x = jax.random.normal(jax.random.key(0), (PROGRAMS * SIZE,))
    found = jax.jit(run, static_argnames="together")(x, together)
    once = x + jnp.roll(x, SIZE)
    twice = once + jnp.roll(once, -len(x) // 2)
    np.testing.assert_array_equal(found["thrice"], twice + jnp.roll(twice, -SIZE))
    np.testing.assert_array_equal(found["x"], -x)


@pytest.mark.parametrize(
    "together, counts",
    [(None, [PROGRAMS, 2 * PROGRAMS]), ((1, 2), [0, 2 * PROGRAMS]), ((2, 1), [PROGRAMS, 0])],
)
def test_all_programs_that_are_waited_for_count_themselves(together, counts):
    found = jax.jit(run, static_argnames="together")(jnp.ones(PROGRAMS * SIZE), together)
    np.testing.assert_array_equal(found.get("counts", jnp.zeros(2)), counts)


@pytest.mark.parametrize("together, launches", [(None, 1), ((1, 2), 2)])
def test_a_launch_is_one_kernel(together, launches):
    x = jnp.zeros(PROGRAMS * SIZE)
    text = for_gpu(lambda x: run(x, together, False), x)
    assert text.count("custom_call @__gpu$xla.gpu.triton") == launches
