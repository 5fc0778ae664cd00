"""What the tests of this folder share."""

import pytest

from griffin_jax.inference import prefill


@pytest.fixture(autouse=True, scope="package")
def short_chunks():
    """Chunks of which short texts fill several, and which compile quickly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefill, "CHUNKS", (8, 32))
        yield
