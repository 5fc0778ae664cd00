"""The launch that adds up a product's parts and norms the residual stream, and that of attention's parts."""

import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.kernels.mosaic_gpu import attention_sum_kernel, norm_kernel
from griffin_jax.kernels.mosaic_gpu.operand import operand
from griffin_jax.kernels.rms_norm import rms_norm
from tests.kernels.mosaic import ON_HOPPER, compiled_for_h200, interpreter, no_races

EPS = 1e-6


def operands(rows, width, parts, kind="float32", *, biased=True, beyond=0):
    random = np.random.default_rng(rows)

    def normal(*shape, scale=1.0, dtype="bfloat16"):
        return jnp.asarray(scale * random.standard_normal(shape, np.float32), dtype)

    x, scale = normal(rows, width, scale=4.0), normal(width, scale=0.2)
    added = normal(parts, rows + beyond, width, dtype=kind) if parts else None
    return x, added, normal(width) if biased else None, scale


def definition(x, parts, bias, scale):
    """The sum, rounded once, and its norm in float32."""
    total = x.astype(jnp.float32)
    if parts is not None:
        total += parts[:, : len(x)].astype(jnp.float32).sum(axis=0)
    if bias is not None:
        total += bias.astype(jnp.float32)[None]
    total = total.astype(x.dtype)
    return total, rms_norm(total.astype(jnp.float32), scale, EPS)


def check(arrays, read):
    """The sum may be a rounding off where float32 is added in another order, and so may the norm."""
    with no_races():
        total, z = norm_kernel.add_and_norm(*arrays, eps=EPS, operand=read, interpret=interpreter())
    wanted, norm = definition(*arrays)
    x = arrays[0]
    assert (total.shape, total.dtype) == (x.shape, x.dtype)
    close(total, wanted, 2**-7, 1e-5)  # terms of up to 20 may cancel one another
    # Norms the stream as it was rounded here, so that what is left is the norm's own error.
    norm = rms_norm(total.astype(jnp.float32), arrays[-1], EPS)
    wanted = operand(norm) if read else norm.astype(x.dtype)
    assert (z.shape, z.dtype) == (wanted.shape, wanted.dtype)
    # Where float16 has few bits left, one of them.
    close(z[: len(x)], wanted[: len(x)], *((2**-10, 2**-24) if read else (2**-7, 1e-30)))


def close(found, wanted, rounding, below):
    found, wanted = (np.asarray(x, np.float64) for x in (found, wanted))
    assert (np.abs(found - wanted) <= rounding * np.abs(wanted) + below).all()
    assert (found != wanted).mean() < 1e-2


# 2,048 numbers are of two warpgroups, 512 of one, 1,536 of one that takes three turns of two pieces.
@pytest.mark.parametrize(
    ("arrays", "read"),
    [
        (operands(1, 512, 0, biased=False), True),
        (operands(3, 2048, 2, beyond=5), True),
        (operands(2, 2048, 1, "bfloat16", biased=False), False),
        (operands(5, 512, 4), False),
        pytest.param(operands(16, 512, 3), True, marks=pytest.mark.slow),
        pytest.param(operands(256, 512, 1, "bfloat16"), True, marks=pytest.mark.slow),
    ],
)
def test_the_stream_and_its_norm_are_the_definition(arrays, read):
    check(arrays, read)


def test_a_warpgroup_may_take_turns(monkeypatch):
    monkeypatch.setattr(norm_kernel, "_MOST_GROUPS", 1)
    check(operands(2, 1536, 2), True)


def test_what_float16_cannot_hold_is_cut_off():
    x, parts, bias, _ = operands(1, 512, 1)
    scale = jnp.full(512, 1e15, jnp.bfloat16)
    with no_races():
        _, z = norm_kernel.add_and_norm(
            x, parts, bias, scale, eps=EPS, operand=True, interpret=interpreter()
        )
    largest = float(jnp.finfo(jnp.float16).max)
    assert set(np.abs(np.asarray(z[0], np.float32))) == {largest}


