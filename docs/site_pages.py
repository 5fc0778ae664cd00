"""Pages of the site that are made of the code: commands, Python API, shardings, metrics and source.

Each function returns Markdown. docs/hooks.py puts the pages where mkdocs.yml names them.
"""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COMMANDS, API, SOURCE = "reference/commands/", "reference/api/", "source/"
SHARDINGS, METRICS = "reference/shardings.md", "reference/metrics.md"
# Title and modules of every page of the API.
PARTS = {
    "griffin_jax": ["griffin_jax"],
    "Models": ["griffin_jax.models", "griffin_jax.config"],
    "Inference": ["griffin_jax.inference"],
    "Tracing": ["griffin_jax.tracing"],
    "Serving": ["griffin_jax.serving"],
    "Checkpoints": ["griffin_jax.checkpoints", "griffin_jax.errors"],
    "Quantization": ["griffin_jax.quantization", "griffin_jax.weight"],
    "Kernels": [
        "griffin_jax.kernels.choice",
        "griffin_jax.kernels.rg_lru",
        "griffin_jax.kernels.linear_recurrence",
        "griffin_jax.kernels.local_attention",
        "griffin_jax.kernels.packed_matmul",
    ],
    "Many devices": ["griffin_jax.sharding", "griffin_jax.devices"],
    "Training": ["griffin_jax.training", "griffin_jax.training.lora"],
    "Evaluation": ["griffin_jax.evaluation.run", "griffin_jax.evaluation.suites"],
    "Studies": ["griffin_jax.studies"],
}


def slug(title: str) -> str:
    """Returns the name of a page's file."""
    return title.lower().replace(" ", "-")


def api_page(title: str, modules: list[str]) -> str:
    """Returns a page whose content mkdocstrings takes from the docstrings."""
    parts = [f"# {title}", *(f"::: {module}" for module in modules)]
    return "\n\n".join(parts) + "\n"


