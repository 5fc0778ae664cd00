"""Attention in tiles of queries, which TPUs get, equals attention over all pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.kernels import choice, local_attention, query_tiles
from tests.kernels.test_local_attention import draw, positions_of


@pytest.fixture(autouse=True)
def on_a_tpu_with_small_tiles(monkeypatch):
    monkeypatch.setattr(choice, "platform", lambda: "tpu")
    monkeypatch.setattr(local_attention, "tile_size", lambda batch: 4)
    monkeypatch.setattr(query_tiles, "tile_size", lambda batch: 4)


@pytest.mark.parametrize(
    ("time", "slots", "reach", "kv_heads", "fresh"),
    [
        (8, 8, 8, 1, False),
        (9, 8, 7, 2, False),  # a tile left over
        (27, 8, 3, 1, False),
        (6, 8, 8, 1, True),  # shorter than the ring, which is not looked at
        (18, 8, 7, 1, True),
    ],
)
def test_equals_the_definition_with_gradients(time, slots, reach, kv_heads, fresh):
    arguments = draw(time, slots, kv_heads=kv_heads)
    start = np.array([0, 0, 0] if fresh else [0, 3, 21], np.int32)
    positions = positions_of(start, time, restart=4)
    weights = np.random.default_rng(1).standard_normal((3, time, 4, 8)).astype(np.float32)

    def value_and_gradients(function, **options):
        def loss(*arguments):
            out = function(*arguments, start, positions, reach=reach, **options)
            return jnp.sum(out * weights), out

        return jax.jit(jax.value_and_grad(loss, argnums=range(5), has_aux=True))(*arguments)

    tiles = {"kernel": "tiles_tpu", "fresh": fresh}
    (_, out), gradients = value_and_gradients(local_attention.local_attention, **tiles)
    reference = local_attention.local_attention_reference
    (_, expected), expected_gradients = value_and_gradients(reference)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("time", "reach", "reason"), [(4, 8, "no more than a tile of 4"), (9, None, "bounded reach")]
)
def test_says_which_shapes_it_leaves_to_others(time, reach, reason):
    q, k, v, cached_k, cached_v = draw(time, 8)
    start = np.zeros(3, np.int32)
    positions = positions_of(start, time, restart=time)
    with pytest.raises(ValueError, match=reason):
        local_attention.local_attention(
            q, k, v, cached_k, cached_v, start, positions, reach=reach, kernel="tiles_tpu"
        )
