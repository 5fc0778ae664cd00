"""One server for all tests of this folder that a process runs."""

import pytest

from griffin_jax.inference import prefill
from tests.inference.tiny_model import language_model
from tests.serving.running import running


@pytest.fixture(autouse=True, scope="package")
def short_chunks():
    """Chunks of which short texts fill several, and which compile quickly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefill, "CHUNKS", (8, 32))
        yield


@pytest.fixture(scope="package")
def lm():
    """A tiny model over bytes."""
    return language_model()


@pytest.fixture(scope="package")
def server(lm, short_chunks):
    """A server of it, to whom everybody may speak."""
    with running(lm, slots=4, waiting=60, most_prompt_tokens=4096, most_new_tokens=512) as found:
        yield found


@pytest.fixture
def client(server):
    """An HTTP client of it."""
    with server.client() as found:
        yield found
