"""Text to token ids and back: SentencePiece and `tokenizers` files, chat turns, streaming.

Both kinds of file hold a SentencePiece-style vocabulary: a space is written U+2581 ("▁") and a
character without a piece becomes its UTF-8 bytes, one piece `<0xNN>` each. Every piece therefore
stands for fixed bytes, and decoding is joining them. A text that itself contains U+2581 comes
back with a space in its place.
"""

import abc
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from griffin_jax.chat_templates import END_OF_TURN, START_OF_TURN
from griffin_jax.config import GriffinConfig
from griffin_jax.paths import AnyPath, resolve
from griffin_jax.tokenizer_base import StreamDecoder, Tokenizer
from griffin_jax.tokenizer_files import (
    FLAGS,
    JSON_FILE,
    MODEL_FILE,
    AddedToken,
    TokenizerFiles,
    read_files,
)

__all__ = [
    "END_OF_TURN",
    "START_OF_TURN",
    "StreamDecoder",
    "Tokenizer",
    "check_vocabulary",
    "find_tokenizer",
    "load_tokenizer",
]


class _FileTokenizer(Tokenizer):
    """A vocabulary in a file, with the tokens that the files beside it add and name."""

    def __init__(
        self, path: Path, files: TokenizerFiles, size: int, named: Mapping[str, int | None]
    ):
        """Numbers the tokens that the vocabulary has not itself.

        Args:
          path: The vocabulary's file.
          files: What lies beside it.
          size: The size of the vocabulary alone.
          named: Its own ids of bos_token, eos_token and pad_token.

        Raises:
          ValueError: the files contradict the vocabulary, or there is no BOS or EOS.
        """
        self._files = files
        self._added_ids = self._number(size)
        self._added = {id_: files.added[content] for content, id_ in self._added_ids.items()}
        ids = dict(named)
        for name, content in files.named.items():
            ids[name] = None if content is None else self.piece_to_id(content)
        for name in ("bos_token", "eos_token"):
            if ids.get(name) is None:
                raise ValueError(
                    f"{path}: there is no {name}; a Griffin model's vocabulary holds <bos> and <eos>"
                )
        self._ids = ids
        super().__init__(
            files.folder,
            max(size, *(id_ + 1 for id_ in self._added), 0),
            ids["bos_token"],
            ids["eos_token"],
            ids.get("pad_token"),
            stop_ids=files.stop_ids,
            adds_bos=True if files.adds_bos is None else files.adds_bos,
            template=files.template,
        )

    @abc.abstractmethod
    def _own_id(self, piece: str) -> int | None:
        """Returns the id that the vocabulary itself gives a piece, None where it lacks it."""

    @abc.abstractmethod
    def _own_piece(self, token_id: int) -> str:
        """Returns the piece of a vocabulary's own id as it is written down."""

    @abc.abstractmethod
    def _special_ids(self) -> Iterable[int]:
        """Returns the tokens that stand for no text."""

    def piece_to_id(self, piece: str) -> int | None:
        return self._added_ids.get(piece, self._own_id(piece))

    @property
    def _bos_piece(self) -> str:
        return self._content(self._ids["bos_token"])

    def _special_pieces(self) -> set[str]:
        ids = (*self._special_ids(), *self.stop_ids)
        return super()._special_pieces() | set(map(self._content, ids))

    def _template_tokens(self) -> dict[str, str | None]:
        ids = {name: id_ for name, id_ in self._ids.items() if id_ is not None}
        return {name: self._content(id_) for name, id_ in ids.items()}

    def _content(self, token_id: int) -> str:
        token = self._added.get(token_id)
        return self._own_piece(token_id) if token is None else token.content

    def _number(self, size: int) -> dict[str, int]:
        """Returns the ids of all added tokens: those in the files must be what transformers makes
        them.
        """
        ids, following = {}, size
        order = sorted(
            self._files.added.values(), key=lambda t: (t.id is None, -1 if t.id is None else t.id)
        )
        for token in order:
            own = self._own_id(token.content)
            if own is None:
                own, following = following, following + 1
            if token.id not in (None, own):
                raise ValueError(
                    f"{self._files.folder}: {token.content!r} is token {token.id} in a file beside "
                    f"the vocabulary, but {own} by the vocabulary; they do not belong together"
                )
            ids[token.content] = own
        return ids


