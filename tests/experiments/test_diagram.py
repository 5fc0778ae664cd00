"""The picture of the README."""

import pytest

from griffin_jax.config import preset
from tests.experiments.modules import of_command

diagram = of_command("diagram")


@pytest.fixture
def axes():
    pytest.importorskip("matplotlib")
    from griffin_jax.benchmarks.plots import pyplot

    figure, axes = pyplot().subplots(1, 3)
    yield axes
    pyplot().close(figure)


def test_the_state_stops_growing_at_the_window_and_caches_do_not(axes):
    config = preset("recurrentgemma-9b")
    diagram.plot_state(axes[2], "recurrentgemma-9b", config)
    gemma, same_size, griffin = (list(line.get_ydata()) for line in axes[2].lines)
    lengths = list(axes[2].lines[0].get_xdata())
    window = lengths.index(config.attention_window)
    assert len(set(griffin[window:])) == 1 and griffin[window - 1] < griffin[window]
    assert gemma == sorted(set(gemma)) and same_size == sorted(set(same_size))
    assert [text.get_text() for text in axes[2].texts] == ["481 GB", "40.8 GB", "26.2 MB"]


def test_blocks_are_counted_by_kind(axes):
    diagram.draw_residual_block(axes[0], preset("recurrentgemma-2b"))
    diagram.draw_recurrent_block(axes[1])
    texts = [text.get_text() for text in axes[0].texts]
    assert "26 blocks: 18 recurrent, 8 attention" in texts
    assert "RG-LRU" in [text.get_text() for text in axes[1].texts]
