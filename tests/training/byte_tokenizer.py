"""The smallest tokenizer there is: one token a byte."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
    vocab_size: int = 260
    pad_id: int = 0
    eos_id: int = 1
    bos_id: int = 2

    def encode(self, text: str, bos: bool = True) -> list[int]:
        return [self.bos_id] * bos + [byte + 4 for byte in text.encode()]

    def decode(self, tokens) -> str:
        return bytes(t - 4 for t in tokens if t >= 4).decode()
