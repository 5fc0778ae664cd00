"""The training loop that docs/training shows."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs" / "training" / "README.md"


@pytest.mark.slow
def test_the_loop_of_the_documentation_learns():
    found = re.search(
        r"<!-- test: own loop -->\n```python\n(.*?)```", DOCS.read_text("utf-8"), re.S
    )
    names = {}
    exec(compile(found[1], str(DOCS), "exec"), names)
    assert names["losses"][-1] < names["losses"][0] / 2
    assert names["lm"].apply([[0, 1, 2]])[0].argmax(-1)[0, -1] == 3
