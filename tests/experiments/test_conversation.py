"""A conversation at the keyboard goes on whatever comes between."""

import io
import sys
import types

import pytest

from tests.experiments import modules

sample = modules.of_command("sample")

CONFIG = {"max_new_tokens": 3, "seed": 0, "stop": ()}
CTRL_C = None


class Conversation:
    """Answers with what it was told; the answer to "stop" is interrupted."""

    def __init__(self):
        self.answered = []

    def stream(self, message, **options):
        yield "you said "
        if message == "stop":
            raise KeyboardInterrupt
        yield message
        self.answered.append(message)


@pytest.fixture
def converse(monkeypatch):
    """Chats with the bytes of some lines, in which CTRL_C stands for an interrupted prompt."""

    def run(*lines):
        data = b"".join(line for line in lines if line is not CTRL_C)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        turns = iter(lines)

        def ask(prompt):
            print(prompt, end="")
            if next(turns, b"") is CTRL_C:
                raise KeyboardInterrupt
            if not (line := sys.stdin.readline()):
                raise EOFError
            return line.removesuffix("\n")

        monkeypatch.setattr("builtins.input", ask)
        monkeypatch.setattr(sample, "sampling", lambda config: {})
        conversation = Conversation()
        sample.chat(types.SimpleNamespace(chat=lambda: conversation), CONFIG)
        return conversation.answered

    return run


def test_lines_end_at_newlines_alone_and_blank_ones_say_nothing(converse, capsys):
    lines = [b"\xef\xbb\xbfone\r\n", b"\n", b"  \r\n", "two\u2028\x85 \x0c\rtoo\n".encode(), b"end"]
    assert converse(*lines) == ["one", "two\u2028\x85 \x0c\rtoo", "end"]
    assert capsys.readouterr().out.count("> ") == 6


@pytest.mark.parametrize("line", [b"caf\xe9\n", b"\xff\xfe\n", b"\xed\xa0\x80\n", b"ok \xc3\n"])
def test_a_line_that_is_no_text_is_told_and_the_next_is_asked_for(converse, capsys, line):
    assert converse(b"one\n", line, b"two\n") == ["one", "two"]
    error = capsys.readouterr().err
    assert "that line is not UTF-8 (character" in error and len(error.splitlines()) == 1


def test_an_answer_that_is_stopped_has_not_taken_place(converse, capsys):
    assert converse(b"one\n", b"stop\n", b"two\n") == ["one", "two"]
    found = capsys.readouterr()
    assert "stopped; this turn has not taken place" in found.err
    assert "you said \n> you said two\n" in found.out


def test_an_interrupted_prompt_is_asked_again_and_twice_in_a_row_is_the_end(converse, capsys):
    assert converse(CTRL_C, b"one\n", CTRL_C, b"two\n") == ["one", "two"]
    assert capsys.readouterr().err.count("Ctrl-D ends the conversation") == 2
    with pytest.raises(KeyboardInterrupt):
        converse(b"one\n", CTRL_C, CTRL_C, b"two\n")


def test_a_closed_standard_input_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="standard input, which is closed"):
        next(sample.read_messages())
