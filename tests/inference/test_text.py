"""Text as its tokens come in, and stop strings."""

import random

import pytest

from griffin_jax.inference.text import StoppedText
from griffin_jax.tokenizer import StreamDecoder
from tests.inference.tiny_model import ByteTokenizer

TOKENIZER = ByteTokenizer()


def run(text, stop=()):
    """The finished StoppedText of a text's tokens, and the pieces it streamed."""
    stopped = StoppedText(StreamDecoder(TOKENIZER), stop)
    pieces = []
    for token in TOKENIZER.encode(text, bos=False):
        stopped.add([token])
        pieces.append(stopped.take(finished=False))
        if stopped.stopped:
            break
    stopped.finish()
    pieces.append(stopped.take(finished=True))
    return stopped, pieces


@pytest.mark.parametrize(
    "text, stop, expected",
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("four",), "one two three"),
        ("one two three", ("three", "ne"), "o"),
        ("aaab", ("aab",), "a"),
        ("ababac", ("abac",), "ab"),
        ("stop", ("stop",), ""),
        ("é€😀!", ("😀",), "é€"),
        ("no stop", (), "no stop"),
    ],
)
def test_text_ends_before_the_first_stop_string(text, stop, expected):
    stopped, pieces = run(text, stop)
    assert stopped.text == expected
    assert "".join(pieces) == expected
    assert stopped.stopped == (text != expected)


def test_no_piece_shows_a_part_of_a_stop_string_or_of_a_character():
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices("ab€", k=rng.randrange(12)))
        stop = ["".join(rng.choices("ab€", k=rng.randint(1, 4))) for _ in range(2)]
        end = min((at for s in stop if (at := text.find(s)) >= 0), default=len(text))
        stopped, pieces = run(text, stop)
        assert "".join(pieces) == stopped.text == text[:end]
        assert all(piece in text for piece in pieces)


def test_tokens_are_the_fewest_whose_text_begins_with_the_cut_text():
    stopped, _ = run("€x stop", (" stop",))
    assert TOKENIZER.decode(TOKENIZER.encode("€x stop", bos=False)[: stopped.num_tokens()]) == "€x"
    stopped, _ = run("stop", ("stop",))
    assert stopped.num_tokens() == 0


def test_an_unfinished_character_at_the_end_becomes_a_replacement_character():
    stopped = StoppedText(StreamDecoder(TOKENIZER))
    for token in TOKENIZER.encode("a€", bos=False)[:-1]:
        stopped.add([token])
    assert stopped.take(finished=False) == "a"
    stopped.finish()
    assert stopped.take(finished=True) == "\N{REPLACEMENT CHARACTER}"
    assert stopped.num_tokens() == 3
