"""Supervised chat data: conversations packed whole into rows, with loss on the model's turns only."""

import dataclasses
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from griffin_jax.paths import AnyPath
from griffin_jax.text_files import TextFile
from griffin_jax.tokenizer import END_OF_TURN
from griffin_jax.training.corpus import CorpusError
from griffin_jax.training.data import Batch
from griffin_jax.training.encoding import Encoder


class ChatTokenizer(Encoder, Protocol):
    """A tokenizer that knows how a model writes conversations."""

    pad_id: int

    def format_chat(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str: ...


@dataclasses.dataclass(frozen=True)
class Conversation:
    """A tokenized conversation.

    Attributes:
      tokens: BOS first.
      learned: For each token, whether the model writes it: its turns with their ends.
      line: Where it stands in its file, from 1.
    """

    tokens: list[int]
    learned: list[bool]
    line: int


def tokenize_chat(
    messages: Sequence[Mapping[str, str]], tokenizer: ChatTokenizer, line: int = 1
) -> Conversation:
    """Tokenizes a conversation piece by piece, as a chat would meet it.

    What the model is to write is encoded apart from what it reads before, so that no piece spans
    the border between them.

    Raises:
      ValueError: the messages are not a chat; see `format_chat`.
    """
    tokens, learned, done = tokenizer.encode("", bos=True), [False], 0

    def add(end: int, model: bool) -> None:
        nonlocal done
        piece = tokenizer.encode(text[done:end], bos=False)
        tokens.extend(piece)
        learned.extend([model] * len(piece))
        done = end

    for count, message in enumerate(messages, start=1):
        if message.get("role") in ("assistant", "model"):
            text = tokenizer.format_chat(messages[:count], add_generation_prompt=False)
            if END_OF_TURN not in text:
                raise ValueError(
                    f"the model's chat template writes no {END_OF_TURN}, by which the turns that "
                    "are learned are told; take a tokenizer with Gemma's turns"
                )
            prompt = tokenizer.format_chat(messages[: count - 1], add_generation_prompt=True)
            add(len(prompt), model=False)
            add(text.rindex(END_OF_TURN) + len(END_OF_TURN), model=True)
    return Conversation(tokens, learned, line)


def load_chat(path: AnyPath, tokenizer: ChatTokenizer) -> list[Conversation]:
    """Reads JSON lines with an object {"messages": [{"role", "content"}]} each; see `text_files`.

    What follows the model's last turn is left out.

    Raises:
      FileNotFoundError: there is no such file.
      CorpusError: the file is damaged, or a line is no chat with a turn of the model's.
    """
    file = TextFile(path, "chat", CorpusError)
    conversations = []
    for line, record in file.records():
        messages = record.get("messages") if isinstance(record, dict) else None
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise file.fault('no "messages" list of objects in it', line)
        try:
            conversation = tokenize_chat(messages, tokenizer, line)
        except ValueError as error:
            raise file.fault(str(error), line) from error
        if not any(conversation.learned):
            raise file.fault("the model has no turn in it", line)
        conversations.append(conversation)
    if not conversations:
        raise file.fault("the file is empty")
    return conversations


class ChatRows:
    """Rows of T tokens, each holding as many whole conversations as fit; see `data.Rows`.

    Attributes:
      shortened: Lines of conversations longer than a row, whose ends are cut off.
      left_out: Lines of those that have nothing to learn within a row: the model's first turn begins
        behind its end.
    """

    def __init__(self, conversations: Sequence[Conversation], seq_len: int, pad_id: int, name: str):
        """Packs the conversations.

        Raises:
          CorpusError: none of them has a token to learn within a row.
        """
        self.name, self._seq_len, self._pad_id = name, seq_len, pad_id
        # The first token is nobody's target.
        taught = [c for c in conversations if any(c.learned[1 : seq_len + 1])]
        self.left_out = [c.line for c in conversations if not any(c.learned[1 : seq_len + 1])]
        if not taught:
            lines = ", ".join(map(str, self.left_out[:5])) + ", ..." * (len(self.left_out) > 5)
            raise CorpusError(
                f"chat {name}, line {lines}: no answer begins within {seq_len} tokens, so there is "
                "nothing to learn; give a larger seq_len, or shorter questions"
            )
        self.shortened = [c.line for c in conversations if len(c.tokens) > seq_len + 1]
        self._rows: list[list[Conversation]] = []
        room = 0
        for conversation in taught:
            size = min(len(conversation.tokens) - 1, seq_len)
            if size > room:
                self._rows.append([])
                room = seq_len
            self._rows[-1].append(conversation)
            room -= size

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, epoch: int, index: int) -> Batch:
        parts = [
            (c.tokens[: self._seq_len + 1], c.learned[: self._seq_len + 1])
            for c in self._rows[index]
        ]
        padding = self._seq_len - sum(len(tokens) - 1 for tokens, _ in parts)
        parts.append(([self._pad_id] * (padding + 1), [False] * (padding + 1)))

        def join(arrays, dtype):
            return np.concatenate([np.asarray(array, dtype) for array in arrays])

        return {
            "inputs": join([tokens[:-1] for tokens, _ in parts], np.int32),
            "targets": join([tokens[1:] for tokens, _ in parts], np.int32),
            "positions": join([np.arange(len(tokens) - 1) for tokens, _ in parts], np.int32),
            "mask": join([learned[1:] for _, learned in parts], np.float32),
            "start": np.asarray(index, np.int64),
        }

    def fingerprint(self) -> str:
        """Returns what tells these conversations from others."""
        digest = hashlib.sha256()
        for conversation in itertools.chain.from_iterable(self._rows):
            digest.update(np.asarray(conversation.tokens, np.int64).tobytes())
            digest.update(np.asarray(conversation.learned, np.bool_).tobytes())
        return digest.hexdigest()[:16]

    def describe(self, starts: np.ndarray) -> str:
        lines = sorted({c.line for start in starts for c in self._rows[int(start)]})
        return f"the conversations on lines {lines} of {self.name}"
