"""The page about one text: every plot is drawn, and nothing in it is elsewhere."""

import functools
import re

import numpy as np
import pytest

from griffin_jax.config import ATTENTION
from griffin_jax.language_model import LanguageModel
from griffin_jax.tracing import page, plots
from tests.tiny import GRIFFIN, params_of, random_tokens

TOKENS = random_tokens(GRIFFIN, (1, 12))[0].tolist()
TEXTS = [f"<{token}$" for token in TOKENS]


@functools.cache
def reading(token=2):
    return page.read(LanguageModel(GRIFFIN, params_of(GRIFFIN)), TOKENS, TEXTS, token)


def test_the_page_has_all_plots_in_itself_and_as_files(tmp_path):
    pytest.importorskip("matplotlib")
    paths = page.write(reading(), tmp_path, "a <title>")
    assert [path.name for path in paths] == [*(f"{name}.png" for name in plots.PLOTS), "index.html"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[:-1])
    text = paths[-1].read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert len(sources) == len(plots.PLOTS)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text) and "<title>a &lt;title&gt;" in text
    assert f"<mark>&lt;{TOKENS[2]}$</mark>" in text
    assert text.count("<tr>") == 1 + len(reading().recurrences("decay"))


def test_the_lens_of_the_last_layer_is_what_the_model_predicts():
    logits = np.asarray(reading().trace.logits[0, :-1], np.float64)
    expected = np.log2(np.exp(logits).sum(-1)) - logits[np.arange(11), TOKENS[1:]] / np.log(2)
    last = reading().trace[f"blocks.{GRIFFIN.num_layers - 1}.logits"]
    np.testing.assert_allclose(plots._bits(last[0, :-1], np.array(TOKENS[1:])), expected, rtol=1e-5)


def test_what_cannot_be_looked_into_is_one_line():
    lm = LanguageModel(GRIFFIN, params_of(GRIFFIN))
    with pytest.raises(ValueError, match="token must be a number of 0 to 11, got 12"):
        page.read(lm, TOKENS, TEXTS, 12)
    with pytest.raises(ValueError, match="the text has 1 tokens; give two or more"):
        page.read(lm, TOKENS[:1], TEXTS[:1], 0)
    config = GRIFFIN.replace(block_pattern=(ATTENTION,))
    with pytest.raises(ValueError, match="the model has no RG-LRU to look into"):
        page.read(LanguageModel(config, params_of(config)), TOKENS, TEXTS, 0)