def test_it_is_another_result_where_a_part_the_bias_or_the_scale_is_another():
    arrays = operands(2, 512, 2)

    def run(*arrays):
        return norm_kernel.add_and_norm(*arrays, eps=EPS, operand=False, interpret=interpreter())

    before = run(*arrays)
    for index in range(1, 4):
        changed = list(arrays)
        changed[index] = arrays[index].at[..., 511].add(1)
        after = run(*changed)
        assert bool((after[0] != before[0])[:, 511].all()) == (index < 3)
        assert (after[1] != before[1])[:, 511].all()


def parts_of_attention(rows, parts, heads, padded):
    random = np.random.default_rng(parts)
    mixed = random.standard_normal((rows, parts, padded, 256), np.float32)
    sums = random.standard_normal((rows, parts, 2, 64), np.float32)
    sums[:, 1:, 0, ::3] = -1e30  # parts of which a head has seen nothing
    sums[:, :, 1] = np.abs(sums[:, :, 1]) + 1
    return jnp.asarray(mixed), jnp.asarray(sums)


@pytest.mark.parametrize(
    ("rows", "parts", "heads", "padded", "read"),
    [(3, 2, 4, 8, True), (1, 16, 10, 16, True), (2, 1, 2, 8, False)],
)
def test_parts_of_attention_are_weighted_by_their_sums(rows, parts, heads, padded, read):
    mixed, sums = parts_of_attention(rows, parts, heads, padded)
    with no_races():
        z = attention_sum_kernel.add_up(
            mixed,
            sums,
            heads=heads,
            dtype=jnp.dtype("bfloat16"),
            operand=read,
            interpret=interpreter(),
        )
    scores, totals = (np.asarray(sums, np.float64)[:, :, i, :heads] for i in range(2))
    shares = np.exp2(scores - scores.max(axis=1, keepdims=True))
    mixed = np.asarray(mixed, np.float64)[:, :, :heads]
    exact = (shares[..., None] * mixed).sum(axis=1) / (shares * totals).sum(axis=1)[..., None]
    exact = jnp.asarray(exact.reshape(rows, -1), jnp.float32)
    wanted = operand(exact) if read else exact.astype(jnp.bfloat16)
    assert (z.shape, z.dtype) == (wanted.shape, wanted.dtype)
    z, wanted = (np.asarray(x[:rows], np.float64) for x in (z, wanted))
    np.testing.assert_allclose(z, wanted, rtol=2**-10 if read else 2**-8, atol=1e-6)


@pytest.mark.skipif(not ON_HOPPER, reason="takes a GPU")
@pytest.mark.parametrize("rows", [1, 2, 4, 13, 16, 64, 256])
@pytest.mark.parametrize(("width", "kind"), [(4096, "float32"), (2560, "bfloat16")])
def test_shapes_of_models(rows, width, kind):
    for parts, biased, read in ((1, True, True), (2, False, True), (4, True, False), (0, 0, True)):
        check(operands(rows, width, parts, kind, biased=biased, beyond=-rows % 8), read)


@pytest.mark.slow
def test_they_compile_for_an_h200_without_spills():
    reports = compiled_for_h200(
        """
import functools
from griffin_jax.kernels.mosaic_gpu import attention_sum_kernel, norm_kernel

half = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
single = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)

def norm(read, parts, biased, x, scale, *added):
    added = list(added)
    arguments = added.pop(0) if parts else None, added.pop(0) if biased else None
    return norm_kernel.add_and_norm(x, *arguments, scale, eps=1e-6, operand=read)

for rows, width, parts, kind, biased, read in (
    (1, 4096, 0, None, False, True),
    (4, 4096, 2, single, True, True),
    (16, 2560, 3, single, True, True),
    (64, 4096, 4, single, False, False),
    (256, 4096, 1, half, True, True),
):
    added = ([kind(parts, rows, width)] if parts else []) + [half(width)] * biased
    build(functools.partial(norm, read, parts, biased), half(rows, width), half(width), *added)

add_up = functools.partial(attention_sum_kernel.add_up, dtype=jnp.dtype("bfloat16"), operand=True)
for rows, parts, heads in ((4, 16, 16), (256, 1, 16), (1, 16, 10)):
    build(functools.partial(add_up, heads=heads), single(rows, parts, 16, 256), single(rows, parts, 2, 64))
"""
    )
    assert len(reports) == 8
    for report in reports:
        assert not report["spills"]
    assert all(report["registers"] <= 64 for report in reports[:5])  # of up to 640 threads