def command_pages(commands: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yields path and content of the page of each command, and of the list of all."""
    from absl import flags

    import experiments.command  # noqa: F401, whose flags are every command's
    from experiments import command_help

    configs = _configs()
    rows = [f"| [`{name}`]({name}.md) | {text} |" for name, text in commands.items()]
    yield (
        f"{COMMANDS}README.md",
        "\n".join([_COMMANDS, "| command | what it does |", "| --- | --- |", *rows, ""]),
    )
    shared = set(flags.FLAGS)
    for name in commands:
        module = importlib.import_module(f"experiments.{name}")
        summary, _, rest = (module.__doc__ or "").partition("\n\n")
        lines = [f"# {name}", "", summary, "", _indented(rest), "", "## Flags", ""]
        keys = flags.FLAGS.get_key_flags_for_module(module)
        lines += _defaults("flag", [(f"--{x.name}", x.value, x.help or "") for x in keys])
        for flag in set(flags.FLAGS) - shared:  # another command may have one of the same name
            delattr(flags.FLAGS, flag)
        if config := getattr(module, "_CONFIG", None):
            lines += [
                "",
                "## Fields of the config",
                "",
                f"Set a field with `--config.NAME=VALUE`. The defaults are those of `{config.default}`.",
                "",
            ]
            lines += _defaults("field", command_help.fields(config))
            lines += ["", "## Configs that ship", "", "| config | purpose |", "| --- | --- |"]
            lines += [
                f"| `{file}` | {text} |" for file, (owner, text) in configs.items() if owner == name
            ]
        yield f"{COMMANDS}{name}.md", "\n".join(lines) + "\n"


_COMMANDS = """# Commands

Run a command as `python -m experiments.NAME` in a checkout, or as `griffin-jax NAME` wherever the package is
installed. `--config=FILE` takes a file of your own or the bare name of one that ships, `--config.FIELD=VALUE`
sets one of its fields, `--help` lists flags and fields, and `--verbosity=1` shows the traceback of an error.
"""


def _configs() -> dict[str, tuple[str, str]]:
    """Returns the command and the first sentence of every config that ships."""
    found = {}
    for path in sorted((ROOT / "configs").glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if owner := re.search(r"python -m experiments\.(\w+)", text):
            found[path.stem] = owner[1], " ".join(text.partition("\n\n")[0].split())
    return found


def _indented(text: str) -> str:
    """Returns a docstring with its indented commands as blocks of code."""
    return re.sub(r"(?m)^  (?=\S)", "    ", text)


def _defaults(head: str, rows: list[tuple[str, Any, str]]) -> list[str]:
    lines = [f"| {head} | default | meaning |", "| --- | --- | --- |"]
    for name, value, text in rows:
        shown = "" if value in (None, "") else f"`{_cell(value)[:60]}`"
        lines.append(f"| `{name}` | {shown} | {_cell(text, '|[')} |")
    return lines


def _cell(text: object, special: str = "|") -> str:
    return re.sub(f"([{re.escape(special)}])", r"\\\1", " ".join(str(text).split()))


def shardings_page() -> str:
    """Returns which mesh axes every array lies over, from the declarations of layers and states."""
    import jax

    import griffin_jax
    from griffin_jax.devices import LOGICAL_AXES
    from griffin_jax.models import declarations
    from griffin_jax.models.lora_weight import LOW_RANK, low_rank_axes
    from griffin_jax.quantization import QuantizationConfig
    from griffin_jax.quantization.formats import format_of_type

    config = griffin_jax.preset("recurrentgemma-9b")
    parameters, kinds = {}, {}
    for path, declared in declarations(config).items():
        name = re.sub(r"blocks_\d+/", "", path)
        parameters[name] = [f"`{name}`", _dimensions(declared.axes), _sizes(declared.shape)]
        parameters[name].append(_layout(declared.axes))
        kinds[name] = declared
    linear = kinds["mlp_block/up_proj/weight"]
    state = jax.eval_shape(lambda: griffin_jax.init_state(config, 1, dtype="bfloat16"))
    states = {}
    for block, kind in zip(state.blocks, config.block_types, strict=True):
        for field, axes in vars(block.axes()).items():
            row = [f"`{kind}.{field}`", _dimensions(axes), _sizes(getattr(block, field).shape)]
            states[row[0]] = [*row, _layout(axes)]
    packed = []
    settings = {
        "NF4": QuantizationConfig(),
        "NF4, double quantized": QuantizationConfig(bnb_4bit_use_double_quant=True),
        "8 bits": QuantizationConfig(load_in_8bit=True),
    }
    for title, quantization in settings.items():
        weight = format_of_type(quantization.quant_type).abstract(
            linear.shape, "bfloat16", quantization
        )
        divisible = jax.eval_shape(lambda x: x.divisible(), weight)
        is_axes = lambda x: isinstance(x, tuple)  # noqa: E731
        pairs = zip(
            jax.tree_util.tree_leaves_with_path(divisible),
            jax.tree.leaves(divisible.axes(linear.axes), is_leaf=is_axes),
            strict=True,
        )
        for (path, leaf), axes in pairs:
            name = f"{title}: `{jax.tree_util.keystr(path).lstrip('.')}`"
            packed.append([name, _dimensions(axes), _sizes(leaf.shape), _layout(axes)])
    adapters = [
        [f"adapter `{name}`", _dimensions(axes), "", _layout(axes)]
        for name, axes in zip(LOW_RANK, low_rank_axes(linear.axes), strict=True)
    ]
    axes_rows = [
        [f"`{name}`", ", ".join(f"`{x}`" for x in (axis if isinstance(axis, tuple) else (axis,)))]
        for name, axis in LOGICAL_AXES.items()
        if name is not None
    ]
    head = ["array", "its dimensions", "shape in the 9B", "lies over"]
    return "\n\n".join(
        [
            "# Sharding table",
            "This page is made of the declarations in the code when the site is built. A layer names the "
            "dimensions of its parameters, a block's state names those of its fields, and `LOGICAL_AXES` in "
            "[devices.py](../../griffin_jax/devices.py) maps each name to mesh axes. [Many "
            "devices](../sharding/README.md) explains the axes.",
            "## Dimensions",
            _table(["dimension", "lies over"], axes_rows),
            "## Parameters",
            _table(head, parameters.values()),
            f"## A packed linear weight of {_sizes(linear.shape)}",
            _table(head, packed),
            "## Adapters",
            _table(head, adapters),
            "## Decoding state of one text",
            _table(head, states.values()),
        ]
    )


def _dimensions(axes: tuple) -> str:
    return ", ".join(axis or "-" for axis in axes)


def _layout(axes: tuple) -> str:
    from griffin_jax.devices import mesh_axes

    shown = [
        " and ".join(f"`{x}`" for x in (axis if isinstance(axis, tuple) else (axis,)))
        if axis
        else "whole"
        for axis in mesh_axes(axes)
    ]
    return "whole" if set(shown) <= {"whole"} else ", ".join(shown)


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{size:,}" for size in shape)


def _table(head, rows) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def metrics_page() -> str:
    """Returns every metric of the server, from the registry that it fills."""
    rows = [
        [
            f"`{name}`",
            kind,
            ", ".join(f"`{label}`" for label in labels),
            _cell(text),
        ]
        for name, kind, labels, text in metrics()
    ]
    return "\n\n".join(
        [
            "# Metrics of the server",
            "`GET /metrics` answers in Prometheus' text format. This page is made of the server's registry when "
            "the site is built. A counter is exported with `_total`, a histogram with `_bucket`, `_sum` and "
            "`_count` behind its name. [Serving](../serving/README.md) tells how to run the server.",
            _table(["metric", "type", "labels", "meaning"], rows),
        ]
    )


def metrics() -> list[tuple[str, str, tuple[str, ...], str]]:
    """Returns name, type, labels and meaning of every metric, as an idle server has them."""
    from types import SimpleNamespace

    from griffin_jax.inference import PrefixCache
    from griffin_jax.inference.stats import EngineStats
    from griffin_jax.serving.metrics import Metrics

    load = SimpleNamespace(writing=0, reading=0, waiting=0, slots=0, state_bytes=0)
    engine = SimpleNamespace(load=lambda: load, stats=EngineStats())
    served = Metrics("MODEL", engine, PrefixCache(1))
    served.count_error("KIND")
    plan = SimpleNamespace(tokens=())
    times = {"submitted": 0.0, "first_token_at": None, "ended_at": None}
    ended = SimpleNamespace(finish_reason="stop", plan=plan, num_tokens=0, **times)
    served.count_end(SimpleNamespace(request=ended))
    found = []
    for family in served.registry.collect():
        labels = getattr(family, "_labelnames", None)
        if labels is None:
            labels = tuple(family.samples[0].labels) if family.samples else ()
        labels = tuple(x for x in labels if x != "le")
        found.append((family.name, family.type, labels, family.documentation))
    return sorted(found, key=lambda row: (not row[0].startswith("griffin_"), row[0]))


def source_page(path: str) -> str:
    """Returns a file or a folder of the repository as a page, for a site without a repository.

    Args:
      path: From the root of the repository.
    """
    file = ROOT / path
    front = f"---\nsearch:\n  exclude: true\ntitle: {path}\n---\n\n"
    if file.is_dir():
        links = [
            f"| [{x.name}]({file.name}/{x.name}) | {_first_sentence(x)} |"
            for x in sorted(file.iterdir())
            if x.is_file() and x.suffix in (".py", ".md", ".yaml", ".json")
        ]
        return "\n".join([f"{front}# {path}\n", "| file | |", "| --- | --- |", *links, ""])
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        return front + text
    fence = "````"
    return f"{front}# {path}\n\n{fence}{_LANGUAGES.get(file.suffix, 'text')}\n{text.rstrip()}\n{fence}\n"


_LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml", ".yaml": "yaml", ".json": "json"}


def _first_sentence(path: Path) -> str:
    if path.suffix != ".py":
        return ""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return _cell(text.partition("\n\n")[0], "|[")
