"""What the small files beside a model's weights say about its tokens, as transformers reads them.

tokenizer_config.json, special_tokens_map.json, added_tokens.json and tokenizer.json tell which tokens
a vocabulary has beyond its own and which of them begin, end and fill up a text;
generation_config.json, or config.json where that is missing, at which ones a written text ends;
chat_template.jinja or tokenizer_config.json how a conversation is written down.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from griffin_jax.foreign_settings import is_off, only, read_settings, without_effect
from griffin_jax.text_files import TextFile, read_json

MODEL_FILE, JSON_FILE = "tokenizer.model", "tokenizer.json"
CONFIG_FILE, GENERATION_FILE = "tokenizer_config.json", "generation_config.json"
_MAP_FILE, _ADDED_FILE = "special_tokens_map.json", "added_tokens.json"
_MODEL_CONFIG_FILE, _TEMPLATE_FILE = "config.json", "chat_template.jinja"
# What goes along when a model is saved; all of it stays true under another format or dtype.
KEPT = (
    MODEL_FILE,
    JSON_FILE,
    CONFIG_FILE,
    GENERATION_FILE,
    _MAP_FILE,
    _ADDED_FILE,
    _TEMPLATE_FILE,
    "chat_template.json",
)
_NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_EXTRA = ("additional_special_tokens", "extra_special_tokens")
FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A text that is one token wherever it stands.

    Attributes:
      content: The text.
      id: Its token id; None where no file says it.
      special: It stands for no text: decoding leaves it out.
      lstrip: It takes the white space before it along.
      rstrip: And behind it.
      single_word: It does not count within a word.
      normalized: It is looked for behind the vocabulary's normalization, which for a Griffin model's
        makes no difference.
    """

    content: str
    id: int | None = None
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False

    @property
    def pattern(self) -> str:
        """A regular expression for where it stands."""
        word = rf"(?<!\w){re.escape(self.content)}(?!\w)" if self.single_word else None
        left, right = (r"\s*" if strip else "" for strip in (self.lstrip, self.rstrip))
        return left + (word or re.escape(self.content)) + right


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """What the files beside a vocabulary say.

    Attributes:
      folder: Where they lie.
      added: Tokens beyond those of the vocabulary, and those of it that are special, by content.
      named: The content of bos_token, eos_token and so on; None where a file says that there is none.
      adds_bos: Whether a text begins with BOS; None where no file says it.
      vocabulary: The pieces and ids of tokenizer.json; None without a whole one.
      template: The chat template in Jinja; None without one.
      stop_ids: The tokens at which a written text ends; None where no file says it.
    """

    folder: Path
    added: Mapping[str, AddedToken]
    named: Mapping[str, str | None]
    adds_bos: bool | None
    vocabulary: Mapping[str, int] | None
    template: str | None
    stop_ids: tuple[int, ...] | None


def read_files(folder: Path) -> TokenizerFiles:
    """Reads what lies beside a vocabulary.

    Raises:
      ValueError: a file is damaged, two contradict each other, or one asks for what is not supported.
    """
    config = _read(folder / CONFIG_FILE)
    whole = _read(folder / JSON_FILE)
    has_json = (folder / JSON_FILE).is_file()
    rules = {
        "split_special_tokens": is_off,
        # transformers leaves both to tokenizer.json where there is one.
        "add_eos_token": without_effect if has_json else is_off,
        "add_bos_token": without_effect if has_json else only(True, False),
    }
    read_settings(config, rules, str(folder / CONFIG_FILE), unknown=without_effect)
    config_bos = bool(config["add_bos_token"]) if "add_bos_token" in config else None
    named = {name: _content(config[name], folder) for name in _NAMED if name in config}
    added: dict[str, AddedToken] = {}

    def add(token: AddedToken, where: str) -> None:
        known = added.get(token.content)
        if known is not None and None not in (known.id, token.id) and known.id != token.id:
            raise ValueError(
                f"{folder}: {token.content!r} is token {known.id} and, in {where}, {token.id}; "
                "correct one of the two files"
            )
        id_ = token.id if token.id is not None else known and known.id
        added[token.content] = dataclasses.replace(token, id=id_)

    for entry in _list(whole.get("added_tokens"), folder / JSON_FILE, "added_tokens"):
        add(_token(entry, folder / JSON_FILE), JSON_FILE)
    extra = [token for name in _EXTRA for token in _extra(config.get(name), folder)]
    if "added_tokens_decoder" in config:
        decoder = config["added_tokens_decoder"] or {}
        if not isinstance(decoder, dict):
            raise ValueError(f"{folder / CONFIG_FILE}: added_tokens_decoder is no JSON object")
        for id_, entry in decoder.items():
            token = _token(entry, folder / CONFIG_FILE)
            if not id_.isdecimal():
                raise ValueError(f"{folder / CONFIG_FILE}: token id {id_!r:.40} is no number")
            add(dataclasses.replace(token, id=int(id_)), CONFIG_FILE)
    else:  # files of older versions, which count where that is missing
        older = _read(folder / _MAP_FILE)
        named |= {name: _content(older[name], folder) for name in _NAMED if name in older}
        extra += _extra(older.get("extra_special_tokens"), folder)
        special = {*filter(None, named.values()), *extra}
        for content, id_ in _read(folder / _ADDED_FILE).items():
            if isinstance(id_, bool) or not isinstance(id_, int):
                raise ValueError(f"{folder / _ADDED_FILE}: token id {id_!r:.40} is no number")
            add(AddedToken(content, id_, special=content in special), _ADDED_FILE)
    extra += [
        _content(value, folder)
        for name, value in config.items()
        if name.endswith("_token") and name not in _NAMED and isinstance(value, str | dict)
    ]
    for content in (*filter(None, named.values()), *filter(None, extra)):
        added[content] = dataclasses.replace(added.get(content, AddedToken(content)), special=True)
    _check_ids(folder, added)
    return TokenizerFiles(
        folder,
        added,
        named,
        _adds_bos(whole, folder) if has_json else config_bos,
        _vocabulary(whole),
        _template(folder, config),
        _stop_ids(folder),
    )


