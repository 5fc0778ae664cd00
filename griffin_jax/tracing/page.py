"""One page about what a model computes for a text, and its plots as files beside it."""

import base64
import html
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from griffin_jax.config import RECURRENT
from griffin_jax.files import new_file, write_text
from griffin_jax.plotting import pyplot
from griffin_jax.tracing.plots import NAMES, PLOTS, Reading
from griffin_jax.tracing.recurrence import memory_length
from griffin_jax.tracing.trace import select

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
img { max-width: 100%; }
pre { white-space: pre-wrap; background: #f4f4f4; padding: 1rem; }
mark { background: #fd6; }
table { border-collapse: collapse; }
td, th { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
"""


def read(lm: Any, tokens: Sequence[int], texts: Sequence[str], token: int) -> Reading:
    """Runs a model on one text, for the plots.

    Args:
      lm: A `LanguageModel` with RG-LRU blocks.
      tokens: Ids, of which there must be two.
      texts: What each token is in writing.
      token: The token whose memory is to be looked at, by its number in the text.

    Raises:
      ValueError: the model has no RG-LRU, the text has less than two tokens, or there is no such
        token in it.
    """
    if RECURRENT not in lm.config.block_types:
        raise ValueError("the model has no RG-LRU to look into: block_pattern has no 'recurrent'")
    if len(tokens) < 2:
        raise ValueError(f"the text has {len(tokens)} tokens; give two or more")
    if not 0 <= token < len(tokens):
        raise ValueError(f"token must be a number of 0 to {len(tokens) - 1}, got {token}")
    known = [name for name in NAMES if name != "*.attention.weights" or _attends(lm.config)]
    trace = lm.trace([list(tokens)], select(lm.config, known, "names"))
    return Reading(np.asarray(tokens), texts, trace, token, lm.config.num_heads)


def _attends(config):
    return "attention" in config.block_types


def write(reading: Reading, folder: Path, title: str) -> list[Path]:
    """Draws all plots.

    Args:
      reading: What `read` returns.
      folder: Where PNG files and index.html go; the page has the plots in itself, too.
      title: The page's title.

    Returns:
      The files.

    Raises:
      ImportError: matplotlib is not installed.
    """
    plt, paths, sections = pyplot(), [], []
    for name, plot in PLOTS.items():
        figure = plot(plt, reading)
        image = io.BytesIO()
        figure.savefig(image, dpi=110, format="png")
        plt.close(figure)
        paths.append(folder / f"{name}.png")
        with new_file(paths[-1]) as file:
            file.write(image.getvalue())
        data = base64.b64encode(image.getvalue()).decode()
        said = html.escape(plot.__doc__)
        sections.append(
            f'<h2>{name}</h2>\n<p>{said}</p>\n<img alt="{said}" src="data:image/png;base64,{data}">'
        )
    paths.append(folder / "index.html")
    write_text(paths[-1], _page(reading, title, sections))
    return paths


def _page(reading, title, sections):
    marked = [html.escape(text) for text in reading.texts]
    marked[reading.token] = f"<mark>{marked[reading.token]}</mark>"
    rows = [
        "<tr><th>layer</th><th>median</th><th>90%</th><th>longest</th></tr>",
        *(_row(i, memory_length(x)) for i, x in reading.recurrences("log_decay").items()),
    ]
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>',
            f"<style>{_STYLE}</style></head><body>",
            f"<h1>{html.escape(title)}</h1>",
            f"<pre>{''.join(marked)}</pre>",
            f"<p>{len(reading.tokens)} tokens; the marked one is the one whose memory is drawn. "
            "Memory length of channels, in tokens until 1/e is left:</p>",
            f"<table>{''.join(rows)}</table>",
            *sections,
            "</body></html>\n",
        ]
    )


def _row(layer, lengths):
    figures = np.quantile(np.asarray(lengths), [0.5, 0.9, 1.0])
    cells = [f"{x:,.1f}" if math.isfinite(x) and x < 1e6 else "beyond 1,000,000" for x in figures]
    return f"<tr><td>{layer}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
