"""Text to token ids and back: SentencePiece and `tokenizers` files, chat turns, streaming.

Both kinds of file hold a SentencePiece-style vocabulary: a space is written U+2581 ("▁") and a
character without a piece becomes its UTF-8 bytes, one piece `<0xNN>` each. Every piece therefore
stands for fixed bytes, and decoding is joining them. A text that itself contains U+2581 comes
back with a space in its place.
"""

import abc
import codecs
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence

import sentencepiece

from griffin_jax.config import GriffinConfig
from griffin_jax.files import new_file
from griffin_jax.paths import resolve

START_OF_TURN = "<start_of_turn>"
END_OF_TURN = "<end_of_turn>"

_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_TURN_NAMES = {"user": "user", "assistant": "model", "model": "model"}
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_NO_CHARACTER = "\N{REPLACEMENT CHARACTER}".encode()


class Tokenizer(abc.ABC):
    """A vocabulary with its special pieces; `load_tokenizer` makes one.

    Attributes:
      vocab_size: One more than the largest token id.
      bos_id: The token that starts every text.
      eos_id: The token that ends one.
      pad_id: The token that fills up rows of a batch; `eos_id` where the vocabulary has none.
      stop_ids: The tokens that end a generated text: EOS, and `<end_of_turn>` where it exists.
    """

    def __init__(
        self, folder: pathlib.Path, vocab_size: int, bos_id: int, eos_id: int, pad_id: int | None
    ):
        self._folder = folder
        self.vocab_size = vocab_size
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.pad_id = eos_id if pad_id is None else pad_id
        start, end = map(self.piece_to_id, (START_OF_TURN, END_OF_TURN))
        self.stop_ids = (eos_id,) if end is None else (eos_id, end)
        self._turn_ids = (start, end)
        # Gemma's vocabulary does not, but many put a space before a text and drop it again.
        self._adds_space = self._join(self._encode("x")) == b" x"

    @abc.abstractmethod
    def piece_to_id(self, piece: str) -> int | None:
        """The id of `piece`, None where the vocabulary lacks it."""

    @property
    @abc.abstractmethod
    def _bos_piece(self) -> str:
        """How the vocabulary writes BOS."""

    @abc.abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Token ids of `text`, nothing added."""

    @abc.abstractmethod
    def _piece(self, token_id: int) -> str:
        """The piece as the vocabulary writes it; empty for an id that stands for no text."""

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Token ids of `text`; turn marks in it become their own tokens, as Gemma's do.

        A text that begins with `<bos>` (the BOS piece) starts with that one token, whatever `bos` says.

        Args:
          text: Any Unicode text.
          bos: Whether the ids start with `bos_id`.

        Raises:
          ValueError: `text` holds a lone surrogate, which is no character.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text is not valid Unicode: {error}") from None
        if text.startswith(self._bos_piece):
            bos, text = True, text.removeprefix(self._bos_piece)
        return [self.bos_id, *self._encode(text)] if bos else self._encode(text)

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of `token_ids`, without special tokens.

        Bytes that are not UTF-8 and ids outside the vocabulary become U+FFFD.
        """
        decoder = StreamDecoder(self)
        return decoder.push(token_ids) + decoder.flush()

    def format_chat(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation in Gemma's turns, to be passed to `encode`, which adds BOS.

        White space around each message is dropped. Gemma has no system turn: a system message
        goes before the first user message, with a blank line between.

        Args:
          messages: `{"role": ..., "content": ...}` each: at most one "system" first, then "user"
            and "assistant" (or "model") in turn.
          add_generation_prompt: Whether to open the model's turn at the end.

        Raises:
          ValueError: the roles do not alternate so, a field is missing or not text, or the
            vocabulary has no turn marks.
        """
        if None in self._turn_ids:
            raise ValueError(
                f"{self._folder}: the tokenizer lacks {START_OF_TURN} or {END_OF_TURN}, "
                "so it has no chat format; give a plain prompt"
            )
        turns = []
        for index, message in enumerate(messages):
            role, content = message.get("role"), message.get("content")
            if not isinstance(content, str):
                raise ValueError(f"messages[{index}]: content must be text, got {content!r}")
            turns.append((role, content.strip()))
        system = turns.pop(0)[1] + "\n\n" if turns and turns[0][0] == "system" else ""
        if not turns:
            raise ValueError("messages: no user message; a chat starts with one")

        text = ""
        for index, (role, content) in enumerate(turns):
            expected = "assistant" if index % 2 else "user"
            if _TURN_NAMES.get(role) != _TURN_NAMES[expected]:
                raise ValueError(
                    f"messages: roles must alternate user, assistant, user, ... after an optional "
                    f"system message; got {role!r} where {expected!r} belongs"
                )
            prefix = system if index == 0 else ""
            text += f"{START_OF_TURN}{_TURN_NAMES[role]}\n{prefix}{content}{END_OF_TURN}\n"
        return text + f"{START_OF_TURN}model\n" if add_generation_prompt else text

    def save(self, folder: str | os.PathLike) -> None:
        """Copies the files that this tokenizer was loaded from into an existing `folder`."""
        folder = resolve(folder, "folder")
        for name in _FILES:
            if (self._folder / name).exists():
                with (self._folder / name).open("rb") as source, new_file(folder / name) as file:
                    shutil.copyfileobj(source, file)

    def _join(self, token_ids: Iterable[int]) -> bytes:
        return b"".join(self._piece_bytes(int(token_id)) for token_id in token_ids)

    def _piece_bytes(self, token_id: int) -> bytes:
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
        """The text that `token_ids` complete; may be empty."""
        text = self._utf8.decode(self._tokenizer._join(token_ids))
        if text and self._drop_space:
            self._drop_space = False
            return text.removeprefix(" ")
        return text

    def flush(self) -> str:
        """What is still held back once no token follows: U+FFFD for an unfinished character."""
        return self._utf8.decode(b"", final=True)


class _SentencePieceTokenizer(Tokenizer):
    def __init__(self, folder: pathlib.Path):
        path = folder / "tokenizer.model"
        processor = self._processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(path.read_bytes())
            bos_id, eos_id, pad_id = processor.bos_id(), processor.eos_id(), processor.pad_id()
        except RuntimeError:
            bos_id = eos_id = pad_id = -1
        lacking = [name for name, i in (("BOS", bos_id), ("EOS", eos_id)) if i < 0]
        if lacking:
            raise ValueError(
                f"{path}: truncated, or not a SentencePiece model with BOS and EOS pieces (it has "
                f"no {' and no '.join(lacking)}); fetch it again"
            )
        size = processor.get_piece_size()
        super().__init__(folder, size, bos_id, eos_id, pad_id if pad_id >= 0 else None)

    @property
    def _bos_piece(self) -> str:
        return self._processor.id_to_piece(self.bos_id)

    def piece_to_id(self, piece: str) -> int | None:
        token_id = self._processor.piece_to_id(piece)
        return token_id if self._processor.id_to_piece(token_id) == piece else None

    def _encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def _piece(self, token_id: int) -> str:
        processor = self._processor
        if processor.is_control(token_id) or processor.is_unknown(token_id):
            return ""
        return processor.id_to_piece(token_id)


class _JsonTokenizer(Tokenizer):
    _bos_piece = "<bos>"

    def __init__(self, folder: pathlib.Path):
        path = folder / "tokenizer.json"
        try:
            import tokenizers
        except ImportError:
            raise ImportError(
                f"{path}: reading it takes `pip install 'griffin_jax[hf]'`; "
                "a tokenizer.model beside it would do without"
            ) from None
        try:
            self._backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # `tokenizers` raises nothing more specific
            raise ValueError(f"{path}: not a whole tokenizer.json: {error}") from None
        self._backend.no_padding()
        self._backend.no_truncation()
        added = self._backend.get_added_tokens_decoder()
        self._special = {token_id for token_id, token in added.items() if token.special}
        bos_id, eos_id, pad_id = map(self.piece_to_id, (self._bos_piece, "<eos>", "<pad>"))
        if bos_id is None or eos_id is None:
            raise ValueError(f"{path}: a Griffin model's vocabulary holds <bos> and <eos>")
        size = 1 + max(self._backend.get_vocab(with_added_tokens=True).values())
        super().__init__(folder, size, bos_id, eos_id, pad_id)

        probe = self._encode("a é ▁ 😀")
        if self.decode(probe) != self._backend.decode(probe, skip_special_tokens=True):
            raise ValueError(
                f"{path}: its pieces are not SentencePiece's (▁ for a space, <0xNN> for a byte) as "
                "a Griffin model's are"
            )

    def piece_to_id(self, piece: str) -> int | None:
        return self._backend.token_to_id(piece)

    def _encode(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def _piece(self, token_id: int) -> str:
        return "" if token_id in self._special else self._backend.id_to_token(token_id) or ""


def load_tokenizer(folder: str | os.PathLike) -> Tokenizer:
    """Loads `tokenizer.model` from a model's folder, or `tokenizer.json` where only that exists.

    Raises:
      FileNotFoundError: `folder` holds neither.
      ImportError: only `tokenizer.json` is there and the `[hf]` extra is not installed.
      ValueError: the file is truncated, lacks BOS or EOS, or is not SentencePiece-style.
    """
    folder = resolve(folder, "folder")
    if (folder / "tokenizer.model").is_file():
        return _SentencePieceTokenizer(folder)
    if (folder / "tokenizer.json").is_file():
        return _JsonTokenizer(folder)
    raise FileNotFoundError(f"{folder}: holds neither tokenizer.model nor tokenizer.json")


def find_tokenizer(folder: str | os.PathLike, config: GriffinConfig) -> Tokenizer | None:
    """The tokenizer beside a model, None where there is none.

    Raises:
      ImportError: as `load_tokenizer`.
      ValueError: as `load_tokenizer`, or the tokenizer does not fit the model.
    """
    try:
        tokenizer = load_tokenizer(folder)
    except FileNotFoundError:
        return None
    check_vocabulary(tokenizer, config)
    return tokenizer


def check_vocabulary(tokenizer: Tokenizer, config: GriffinConfig) -> None:
    """Checks that every token id has a row in the model's embedding; spare rows are fine.

    Raises:
      ValueError: the tokenizer has more pieces than the embedding has rows.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{tokenizer._folder}: the tokenizer has {tokenizer.vocab_size} pieces but the model's "
            f"embedding {config.vocab_size} rows (vocab_size); they do not belong together"
        )
