"""Draws what a Griffin model is: its blocks, and the bytes of its state over the length of a text.

  python -m experiments.diagram --output=docs/griffin.png

The state is counted from the shapes of --model, a preset, beside Gemma-7B's cache of keys and values and that
of a Transformer of the same size with one head of keys and values (the paper's MQA baseline).
"""

from typing import Any

from absl import flags

from experiments import command, outputs

_OUTPUT = flags.DEFINE_string("output", "runs/griffin.png", "PNG file to write.")
_MODEL = flags.DEFINE_string("model", "recurrentgemma-9b", "The preset that is drawn.")

_LENGTHS = [2**power for power in range(7, 21)]
_COLORS = {
    "recurrent": "#3b6fb6",
    "attention": "#d98032",
    "norm": "#8a8f98",
    "mlp": "#4f9d69",
    "line": "#333333",
}


def main() -> None:
    from griffin_jax.config import preset
    from griffin_jax.files import new_file
    from griffin_jax.plotting import pyplot

    plt, config, path = pyplot(), preset(_MODEL.value), outputs.file(_OUTPUT)
    figure, axes = plt.subplots(
        1, 3, figsize=(11, 4.4), layout="constrained", width_ratios=(0.75, 1.25, 1.35)
    )
    draw_residual_block(axes[0], config)
    draw_recurrent_block(axes[1])
    plot_state(axes[2], _MODEL.value, config)
    with new_file(path) as file:
        figure.savefig(file, dpi=130, format="png", metadata={"Software": None})
    print(path)


def draw_residual_block(axis: Any, config: Any) -> None:
    """Draws norm, temporal mixing, norm and MLP around the residual stream, from below to above."""
    _begin(axis, "a residual block")
    _arrow(axis, (5, 0.2), (5, 9.8))
    halves = (
        (1.5, "RMSNorm", "temporal mixing", _COLORS["recurrent"]),
        (5.7, "RMSNorm", "gated MLP", _COLORS["mlp"]),
    )
    for bottom, norm, work, color in halves:
        axis.plot(
            (5, 8.6, 8.6, 5),
            (bottom - 0.6, bottom - 0.6, bottom + 2.9, bottom + 2.9),
            color=_COLORS["line"],
            lw=1,
        )
        _box(axis, (5, bottom + 0.3), norm, _COLORS["norm"])
        _box(axis, (5, bottom + 1.7), work, color)
        _circle(axis, (5, bottom + 2.9), "+")
    kinds = list(config.block_types)
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    axis.text(5, -0.5, f"{config.num_layers} blocks: {counts}", ha="center", va="top", fontsize=8)


def draw_recurrent_block(axis: Any) -> None:
    """Draws the two branches of a recurrent block, and the RG-LRU's equations."""
    _begin(axis, "temporal mixing by recurrence")
    branches = (3, 3, 7.4, 7.4, 3), (0.9, 7.6, 7.6, 0.9, 0.9)
    axis.plot(*branches, color=_COLORS["line"], lw=1)
    axis.plot((5.2, 5.2), (0.2, 0.9), color=_COLORS["line"], lw=1)
    _box(axis, (3, 2.2), "linear", _COLORS["norm"])
    _box(axis, (3, 4.9), "GeLU", _COLORS["norm"])
    _box(axis, (7.4, 2.2), "linear", _COLORS["norm"])
    _box(axis, (7.4, 3.9), "conv, 4 taps", _COLORS["norm"])
    _box(axis, (7.4, 5.6), "RG-LRU", _COLORS["recurrent"])
    _circle(axis, (5.2, 7.6), r"$\times$")
    _arrow(axis, (5.2, 8.0), (5.2, 9.8))
    _box(axis, (5.2, 8.8), "linear", _COLORS["norm"])
    equations = (
        r"$\log a_t = -8\,\mathrm{softplus}(\Lambda)\,\sigma(W_a x_t + b_a)$"
        "\n"
        r"$h_t = a_t h_{t-1} + \sqrt{1-a_t^2}\,\sigma(W_x x_t + b_x)\,x_t$"
    )
    axis.text(5.2, -0.3, equations, ha="center", va="top", fontsize=8.5, linespacing=1.7)


def plot_state(axis: Any, name: str, config: Any) -> None:
    """Plots the bytes that one text's state holds, over the tokens that were read."""
    from griffin_jax.benchmarks.counting import cache_bytes
    from griffin_jax.config import preset

    same_size = config.replace(block_pattern=("attention",), attention_window=None)
    for label, shape, style in (
        ("gemma-7b", preset("gemma-7b"), {"color": "#b03a48"}),
        ("Transformer of this size, one key head", same_size, {"color": "#d98032", "ls": "--"}),
        (name, config, {"color": _COLORS["recurrent"], "lw": 2.5}),
    ):
        sizes = [cache_bytes(shape, length) for length in _LENGTHS]
        axis.plot(_LENGTHS, sizes, label=label, **style)
        axis.annotate(
            _bytes(sizes[-1]),
            (_LENGTHS[-1], sizes[-1]),
            xytext=(-4, 5),
            textcoords="offset points",
            ha="right",
            fontsize=8.5,
            color=style["color"],
        )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_ylim(1e6, 2e12)
    axis.set_xticks(
        [2**power for power in (8, 11, 14, 17, 20)], ["256", "2,048", "16k", "131k", "1M"]
    )
    axis.set_yticks([1e6, 1e8, 1e10, 1e12], ["1 MB", "100 MB", "10 GB", "1 TB"])
    axis.minorticks_off()
    axis.set_title("what one text takes in memory", fontsize=10)
    axis.set_xlabel("tokens read")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper left")


def _bytes(size: int) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"


def _begin(axis: Any, title: str) -> None:
    axis.set(xlim=(0, 10), ylim=(-2, 10))
    axis.axis("off")
    axis.set_title(title, fontsize=10)


def _box(axis: Any, center: tuple[float, float], text: str, color: str) -> None:
    axis.text(
        *center,
        text,
        ha="center",
        va="center",
        fontsize=9,
        color="white",
        bbox={"boxstyle": "round,pad=0.35", "facecolor": color, "edgecolor": "none"},
    )


def _circle(axis: Any, center: tuple[float, float], text: str) -> None:
    axis.text(
        *center,
        text,
        ha="center",
        va="center",
        fontsize=10,
        bbox={"boxstyle": "circle,pad=0.12", "facecolor": "white", "edgecolor": _COLORS["line"]},
    )


def _arrow(axis: Any, begin: tuple[float, float], end: tuple[float, float]) -> None:
    arrow = {"arrowstyle": "-|>", "color": _COLORS["line"], "lw": 1, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", end, begin, arrowprops=arrow)


if __name__ == "__main__":
    command.run(main)
