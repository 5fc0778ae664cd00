"""What the site has beside the pages in docs/: generated pages, links to source, and formulas.

mkdocs calls the functions `on_*`. Links that leave docs/ must lead to something in the repository. They
become links to `repo_url` where mkdocs.yml or REPOSITORY_URL names one, and otherwise to a page of the site
that shows the file.
"""

import posixpath
import re
import sys
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]
import site_pages  # noqa: E402
from site_pages import API, COMMANDS, SOURCE  # noqa: E402

_LINK = re.compile(
    r"(?<!!)\[(?P<text>[^\]\n]*(?:\n[^\]\n]+)?)\]\((?!\w+:)(?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)"
)


def on_config(config: MkDocsConfig) -> None:
    """Lists the generated pages in the navigation."""
    # mkdocs takes back what a hook adds while it is loaded, and commands are imported later.
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from griffin_jax import console

    config.extra["commands"] = console.summaries(ROOT / "experiments")
    lists = {
        COMMANDS: [
            f"{COMMANDS}README.md",
            *({x: f"{COMMANDS}{x}.md"} for x in config.extra["commands"]),
        ],
        API: [{title: f"{API}{site_pages.slug(title)}.md"} for title in site_pages.PARTS],
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
    """Adds the generated pages, and those of source that any page links to."""
    pages = {
        f"{API}{site_pages.slug(title)}.md": site_pages.api_page(title, names)
        for title, names in site_pages.PARTS.items()
    }
    pages |= dict(site_pages.command_pages(config.extra["commands"]))
    pages[site_pages.SHARDINGS] = site_pages.shardings_page()
    pages[site_pages.METRICS] = site_pages.metrics_page()
    if not config.repo_url:
        texts = {x.src_uri: x.content_string for x in files.documentation_pages()} | pages
        pages |= _source_pages(texts)
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))


def _source_pages(texts: dict[str, str]) -> dict[str, str]:
    """Returns a page for everything outside of docs/ that pages link to, and these in turn."""
    found: dict[str, str] = {}
    left = dict(texts)
    while left:
        uri, text = left.popitem()
        if _is_code(uri):
            continue
        for match in _LINK.finditer(text):
            path = _in_repository(uri, match["target"])
            name = f"{SOURCE}{path}.md"
            if _leaves_docs(path) and (ROOT / path).exists() and name not in found:
                left[name] = found[name] = site_pages.source_page(path)
    return found


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links that leave docs/ to the source, and those of a folder to its page."""
    uri = page.file.src_uri
    if _is_code(uri):
        return markdown

    def lead(match):
        text, target, anchor = match["text"], match["target"], match["anchor"] or ""
        path = _in_repository(uri, target)
        if not _leaves_docs(path):
            if not (ROOT / path).is_dir():
                return match[0] if not uri.startswith(SOURCE) else _relative(uri, path, match)
            return f"[{text}]({posixpath.relpath(path, _folder(uri))}/README.md{anchor})"
        if not (ROOT / path).exists():
            raise PluginError(f"{uri}: {target} leads to {path}, which is not there")
        if not config.repo_url:
            name = posixpath.relpath(f"{SOURCE}{path}.md", posixpath.dirname(uri))
            return f"[{text}]({name}{anchor if path.endswith('.md') else ''})"
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"[{text}]({config.repo_url.rstrip('/')}/{kind}/main/{path}{anchor})"

    return _LINK.sub(lead, markdown)


def _is_code(uri: str) -> bool:
    """Returns whether a page shows a file of code, in which brackets make no links."""
    path = ROOT / uri.removeprefix(SOURCE).removesuffix(".md")
    return uri.startswith(SOURCE) and path.is_file() and path.suffix != ".md"


def _folder(uri: str) -> str:
    """Returns the folder of the repository that a page's links are relative to."""
    if uri.startswith(SOURCE):
        return posixpath.dirname(uri.removeprefix(SOURCE).removesuffix(".md"))
    return posixpath.dirname(f"docs/{uri}")


def _in_repository(uri: str, target: str) -> str:
    return posixpath.normpath(posixpath.join(_folder(uri), target))


def _leaves_docs(path: str) -> bool:
    """Returns whether the site has no page for a path, as for a folder of docs/ without one of its own."""
    folder = ROOT / path
    bare = folder.is_dir() and not (folder / "README.md").exists()
    return bare or not (path.startswith("docs/") or path == "docs")


def _relative(uri: str, path: str, match: re.Match) -> str:
    """Returns a link from a page of source to a page in docs/."""
    target = posixpath.relpath(path.removeprefix("docs/"), posixpath.dirname(uri))
    return f"[{match['text']}]({target}{match['anchor'] or ''})"


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns formulas into MathML, which browsers draw without a script from elsewhere."""

    def draw(match):
        tag, text = match[1], unescape(match[2])
        return convert(text, display="block" if tag == "div" else "inline")

    formula = r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>'
    return re.sub(formula, draw, html, flags=re.DOTALL)
