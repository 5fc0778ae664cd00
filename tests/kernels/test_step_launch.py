"""Phases of programs: in one launch and in several, what comes of them is the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from griffin_jax.kernels.step_gpu.launch import Phase, launch
from tests.kernels.lowering import for_gpu

ON_GPU = jax.default_backend() == "gpu"
PROGRAMS = 4096 if ON_GPU else 256  # more than a GPU runs at once
SIZE = 16
LENGTH = PROGRAMS * SIZE


def run(x, together, interpret=not ON_GPU):
    """Three phases that add numbers of other programs, of which the second overwrites the input."""
    like = jax.ShapeDtypeStruct((LENGTH,), jnp.float32)

    def add(sources, target, step):
        def body(refs, i, wait):
            places = i * SIZE + jnp.arange(SIZE, dtype=jnp.int32)
            other = jax.lax.rem(places + step, jnp.int32(LENGTH))
            wait()
            one, two = sources
            refs[target][pl.ds(i * SIZE, SIZE)] = refs[one][places] + refs[two][other]

        return PROGRAMS, body

    def overwrite(refs, i, wait):
        wait()
        rows = pl.ds(i * SIZE, SIZE)
        refs["x"][rows] = -refs["x"][rows]

    phases = [
        Phase([add("xx", "a", LENGTH - SIZE)], outputs={"a": like}),
        # What is overwritten last the next phase reads, which has read it from a cache before.
        Phase(
            [add("aa", "b", LENGTH // 2), (PROGRAMS, overwrite)],
            outputs={"b": like},
            updates={"x": x},
        ),
        Phase([add("bx", "c", LENGTH - SIZE)], outputs={"c": like}),
    ]
    arrays = {"counts": jnp.zeros(2, jnp.int32)}
    return launch(phases, arrays, together=together, name="add", interpret=interpret)


@pytest.mark.parametrize("together", [None, (1, 2), (2, 1), (1, 1, 1)])
def test_a_phase_reads_what_the_ones_before_it_wrote(together):
    jitted = jax.jit(run, static_argnames="together")
    for seed in range(30 if ON_GPU else 1):
        x = jax.random.normal(jax.random.key(seed), (LENGTH,))
        found = jitted(x, together)
        a = x + jnp.roll(x, SIZE)
        b = a + jnp.roll(a, LENGTH // 2)
        np.testing.assert_array_equal(found["c"], b - jnp.roll(x, SIZE))
        np.testing.assert_array_equal(found["x"], -x)


def test_a_body_that_does_not_wait_is_refused():
    def body(refs, i, wait):
        refs["y"][i] = jnp.float32(0)

    phase = Phase([(4, body)], outputs={"y": jax.ShapeDtypeStruct((4,), jnp.float32)})
    with pytest.raises(ValueError, match="lazy: a body of phase 0 does not wait"):
        launch([phase], {}, name="lazy", interpret=True)


@pytest.mark.parametrize("together", [(1,), (1, 3), (2, 2)])
def test_launches_are_about_all_phases(together):
    with pytest.raises(ValueError, match="are not about all 3"):
        run(jnp.zeros(LENGTH), together)


@pytest.mark.parametrize(
    "together, counts",
    [(None, [PROGRAMS, 2 * PROGRAMS]), ((1, 2), [0, 2 * PROGRAMS]), ((2, 1), [PROGRAMS, 0])],
)
def test_all_programs_that_are_waited_for_count_themselves(together, counts):
    found = jax.jit(run, static_argnames="together")(jnp.ones(LENGTH), together)
    np.testing.assert_array_equal(found.get("counts", jnp.zeros(2)), counts)


@pytest.mark.parametrize("together, launches", [(None, 1), ((1, 2), 2)])
def test_a_launch_is_one_kernel(together, launches):
    x = jnp.zeros(LENGTH)
    text = for_gpu(lambda x: run(x, together, False), x)
    assert text.count("custom_call @__gpu$xla.gpu.triton") == launches
