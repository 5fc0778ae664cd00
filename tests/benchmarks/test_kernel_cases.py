"""What the timed loops of kernels compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.benchmarks import kernels
from griffin_jax.benchmarks.kernel_cases import Case, recurrence_cases

TIME, WIDTH = 12, 8


@pytest.mark.parametrize("number", range(len(list(recurrence_cases(WIDTH, TIME, "float32")))))
def test_a_turn_of_a_recurrence_hands_on_all_that_it_computes(number):
    case = list(recurrence_cases(WIDTH, TIME, "float32"))[number]
    carry, arguments = case.carry(), case.make()
    state, computed = case.step(carry, arguments, None)
    like = jax.tree.map(lambda x: (x.shape, x.dtype), carry)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), (state, computed)) == like
    # A number for each channel of each token at the least, or a compiler would leave some out.
    assert all(x.shape == (1, TIME, WIDTH) for x in jax.tree.leaves(computed))
    if case.operation != "rg_lru" and case.name.startswith("forward, "):
        x, a = (np.asarray(argument)[0] for argument in arguments)
        h = np.asarray(carry[0])[0]
        for t in range(TIME):
            h = a[t] * h + x[t]
            np.testing.assert_allclose(computed[0, t], h, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(state[0], computed[0, -1])


def test_what_needs_the_arguments_alone_is_done_in_every_turn():
    weight = jnp.ones((8, 8))
    case = Case("product", "", lambda: weight, lambda: weight, lambda x, w, _: x + w @ w, 0.0)
    program = kernels._loop.lower(case, None, 3, case.carry(), case.make()).compile().as_text()
    loop, before_and_after = program.split("\nENTRY ")
    assert " fusion(" in loop and " fusion(" not in before_and_after
    np.testing.assert_array_equal(kernels._loop(case, None, 3, weight, weight), 25 * weight)
