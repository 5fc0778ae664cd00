"""Positions over which bits_per_byte averages are checked before anything is measured."""

import types

import pytest

from tests.experiments import modules

bits_per_byte = modules.of_command("bits_per_byte")
TEXTS = ["one two three", "a longer text " * 40]


class Words:
    """A tokenizer of words."""

    def encode(self, text, bos=True):
        return [0] * bos + [1] * len(text.split())


@pytest.fixture
def edges(monkeypatch):
    """Gives the positions for the flag's value, or for its default."""

    def give(value=None):
        default = ["0", "4", "64", "16384"]
        flag = types.SimpleNamespace(value=value or default, present=value is not None)
        monkeypatch.setattr(bits_per_byte, "_EDGES", flag)
        return bits_per_byte.positions(TEXTS, Words())

    return give


def test_default_positions_end_with_the_longest_text_and_named_ones_are_taken(edges, capsys):
    assert edges() == [0, 4, 64]
    assert capsys.readouterr().err == "[the longest text has 120 tokens: no position beyond]\n"
    assert edges(["0", " 8", "120"]) == [0, 8, 120]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["0", "121"], r"no text has 121 tokens, the last edge \(the longest has 120\)"),
        (["5", "3"], r"rising from 0, got \[5, 3\]"),
        (["5", "5"], r"rising from 0, got \[5, 5\]"),
        (["7"], "two positions or more"),
        (["-5", "16"], "--edges=-5,16: positions are whole numbers"),
        (["a"], "--edges=a: positions are whole numbers"),
        (["1.5", "2"], "positions are whole numbers"),
    ],
)
def test_wrong_positions_are_refused_before_the_work(edges, value, message):
    with pytest.raises(ValueError, match=message):
        edges(value)
