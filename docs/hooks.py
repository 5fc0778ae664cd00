"""What the site has beside the pages in docs/: a page for each command and each part of the Python API.

mkdocs calls the functions `on_*`. Links that leave docs/ lead to the repository, where they must exist.
"""

import ast
import importlib
import posixpath
import re
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
COMMANDS, API = "reference/commands/", "reference/api/"
# Title and modules of every page of the API.
PARTS = {
    "griffin_jax": ["griffin_jax"],
    "Models": ["griffin_jax.models", "griffin_jax.config"],
    "Inference": ["griffin_jax.inference"],
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
}


def on_config(config: MkDocsConfig) -> None:
    """Lists the generated pages in the navigation."""
    sys.path.insert(0, str(ROOT))
    from griffin_jax import console

    config.extra["commands"] = console.summaries(ROOT / "experiments")
    lists = {
        COMMANDS: [
            f"{COMMANDS}README.md",
            *({x: f"{COMMANDS}{x}.md"} for x in config.extra["commands"]),
        ],
        API: [{title: f"{API}{_slug(title)}.md"} for title in PARTS],
    }
    _fill(config.nav, lists)


def _fill(nav: Any, lists: dict[str, list]) -> None:
    for entry in nav if isinstance(nav, list) else []:
        for title, value in entry.items() if isinstance(entry, dict) else ():
            if isinstance(value, str) and value in lists:
                entry[title] = lists[value]
            else:
                _fill(value, lists)


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the generated pages."""
    pages = {f"{API}{_slug(title)}.md": api_page(title, names) for title, names in PARTS.items()}
    pages |= dict(command_pages(config.extra["commands"]))
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links that leave docs/ to the repository, and those of a folder to its page."""
    folder = posixpath.dirname(page.file.src_uri)

    def lead(match):
        text, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join("docs", folder, target))
        if path.startswith("docs/") and not (ROOT / path).is_dir():
            return match[0]
        if not (ROOT / path).exists():
            raise PluginError(f"{page.file.src_uri}: {target} leads to {path}, which is not there")
        if (ROOT / path / "README.md").exists() and path.startswith("docs/"):
            return f"[{text}]({target.rstrip('/')}/README.md{anchor})"
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"[{text}]({config.repo_url.rstrip('/')}/{kind}/main/{path}{anchor})"

    return re.sub(
        r"(?<!!)\[([^\]\n]*(?:\n[^\]\n]+)?)\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)",
        _or_empty(lead),
        markdown,
    )


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns formulas into MathML, which browsers draw without a script from elsewhere."""

    def draw(match):
        tag, text = match[1], unescape(match[2])
        return convert(text, display="block" if tag == "div" else "inline")

    formula = r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>'
    return re.sub(formula, draw, html, flags=re.DOTALL)


def _or_empty(lead):
    """Lets a link without an anchor have an empty one."""

    class Match:
        def __init__(self, match):
            self._match = match

        def groups(self):
            return tuple(group or "" for group in self._match.groups())

        def __getitem__(self, index):
            return self._match[index]

    return lambda match: lead(Match(match))


def api_page(title: str, modules: list[str]) -> str:
    """A page whose content mkdocstrings takes from the docstrings."""
    parts = [f"# {title}", *(f"::: {module}" for module in modules)]
    return "\n\n".join(parts) + "\n"


def command_pages(commands: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Path and content of the page of each command, and of the list of all."""
    from absl import flags

    import experiments.command  # noqa: F401, whose flags are every command's
    from experiments import command_help

    configs = _configs()
    rows = [f"| [`{name}`]({name}.md) | {text} |" for name, text in commands.items()]
    yield (
        f"{COMMANDS}README.md",
        "\n".join([_COMMANDS, "| command | does |", "| --- | --- |", *rows, ""]),
    )
    shared = set(flags.FLAGS)
    for name in commands:
        module = importlib.import_module(f"experiments.{name}")
        summary, _, rest = (module.__doc__ or "").partition("\n\n")
        lines = [f"# {name}", "", summary, "", _indented(rest), "", "## Flags", ""]
        keys = flags.FLAGS.get_key_flags_for_module(module)
        lines += _table("flag", [(f"--{x.name}", x.value, x.help or "") for x in keys])
        for flag in set(flags.FLAGS) - shared:  # another command may have one of the same name
            delattr(flags.FLAGS, flag)
        if config := getattr(module, "_CONFIG", None):
            lines += [
                "",
                "## Fields of the config",
                "",
                f"`--config.NAME=VALUE`; the defaults are those of `{config.default}`.",
                "",
            ]
            lines += _table("field", command_help.fields(config))
            lines += ["", "## Configs that ship", "", "| config | |", "| --- | --- |"]
            lines += [
                f"| `{file}` | {text} |" for file, (owner, text) in configs.items() if owner == name
            ]
        yield f"{COMMANDS}{name}.md", "\n".join(lines) + "\n"


_COMMANDS = """# Commands

Each is `python -m experiments.NAME` in a checkout and `griffin-jax NAME` where the package is installed.
`--config=FILE` takes a file of your own or the bare name of one that ships, `--config.FIELD=VALUE` sets a field of
it, `--help` lists flags and fields, and `--verbosity=1` shows the traceback of an error.
"""


def _configs() -> dict[str, tuple[str, str]]:
    """The command and the first sentence of every config that ships."""
    found = {}
    for path in sorted((ROOT / "configs").glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if owner := re.search(r"python -m experiments\.(\w+)", text):
            found[path.stem] = owner[1], " ".join(text.partition("\n\n")[0].split())
    return found


def _table(head: str, rows: list[tuple[str, Any, str]]) -> list[str]:
    def cell(text, special="|"):
        return re.sub(f"([{re.escape(special)}])", r"\\\1", " ".join(str(text).split()))

    lines = [f"| {head} | default | |", "| --- | --- | --- |"]
    for name, value, text in rows:
        shown = "" if value in (None, "") else f"`{cell(value)[:60]}`"
        lines.append(f"| `{name}` | {shown} | {cell(text, '|[')} |")
    return lines


def _indented(text: str) -> str:
    """A docstring's indented commands as blocks of code."""
    return re.sub(r"(?m)^  (?=\S)", "    ", text)


def _slug(title: str) -> str:
    return title.lower().replace(" ", "-")