def _check_ids(folder: Path, added: Mapping[str, AddedToken]) -> None:
    by_id: dict[int, str] = {}
    for token in added.values():
        if token.id is not None and by_id.setdefault(token.id, token.content) != token.content:
            raise ValueError(
                f"{folder}: token {token.id} is {by_id[token.id]!r} in one file and "
                f"{token.content!r} in another; correct one of them"
            )


def _read(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file; empty where there is no file."""
    return read_json(path) if path.is_file() else {}


def _list(values: Any, path: Path, name: str) -> list:
    if values is None:
        return []
    if not isinstance(values, list):
        raise ValueError(f"{path}: {name} is no list")
    return values


def _token(entry: Any, path: Path) -> AddedToken:
    content = entry.get("content") if isinstance(entry, dict) else None
    if not isinstance(content, str) or not content:
        raise ValueError(f"{path}: an added token has no content: {entry!r:.80}")
    flags = {name: entry[name] for name in FLAGS if isinstance(entry.get(name), bool)}
    id_ = entry.get("id")
    if id_ is not None and (isinstance(id_, bool) or not isinstance(id_, int)):
        raise ValueError(f"{path}: token id {id_!r:.40} is no number")
    return AddedToken(content, id_, **{"special": False} | flags)


def _content(value: Any, folder: Path) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    return _token(value, folder / CONFIG_FILE).content


def _extra(values: Any, folder: Path) -> list[str]:
    if isinstance(values, dict):
        values = list(values.values())
    return [
        content
        for value in _list(values, folder / CONFIG_FILE, " or ".join(_EXTRA))
        if (content := _content(value, folder))
    ]


def _vocabulary(whole: dict[str, Any]) -> dict[str, int] | None:
    model = whole.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # with a score each
        pairs = (entry for entry in vocabulary if isinstance(entry, list) and entry)
        vocabulary = {entry[0]: i for i, entry in enumerate(pairs)}
    return vocabulary if isinstance(vocabulary, dict) else None


def _adds_bos(whole: dict[str, Any], folder: Path) -> bool | None:
    """Returns whether the post-processor puts a token before a text, which is all that it may
    do.
    """
    processor = whole.get("post_processor")
    steps = processor.get("processors", [processor]) if isinstance(processor, dict) else []
    templates = [s for s in steps if isinstance(s, dict) and s.get("type") == "TemplateProcessing"]
    kinds = [next(iter(piece), None) for step in templates for piece in step.get("single") or []]
    if kinds not in ([], ["Sequence"], ["SpecialToken", "Sequence"]):
        raise ValueError(
            f"{folder / JSON_FILE}: its post_processor puts more around a text than BOS before it, "
            "which is not supported"
        )
    return kinds == ["SpecialToken", "Sequence"] if kinds else None


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    if (folder / _TEMPLATE_FILE).is_file():
        return TextFile(folder / _TEMPLATE_FILE).text()
    template = config.get("chat_template")
    if isinstance(template, list):  # several, of which one is called so
        templates = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = templates.get("default")
    if template is not None and not isinstance(template, str):
        raise ValueError(f"{folder / CONFIG_FILE}: chat_template is no text")
    return template


def _stop_ids(folder: Path) -> tuple[int, ...] | None:
    """`eos_token_id`: transformers looks into config.json only where the other file is missing."""
    names = (GENERATION_FILE, _MODEL_CONFIG_FILE)
    name = next((name for name in names if (folder / name).is_file()), GENERATION_FILE)
    values = _read(folder / name).get("eos_token_id")
    if values is None:
        return None
    ids = tuple(values) if isinstance(values, list) else (values,)
    for id_ in ids:
        if isinstance(id_, bool) or not isinstance(id_, int) or id_ < 0:
            raise ValueError(f"{folder / name}: eos_token_id {id_!r:.40} is no token id")
    return ids or None
