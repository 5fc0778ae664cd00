"""Attention of many tokens in one launch equals attention over all pairs under a mask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.kernels import local_attention_mosaic_gpu as mosaic
from griffin_jax.kernels.local_attention import local_attention, local_attention_reference
from griffin_jax.kernels.mosaic_gpu import backend
from tests.kernels.mosaic import ON_HOPPER, compiled_for_h200, interpreter, no_races


def draw(time, heads, slots, starts, size=64, dtype=jnp.bfloat16):
    """q, k, v, a ring of keys and of values, start."""
    batch = len(starts)
    random = np.random.default_rng(time + slots)

    def normal(*shape):
        return jnp.asarray(random.standard_normal((batch, *shape, size)), dtype)

    q, k, v = normal(time, heads), normal(time, 1), normal(time, 1)
    return q, k, v, normal(slots, 1), normal(slots, 1), np.asarray(starts, np.int32)


def positions_of(start, time, documents=()):
    """Rows that go on from `start`; in all of them documents begin in the call, too."""
    positions = start[:, None] + np.arange(time)
    for begin in documents:
        positions[:, begin:] = np.arange(time - begin)
    return positions.astype(np.int32)


def check(arguments, positions, reach):
    """Against the definition in float32."""
    with no_races():
        limit = jnp.minimum(positions, reach) if reach is not None else jnp.asarray(positions)
        out = mosaic.attend_to_band(None, *arguments, limit, interpreter())
        found = np.asarray(out, np.float32)
    wide = [x.astype(jnp.float32) for x in arguments[:5]]
    with jax.default_matmul_precision("highest"):
        wanted = np.asarray(
            jax.jit(functools.partial(local_attention_reference, reach=reach))(
                *wide, arguments[5], positions
            )
        )
    assert out.dtype == arguments[0].dtype
    assert np.linalg.norm(found - wanted) < 4e-3 * np.linalg.norm(wanted)
    assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()


# Rings of which nothing, a part of a piece, whole pieces or all was written, once or several times.
@pytest.mark.parametrize(
    ("time", "heads", "slots", "starts", "reach", "documents"),
    [
        (64, 1, 128, [300], 128, [50]),
        pytest.param(64, 1, 128, [0], 128, [], marks=pytest.mark.slow),
        pytest.param(64, 1, 128, [64, 5], 127, [], marks=pytest.mark.slow),
        pytest.param(70, 3, 64, [259], 40, [3], marks=pytest.mark.slow),
        pytest.param(130, 1, 64, [131], 64, [], marks=pytest.mark.slow),
        pytest.param(64, 1, 0, [0], None, [20, 41], marks=pytest.mark.slow),
        pytest.param(64, 2, 256, [200, 515], None, [], marks=pytest.mark.slow),
    ],
)
def test_one_launch_equals_the_definition(time, heads, slots, starts, reach, documents):
    arguments = draw(time, heads, slots, starts)
    check(arguments, positions_of(arguments[-1], time, documents), reach)


@pytest.mark.skipif(not ON_HOPPER, reason="takes a GPU")
@pytest.mark.parametrize(
    ("time", "heads", "slots", "starts", "reach", "documents"),
    [
        (2048, 16, 2048, [2048], 2047, []),
        (2048, 16, 2048, [2825], 2047, [700, 701]),
        (2048, 10, 2048, [0, 5, 1000], 2048, [1500]),
        (64, 16, 2048, [6147], 2047, []),
        (1000, 16, 2048, [64, 300], 2047, [3]),
        (4096, 5, 1024, [1500], 1024, [2000]),
        (2500, 16, 0, [0], 2047, []),
        (71, 1, 64, [0, 3, 64, 131], 40, [7]),
    ],
)
@pytest.mark.parametrize("size", [256, 128, 64])
def test_heads_of_published_models(time, heads, slots, starts, reach, documents, size):
    dtype = jnp.float16 if size == 128 else jnp.bfloat16
    arguments = draw(time, heads, slots, starts, size, dtype)
    check(arguments, positions_of(arguments[-1], time, documents), reach)


@pytest.mark.skipif(not ON_HOPPER, reason="takes a GPU")
def test_it_serves_calls_that_read_behind_others():
    *arguments, start = draw(256, 16, 2048, [700, 5000], 256)
    positions = positions_of(start, 256)

    def run(kernel):
        attend = functools.partial(local_attention, reach=2047, kernel=kernel)
        return np.asarray(jax.jit(attend)(*arguments, start, positions), np.float32)

    np.testing.assert_array_equal(run(None), run("band_gpu"))
    wanted = run("cudnn_gpu")
    assert np.linalg.norm(run(None) - wanted) < 4e-3 * np.linalg.norm(wanted)


def test_its_gradient_is_that_of_other_kernels(monkeypatch):
    arguments = draw(64, 2, 64, [10, 80])
    positions = positions_of(arguments[-1], 64, [30])
    plain = functools.partial(local_attention, reach=64)

    monkeypatch.setattr(mosaic, "_launch", lambda plain, *rest: plain(*rest[:-1]))

    def gradient(function):
        def loss(*arrays):
            return (function(*arrays, arguments[-1], positions).astype(jnp.float32) ** 2).sum()

        return jax.jit(jax.grad(loss, argnums=range(5)))(*arguments[:5])

    found = gradient(functools.partial(mosaic.attend_to_band, plain))
    for one, other in zip(found, gradient(plain), strict=True):
        np.testing.assert_array_equal(*(np.asarray(x, np.float32) for x in (one, other)))


def test_what_is_not_served_is_told(monkeypatch):
    q, _, _, ring, *_ = draw(64, 2, 64, [0])
    unsupported = mosaic.unsupported_reason
    assert ON_HOPPER or "it needs a Hopper GPU" in unsupported(q, ring)
    monkeypatch.setattr(backend, "missing", lambda: None)
    assert unsupported(q, ring) is None
    assert "not float32 and" in unsupported(q.astype(jnp.float32), ring)
    assert "a ring in float32" in unsupported(q, ring.astype(jnp.float32))
    assert "63 tokens" in unsupported(q[:, :63], ring)
    assert "head size 48" in unsupported(q[..., :48], ring)
    assert "a ring of 50 slots" in unsupported(q, ring[:, :50])
    assert "2 heads of keys" in unsupported(q, ring[:, :, [0, 0]])


def test_blocks_are_smaller_where_there_would_be_few():
    from griffin_jax.kernels.mosaic_gpu.band_kernel import groups_of

    assert [groups_of(16 * tokens) for tokens in (64, 512, 1024, 2048)] == [1, 1, 2, 2]


def test_compiled_for_an_h200_its_products_overlap():
    kernels = compiled_for_h200("""
import functools
from griffin_jax.kernels.mosaic_gpu.band_kernel import attend_to_band

def case(groups, size):
    half = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    number = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
    build(
        functools.partial(attend_to_band, heads=16, groups=groups),
        half(2, 512 * 16, size),
        half(2, 512, size),
        half(2, 512, size),
        half(2, 2048, size),
        half(2, 2048, size),
        number(2),
        number(2, 512 * 16),
    )

case(2, 256)
case(1, 256)
case(2, 128)
""")
    # That of a launch; warpgroups that multiply take 240 then.
    assert [kernel["registers"] for kernel in kernels] == [168, 255, 168]
    # Addresses, of which a warp has one each, are kept in memory in part; sums alone are 512 bytes.
    assert max(kernel["spills"] for kernel in kernels) < 256
    assert not any(kernel["serialized"] for kernel in kernels)
