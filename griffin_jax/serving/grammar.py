"""Rules that texts have to obey, as masks of the tokens that may follow: JSON, regular expressions, grammars.

By llguidance, in whose terms `grammar` is Lark's. A mask holds however the model is inclined; a text
that ends by itself obeys.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

import llguidance
import numpy as np

from griffin_jax.fields import shown
from griffin_jax.serving.errors import invalid
from griffin_jax.serving.protocol import Generation, check_unicode
from griffin_jax.tokenizer import Tokenizer

_MOST_CHARACTERS = 65_536
_MOST_DEPTH = 64  # of a schema, or of brackets
# Blanks between the parts of JSON; without a bound a model may write nothing else.
_BLANKS = {"whitespace_flexible": True, "whitespace_pattern": r"[ \t\n\r]{0,20}"}


class Compiler:
    """Makes rules for the vocabulary of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        """Makes a compiler.

        Args:
          tokenizer: The model's.
          vocab_size: Rows of the model's output, of which some may be no token.
        """
        self.vocab_size = vocab_size
        self._tokenizer = tokenizer

    @functools.cached_property
    def vocabulary(self) -> llguidance.LLTokenizer:
        """The vocabulary as llguidance has it, which takes a second for a large one."""
        stop_ids = list(self._tokenizer.stop_ids)
        wrapper = llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer))
        return llguidance.LLTokenizer(wrapper, n_vocab=self.vocab_size, eos_token=stop_ids)

    def compile(self, source: str, field: str, stop_ids: Sequence[int]) -> "Rules":
        """Returns the rules of a grammar of llguidance.

        Args:
          source: The grammar.
          field: The request's field that it comes from.
          stop_ids: Tokens that end a text.

        Raises:
          RequestError: it is no grammar.
        """
        matcher = llguidance.LLMatcher(self.vocabulary, source, log_level=0)
        if matcher.is_error():
            raise invalid(f"{field}: {_line(matcher.get_error())}", field)
        ends = [t for t in self._tokenizer.stop_ids if t not in stop_ids]
        return Rules(matcher, self.vocab_size, tuple(ends))


@dataclasses.dataclass(frozen=True)
class Rules:
    """The rules that each text of a request obeys.

    Attributes:
      matcher: llguidance's, at the beginning of a text.
      vocab_size: The model's.
      no_ends: Tokens that would end a text, and do not end those of this request.
    """

    matcher: llguidance.LLMatcher
    vocab_size: int
    no_ends: tuple[int, ...]

    def begin(self) -> "Progress":
        """Returns the rules of one text."""
        return Progress(self.matcher.deep_copy(), self.vocab_size, self.no_ends)


class Progress:
    """The place of one text in its rules; a `Grammar` of the engine."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int, no_ends: tuple[int, ...]):
        self._matcher = matcher
        self._words = -(-vocab_size // 32)
        self._no_ends = no_ends
        self._count = 0

    def allowed(self, tokens: Sequence[int]) -> np.ndarray:
        """Returns which tokens may follow `tokens`, as bits int32[ceil(V / 32)].

        Args:
          tokens: All of the text so far; what was asked before is its beginning.

        Raises:
          RequestError: the rules become too complex on the way.
        """
        mask = np.zeros(self._words, np.int32)
        new = [int(token) for token in tokens[self._count :]]
        self._count = len(tokens)
        if new and not self._matcher.is_stopped():
            self._matcher.consume_tokens(new)
        if self._matcher.is_error():
            raise invalid(f"the rules of the text: {_line(self._matcher.get_error())}")
        if self._matcher.is_stopped():
            return mask
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self._matcher.is_error():
            raise invalid(f"the rules of the text: {_line(self._matcher.get_error())}")
        for token in self._no_ends:
            mask.view(np.uint32)[token // 32] &= np.uint32(0xFFFFFFFF ^ (1 << token % 32))
        return mask


class _Vocabulary:
    """A tokenizer as llguidance wants one."""

    def __init__(self, tokenizer: Tokenizer):
        ids = range(tokenizer.vocab_size)
        pieces = [tokenizer.token_bytes(token) for token in ids]
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.eos_id
        self.bos_token_id = tokenizer.bos_id
        self.special_token_ids = [token for token in ids if not pieces[token]]
        self.tokens = [
            piece or f"<special_{token}>".encode() for token, piece in zip(ids, pieces, strict=True)
        ]

    def __call__(self, text: str | bytes) -> list[int]:
        text = text.decode(errors="replace") if isinstance(text, bytes) else text
        return self._tokenizer.encode(text, bos=False, special="text")


def rules_of(body: Generation, compiler: Compiler, stop_ids: Sequence[int]) -> Rules | None:
    """Returns what the texts of a request have to obey; None for nothing.

    Raises:
      RequestError: they are no rules, or there are several.
    """
    given = [
        name
        for name, value in (
            ("response_format", _is_format(body.response_format)),
            ("regex", body.regex),
            ("grammar", body.grammar),
        )
        if value
    ]
    if not given:
        return None
    if len(given) > 1:
        raise invalid(f"give one of {' and '.join(given)}", given[1])
    (field,) = given
    if field == "response_format":
        source = _of_schema(_schema_of(body.response_format))
    else:
        text = check_unicode(getattr(body, field), field)
        _check_text(text, field)
        make = llguidance.LLMatcher.grammar_from_regex
        source = make(text) if field == "regex" else llguidance.LLMatcher.grammar_from_lark(text)
    return compiler.compile(source, field, stop_ids)


def _is_format(value: Any) -> bool:
    """Returns whether a response format asks for anything but text."""
    if value is None:
        return False
    kind = value.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise invalid(
            "response_format.type must be one of text, json_object, json_schema, got "
            f"{shown(kind)}",
            "response_format",
        )
    return kind != "text"


def _schema_of(value: dict[str, Any]) -> Any:
    """Returns the JSON schema that a response format names."""
    if value["type"] == "json_object":
        return {"type": "object"}
    wrapper = value.get("json_schema")
    schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
    if not isinstance(schema, dict):
        raise invalid(
            f"response_format.json_schema.schema must be a JSON schema, got {shown(schema)}",
            "response_format",
        )
    return schema


def _of_schema(schema: Any) -> str:
    if _depth(schema) > _MOST_DEPTH:
        raise invalid(
            f"response_format: the schema is nested more than {_MOST_DEPTH} deep", "response_format"
        )
    _check_text(json.dumps(schema), "response_format")
    try:
        return llguidance.LLMatcher.grammar_from_json_schema(schema, defaults=_BLANKS)
    except ValueError as error:
        raise invalid(f"response_format: {_line(error)}", "response_format") from None


def _check_text(text: str, field: str) -> None:
    if len(text) > _MOST_CHARACTERS:
        raise invalid(
            f"{field} has {len(text)} characters; {_MOST_CHARACTERS} are the most here", field
        )
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    if deepest > _MOST_DEPTH:
        raise invalid(f"{field} is nested more than {_MOST_DEPTH} deep", field)


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner += one.values()
            elif isinstance(one, list):
                inner += one
        level = inner
    return depth


def _line(error: object) -> str:
    """Returns what llguidance says, in one line of bounded length, without its own state."""
    said = str(error).partition("<state>")[0]
    if "NoExtensionBias" in said:
        return "no text obeys them"
    return " ".join(said.split())[:300]
