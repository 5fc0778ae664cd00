"""Progress bars are for people at a terminal, and make room for errors."""

import io
import sys

import pytest

from griffin_jax.progress import Bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stream", "shown"), [(Terminal(), True), (io.StringIO(), False)])
def test_bars_are_shown_at_a_terminal_alone(monkeypatch, stream, shown):
    monkeypatch.setattr(sys, "stderr", stream)
    with Bar(range(3), desc="reading") as bar:
        assert list(bar) == [0, 1, 2]
    assert ("3/3" in stream.getvalue()) == shown
    assert stream.getvalue().endswith("\n" if shown else "")


def test_a_bar_goes_when_its_block_raises(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with pytest.raises(ZeroDivisionError), Bar(total=3, desc="reading") as bar:
        bar.update()
        raise ZeroDivisionError
    written = stream.getvalue()
    assert "\n" not in written
    assert written.endswith("\r") and not written.rstrip("\r").rpartition("\r")[2].strip()


def test_without_standard_error_there_is_no_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with Bar(range(3)) as bar:
        assert list(bar) == [0, 1, 2]
