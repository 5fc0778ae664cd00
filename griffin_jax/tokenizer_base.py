"""A vocabulary with its special pieces, whatever file it comes from; decoding while tokens arrive."""

import abc
import codecs
import functools
import itertools
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from griffin_jax.chat_templates import END_OF_TURN, START_OF_TURN, gemmas_turns, is_gemmas, render
from griffin_jax.files import new_file
from griffin_jax.paths import AnyPath, resolve
from griffin_jax.tokenizer_files import KEPT

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_NO_CHARACTER = "\N{REPLACEMENT CHARACTER}".encode()


class Tokenizer(abc.ABC):
    """A vocabulary with its special pieces; `load_tokenizer` makes one.

    Attributes:
      vocab_size: One more than the largest token id.
      bos_id: The token that starts every text.
      eos_id: The token that ends one.
      pad_id: The token that fills up rows of a batch; `eos_id` where the vocabulary has none.
      stop_ids: The tokens that end a generated text: those of generation_config.json, or of
        config.json where that is missing, or EOS; and `<end_of_turn>` where it exists.
      adds_bos: Whether a text begins with BOS unless it is told otherwise, as it does if no file
        says it.
    """

    def __init__(
        self,
        folder: Path,
        vocab_size: int,
        bos_id: int,
        eos_id: int,
        pad_id: int | None,
        *,
        stop_ids: Sequence[int] | None = None,
        adds_bos: bool = True,
        template: str | None = None,
    ):
        self._folder = folder
        self.vocab_size = vocab_size
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.pad_id = eos_id if pad_id is None else pad_id
        self.adds_bos = adds_bos
        self._template = template
        _, end = self._turn_ids = tuple(map(self.piece_to_id, (START_OF_TURN, END_OF_TURN)))
        stop_ids = (eos_id,) if stop_ids is None else stop_ids
        self.stop_ids = tuple(dict.fromkeys(stop_ids if end is None else (*stop_ids, end)))
        # Gemma's vocabulary does not, but many put a space before a text and drop it again.
        self._adds_space = self._join(self._encode("x")) == b" x"

    @abc.abstractmethod
    def piece_to_id(self, piece: str) -> int | None:
        """Returns the id of `piece`, None where the vocabulary lacks it."""

    @property
    @abc.abstractmethod
    def _bos_piece(self) -> str:
        """How the vocabulary writes BOS."""

    @abc.abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Returns the token ids of `text`, special pieces as their own tokens, nothing added."""

    @abc.abstractmethod
    def _piece(self, token_id: int) -> str:
        """Returns the piece as the vocabulary writes it; empty for an id that stands for no
        text.
        """

    def _special_pieces(self) -> set[str]:
        """Returns how the tokens that mean something else than their letters are written."""
        return {self._bos_piece, START_OF_TURN, END_OF_TURN}

    def _template_tokens(self) -> dict[str, str | None]:
        """Returns what bos_token and so on are in a chat template."""
        return {"bos_token": self._bos_piece}

    def encode(
        self, text: str, bos: bool | None = None, special: Literal["token", "text"] = "token"
    ) -> list[int]:
        """Returns the token ids of `text`.

        A text that begins with `<bos>` (the BOS piece) starts with that one token, whatever `bos`
        says.

        Args:
          text: Any Unicode text.
          bos: Whether the ids start with `bos_id`; None does as the model's files say (`adds_bos`).
          special: What `<eos>`, marks of turns and other special pieces in the text are. "token":
            their own tokens, as transformers has it, whichever tokenizer file there is. "text":
            what they are made of, for text that comes from others, who could otherwise end a turn
            or a document with it.

        Raises:
          ValueError: `text` holds a lone surrogate, which is no character, or an argument is wrong.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text is not valid Unicode: {error}") from None
        if special not in ("token", "text"):
            raise ValueError(f"special must be 'token' or 'text', got {special!r}")
        bos = self.adds_bos if bos is None else bos
        if special == "text":
            ids = self._encode_literally(text)
        else:
            if text.startswith(self._bos_piece):
                bos, text = True, text.removeprefix(self._bos_piece)
            ids = self._encode(text)
        return [self.bos_id, *ids] if bos else ids

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Returns the token ids of a text and of what follows it, as lm-evaluation-harness cuts them.

        Blanks at the context's end belong to the continuation, whose first word they are one piece
        with. The context's tokens are those of the context alone, behind BOS, and the continuation's
        are those of both together beyond as many, which may be none.
        """
        words = context.rstrip()
        before, whole = self.encode(words), self.encode(context + continuation)
        if not before:  # the model's files say that texts begin without BOS
            before, whole = [self.bos_id], [self.bos_id, *whole]
        return before, whole[len(before) :]

    @functools.cached_property
    def _marks(self) -> re.Pattern:
        pieces = sorted((p for p in self._special_pieces() if len(p) > 1), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, pieces)))

    def _encode_literally(self, text: str) -> list[int]:
        """Does what `_encode` does, every mark cut in two behind its first character, so that none is found."""
        cuts = [0, *(mark.start() + 1 for mark in self._marks.finditer(text)), len(text)]
        parts = [text[begin:end] for begin, end in itertools.pairwise(cuts)]
        return [token_id for part in parts for token_id in self._encode(part)]

    def decode(self, token_ids: Iterable[int]) -> str:
        """Returns the text of `token_ids`, without special tokens.

        Bytes that are not UTF-8 and ids outside the vocabulary become U+FFFD.
        """
        decoder = StreamDecoder(self)
        return decoder.push(token_ids) + decoder.flush()

    @functools.cached_property
    def has_gemmas_turns(self) -> bool:
        """Whether conversations are written in Gemma's turns, not by a template of another kind."""
        return is_gemmas(self._template, self._template_tokens())

    def check_turns(self) -> None:
        """Checks that a conversation can be carried on turn by turn, which takes Gemma's turns.

        Raises:
          ValueError: the vocabulary has no marks for turns, or the model another chat template.
        """
        if not self.has_gemmas_turns:
            raise ValueError(
                f"{self._folder}: its chat template writes no {START_OF_TURN} turns, so a "
                "conversation is not carried on from turn to turn; give `format_chat`'s text of all "
                "of it as a prompt"
            )
        if None in self._turn_ids:
            raise ValueError(
                f"{self._folder}: the tokenizer lacks {START_OF_TURN} or {END_OF_TURN}, "
                "so it has no chat format; give a plain prompt"
            )

    def format_chat(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Returns a conversation as one text, to be passed to `encode`, which adds BOS.

        That is what the model's chat template makes of it where there is one of another kind, and
        otherwise Gemma's turns: white space around each message is dropped. Gemma has no system
        turn: a system message goes before the first user message, with a blank line between.

        Args:
          messages: `{"role": ..., "content": ...}` each: at most one "system" first, then "user"
            and "assistant" (or "model") in turn.
          add_generation_prompt: Whether to open the model's turn at the end.

        Raises:
          ImportError: a template of another kind needs jinja2, which is not installed.
          ValueError: the roles do not alternate so, a field is missing or not text, or the
            vocabulary has no turn marks.
        """
        if not self.has_gemmas_turns:
            tokens = self._template_tokens()
            return render(self._template, messages, add_generation_prompt, tokens)
        self.check_turns()
        return gemmas_turns(messages, add_generation_prompt)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, str]],
        add_generation_prompt: bool = True,
        bos: bool | None = None,
        special: Literal["token", "text"] = "token",
    ) -> list[int]:
        """Returns the token ids of a conversation; under special="text" only its own marks are special.

        A message that comes from others can then not end its turn or open another one.

        Args:
          messages: As for `format_chat`.
          add_generation_prompt: As for `format_chat`.
          bos: As for `encode`.
          special: What special pieces in the messages are, as for `encode`.

        Raises:
          ImportError: as `format_chat`.
          ValueError: as `format_chat` and `encode`.
        """
        if special != "text":
            return self.encode(self.format_chat(messages, add_generation_prompt), bos, special)
        told = "".join(str(message.get("content")) for message in messages)
        cut = next(mark for mark in map(chr, range(0xE000, 0xF900)) if mark not in told)

        def taken_literally(content):
            if not isinstance(content, str):
                return content
            return self._marks.sub(lambda mark: mark[0][0] + cut + mark[0][1:], content)

        cut_up = [m | {"content": taken_literally(m.get("content"))} for m in map(dict, messages)]
        first, *parts = self.format_chat(cut_up, add_generation_prompt).split(cut)
        return self.encode(first, bos) + [i for part in parts for i in self._encode(part)]

    def save(self, folder: AnyPath) -> None:
        """Copies the files that this tokenizer was loaded from into an existing `folder`."""
        folder = resolve(folder, "folder")
        for name in KEPT:
            if (self._folder / name).exists():
                with (self._folder / name).open("rb") as source, new_file(folder / name) as file:
                    shutil.copyfileobj(source, file)

    def token_name(self, token_id: int) -> str:
        """Returns how reports write a token: as its text, or a special one as the vocabulary writes it.

        Bytes that are no whole characters are written as `bytes:\\xe2\\x96`.
        """
        piece = self.token_bytes(token_id)
        try:
            return piece.decode() or self._content(token_id)
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)

    def _content(self, token_id: int) -> str:
        """Returns how the vocabulary writes a token that stands for no text."""
        return self._bos_piece if token_id == self.bos_id else f"<{token_id}>"

    def _join(self, token_ids: Iterable[int]) -> bytes:
        return b"".join(self.token_bytes(int(token_id)) for token_id in token_ids)

    def token_bytes(self, token_id: int) -> bytes:
        """Returns what a token adds to a text, in UTF-8; nothing for a special one."""
        if (known := self._known_bytes.get(token_id)) is None:
            known = self._known_bytes[token_id] = self._bytes_of(token_id)
        return known

    @functools.cached_property
    def _known_bytes(self) -> dict[int, bytes]:
        """What tokens that came up before add: an engine asks for every token of every text."""
        return {}

    def _bytes_of(self, token_id):
        if token_id in self._turn_ids:
            return b""
        if not 0 <= token_id < self.vocab_size:
            return _NO_CHARACTER
        piece = self._piece(token_id)
        if byte := _BYTE_PIECE.fullmatch(piece):
            return bytes.fromhex(byte[1])
        return piece.replace("▁", " ").encode()


class StreamDecoder:
    """Decodes a text while its tokens arrive.

    What `push` and `flush` return, joined, is `tokenizer.decode` of all the tokens: a character
    whose bytes are spread over tokens is held back until it is whole. The cost of a token does
    not depend on how many came before.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = tokenizer._adds_space

    def push(self, token_ids: Iterable[int]) -> str:
        """Returns the text that `token_ids` complete; may be empty."""
        text = self._utf8.decode(self._tokenizer._join(token_ids))
        if text and self._drop_space:
            self._drop_space = False
            return text.removeprefix(" ")
        return text

    def flush(self) -> str:
        """Returns what is still held back once no token follows: U+FFFD for an unfinished
        character.
        """
        return self._utf8.decode(b"", final=True)
