"""A tiny model and a byte tokenizer, shared by the tests of this folder."""

import codecs

import jax
import pytest

from griffin_jax.config import preset
from griffin_jax.models import init_params

BOS, EOS = 256, 257


class ByteDecoder:
    def __init__(self):
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token):
        return self._decoder.decode(bytes([token])) if token < 256 else ""

    def finish(self):
        return self._decoder.decode(b"", final=True)


class ByteTokenizer:
    """Token i is byte i; 256 is BOS and 257 EOS."""

    stop_ids = (EOS,)
    stream_decoder = ByteDecoder

    def encode(self, text, bos=True):
        return [BOS] * bos + list(text.encode())

    def decode(self, tokens):
        return bytes(t for t in tokens if t < 256).decode("utf-8", "replace")

    def format_chat(self, messages, add_generation_prompt=True):
        text = "".join(f"{m['role'][0]}:{m['content']}<end_of_turn>\n" for m in messages)
        return text + "model:" * add_generation_prompt


@pytest.fixture(scope="session")
def config():
    return preset("tiny")


@pytest.fixture(scope="session")
def params(config):
    return jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))


@pytest.fixture(scope="session")
def tokenizer():
    return ByteTokenizer()