class _SentencePieceTokenizer(_FileTokenizer):
    def __init__(self, path: Path, processor: SentencePieceProcessor, files: TokenizerFiles):
        self._processor = processor
        size = processor.get_piece_size()
        self._control = [
            i for i in range(size) if processor.is_control(i) or processor.is_unknown(i)
        ]
        tokens = [
            *files.added.values(),
            *(AddedToken(processor.id_to_piece(i)) for i in self._control),
        ]
        # The longest first, as the search of `tokenizers` prefers it.
        tokens.sort(key=lambda token: -len(token.content))
        self._split = re.compile("|".join(f"({token.pattern})" for token in tokens) or r"(?!)")
        self._split_contents = [token.content for token in tokens]
        names = ("bos_token", "eos_token", "pad_token")
        ids = (processor.bos_id(), processor.eos_id(), processor.pad_id())
        super().__init__(
            path, files, size, {name: i for name, i in zip(names, ids, strict=True) if i >= 0}
        )

    def _own_id(self, piece: str) -> int | None:
        token_id = self._processor.piece_to_id(piece)
        return token_id if self._processor.id_to_piece(token_id) == piece else None

    def _own_piece(self, token_id: int) -> str:
        in_range = 0 <= token_id < self._processor.get_piece_size()
        return self._processor.id_to_piece(token_id) if in_range else ""

    def _special_ids(self) -> Iterable[int]:
        return {*self._control, *(i for i, token in self._added.items() if token.special)}

    def _encode(self, text: str) -> list[int]:
        ids, done = [], 0
        for match in self._split.finditer(text):
            ids += self._encode_part(text[done : match.start()])
            ids.append(self.piece_to_id(self._split_contents[match.lastindex - 1]))
            done = match.end()
        return ids + self._encode_part(text[done:])

    def _encode_part(self, text: str) -> list[int]:
        return self._processor.encode(text) if text else []

    def _piece(self, token_id: int) -> str:
        if (token := self._added.get(token_id)) is not None:
            return "" if token.special else token.content
        processor = self._processor
        if token_id >= processor.get_piece_size():
            return ""
        if processor.is_control(token_id) or processor.is_unknown(token_id):
            return ""
        return processor.id_to_piece(token_id)


class _JsonTokenizer(_FileTokenizer):
    def __init__(self, path: Path, files: TokenizerFiles):
        try:
            import tokenizers
        except ImportError:
            raise ImportError(
                f"{path}: reading it takes `pip install 'griffin_jax[hf]'`; "
                "a tokenizer.model beside it would do without"
            ) from None
        try:
            backend = self._backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # `tokenizers` raises nothing more specific
            raise ValueError(f"{path}: not a whole tokenizer.json: {error}") from None
        backend.no_padding()
        backend.no_truncation()
        self._vocabulary = backend.get_vocab(with_added_tokens=True)
        known = {token.content for token in backend.get_added_tokens_decoder().values()}
        size = 1 + max(self._vocabulary.values())
        named = {f"{name}_token": self._own_id(f"<{name}>") for name in ("bos", "eos", "pad")}
        super().__init__(path, files, size, named)
        for _, token in sorted(self._added.items()):
            if token.content not in known:
                flags = {name: getattr(token, name) for name in FLAGS}
                backend.add_tokens([tokenizers.AddedToken(token.content, **flags)])

        probe = self._encode("a é ▁ 😀")
        if self.decode(probe) != backend.decode(probe, skip_special_tokens=True):
            raise ValueError(
                f"{path}: its pieces are not SentencePiece's (▁ for a space, <0xNN> for a byte) as "
                "a Griffin model's are"
            )

    def _own_id(self, piece: str) -> int | None:
        return self._vocabulary.get(piece)

    def _own_piece(self, token_id: int) -> str:
        return self._backend.id_to_token(token_id) or ""

    def _special_ids(self) -> Iterable[int]:
        return {i for i, token in self._added.items() if token.special}

    def _encode(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def _piece(self, token_id: int) -> str:
        token = self._added.get(token_id)
        special = token is not None and token.special
        return "" if special else self._backend.id_to_token(token_id) or ""


def load_tokenizer(folder: AnyPath) -> Tokenizer:
    """Loads the tokenizer in a model's folder, with what the files beside it say.

    That is tokenizer.model, or tokenizer.json where only that exists or where its vocabulary is
    another one: transformers reads the latter.

    Raises:
      FileNotFoundError: `folder` holds neither.
      ImportError: only `tokenizer.json` serves and the `[hf]` extra is not installed.
      ValueError: a file is damaged, lacks BOS or EOS, is not SentencePiece-style, contradicts
        another, or asks for what is not supported.
    """
    folder = resolve(folder, "folder")
    names = [name for name in (MODEL_FILE, JSON_FILE) if (folder / name).is_file()]
    if not names:
        raise FileNotFoundError(f"{folder}: holds neither {MODEL_FILE} nor {JSON_FILE}")
    files = read_files(folder)
    if names[0] == MODEL_FILE:
        processor = _read_model(folder / MODEL_FILE)
        if JSON_FILE not in names or _agrees(processor, files.vocabulary):
            return _SentencePieceTokenizer(folder / MODEL_FILE, processor, files)
    return _JsonTokenizer(folder / JSON_FILE, files)


def _read_model(path: Path) -> SentencePieceProcessor:
    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(path.read_bytes())
        ids = {"BOS": processor.bos_id(), "EOS": processor.eos_id()}
    except RuntimeError:
        ids = {"BOS": -1, "EOS": -1}
    lacking = [name for name, i in ids.items() if i < 0]
    if lacking:
        raise ValueError(
            f"{path}: truncated, or not a SentencePiece model with BOS and EOS pieces (it has no "
            f"{' and no '.join(lacking)}); fetch it again"
        )
    return processor


def _agrees(processor: SentencePieceProcessor, vocabulary: Mapping[str, int] | None) -> bool:
    """Returns whether a tokenizer.json has the pieces of a tokenizer.model."""
    size = processor.get_piece_size()
    return (
        vocabulary is not None
        and len(vocabulary) == size
        and all(vocabulary.get(processor.id_to_piece(i)) == i for i in range(size))
    )


def find_tokenizer(folder: AnyPath, config: GriffinConfig) -> Tokenizer | None:
    """Returns the tokenizer beside a model, None where there is none.

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
