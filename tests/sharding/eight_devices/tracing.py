"""Places and patches on a mesh are those of one device."""

import jax
import numpy as np
import pytest

from griffin_jax.language_model import LanguageModel
from griffin_jax.models import stack_params
from griffin_jax.tracing import gradients
from tests.sharding.eight_devices.meshes import CONFIG, SOME, mesh_called, on_mesh
from tests.tiny import assert_same_state, params_of, random_tokens, relative_error

TOKENS = random_tokens(CONFIG, (8, 16))
PATCH = {
    "blocks.0.rg_lru.state": lambda h: h.at[:, 6].set(0.5),
    "blocks.1.attention.weights": lambda w: w[..., ::-1],
}


def run(params):
    return LanguageModel(CONFIG, params).trace(TOKENS, "*", PATCH)


@pytest.fixture(scope="module")
def one_device():
    return run(params_of(CONFIG))


@pytest.mark.parametrize(
    ("name", "stacked"),
    [
        (SOME[1], True),
        (SOME[2], False),
        *((name, False) for name in SOME[:2]),
    ],
)
def test_a_mesh_gives_the_places_of_one_device(name, stacked, one_device):
    params = stack_params(CONFIG, params_of(CONFIG)) if stacked else params_of(CONFIG)
    found = run(on_mesh(params, mesh_called(name)))
    assert list(found) == list(one_device)
    for place, value in one_device.items():
        assert relative_error(found[place], value) <= 1e-5, place
    assert_same_state(found.state, one_device.state)
    assert len(found["blocks.0.rg_lru.state"].sharding.device_set) == 8


def test_gradients_on_a_mesh_are_those_of_one_device():
    params, name = params_of(CONFIG), "blocks.0.rg_lru.state"

    def of(params):
        return gradients(
            LanguageModel(CONFIG, params), TOKENS, name, lambda run: run.logits[0, -1, 3]
        )

    expected = of(params)[name]
    found = of(on_mesh(params, mesh_called(SOME[1])))[name]
    assert relative_error(found, expected) <= 1e-5
    assert np.any(jax.device_get(expected))
