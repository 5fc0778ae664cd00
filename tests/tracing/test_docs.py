"""The examples of docs/tracing run as they stand, and its table has all places."""

import re
from pathlib import Path

import jax
import pytest

from griffin_jax.config import TINY
from griffin_jax.tracing import place_names

PAGE = Path(__file__).parents[2] / "docs" / "tracing" / "README.md"


def test_the_table_has_every_place():
    text = PAGE.read_text(encoding="utf-8")
    missing = [
        name
        for name in place_names(TINY)
        if f"`{re.sub(r'blocks.[0-9]+', 'blocks.N', name)}`" not in text
        and f"`{re.sub(r'blocks.[0-9]+.', '', name)}`" not in text
    ]
    assert not missing


@pytest.mark.slow
def test_the_examples_run():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    names = {}
    with jax.numpy_rank_promotion("allow"):  # as users have it
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
    time = len(names["tokens"][0])
    assert names["weights"].shape == (1, 2, time, time)
    assert names["ablated"].logits.shape == (1, time, names["lm"].config.vocab_size)
