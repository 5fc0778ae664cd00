"""Conversations that keep the state."""

import pytest

from tests.inference.tiny_model import ByteTokenizer, language_model

TOKENIZER = ByteTokenizer()
TURNS = ("Good day.", "And what then?", "I see.")


def turn_tokens(number, text):
    """What the user's turn adds to the conversation."""
    turn = {"role": "user", "content": text}
    if number == 0:
        system = {"role": "system", "content": "Be brief."}
        return TOKENIZER.encode(TOKENIZER.format_chat([system, turn]))
    return TOKENIZER.encode("<end_of_turn>\n" + TOKENIZER.format_chat([turn]), bos=False)


@pytest.mark.parametrize("stop", [(), ("g", "b")])
def test_every_answer_equals_that_to_the_whole_conversation_read_anew(stop):
    lm = language_model()
    chat = lm.chat(system="Be brief.")
    tokens = []
    for number, text in enumerate(TURNS):
        tokens += turn_tokens(number, text)
        answer = chat.send(text, max_new_tokens=25, stop=stop)
        (expected,) = lm.sample([tokens], max_new_tokens=25, stop=stop)
        assert (answer.text, answer.tokens) == (expected.text, expected.tokens)
        tokens += answer.tokens
        assert chat.context.tokens == tuple(tokens)
        assert chat.context.read >= len(tokens) - 1


def test_the_conversation_is_the_chat_format_of_its_messages():
    chat = language_model().chat(system="Be brief.")
    for text in TURNS[:2]:
        chat.send(text, max_new_tokens=5)
    roles = [message["role"] for message in chat.messages]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    whole = TOKENIZER.format_chat(chat.messages, add_generation_prompt=False)
    read = TOKENIZER.decode(chat.context.tokens)
    marks = ("<start_of_turn>", "<end_of_turn>")
    for mark in marks:
        whole = whole.replace(mark, "")
    assert read.split() == whole.split()


def test_streamed_answers_join_to_the_sent_one_and_leave_the_same_conversation():
    sent, streamed = language_model().chat(), language_model().chat()
    for text in TURNS[:2]:
        answer = sent.send(text, max_new_tokens=20, temperature=1.0, seed=5)
        pieces = streamed.stream(text, max_new_tokens=20, temperature=1.0, seed=5)
        assert "".join(pieces) == answer.text
    assert streamed.messages == sent.messages
    assert streamed.context.tokens == sent.context.tokens


def test_turns_under_one_seed_draw_from_different_streams():
    chat = language_model().chat()
    before = chat.fork()
    first = chat.send(TURNS[0], max_new_tokens=20, temperature=5.0, seed=5)
    again = before.send(TURNS[0], max_new_tokens=20, temperature=5.0, seed=5)
    second = chat.send(TURNS[0], max_new_tokens=20, temperature=5.0, seed=5)
    assert first.tokens == again.tokens != second.tokens


def test_a_fork_goes_its_own_way():
    chat = language_model().chat()
    chat.send(TURNS[0], max_new_tokens=5)
    fork = chat.fork()
    fork.send(TURNS[2], max_new_tokens=5)
    other = language_model().chat()
    for text in TURNS[:2]:
        expected = other.send(text, max_new_tokens=5)
    assert chat.send(TURNS[1], max_new_tokens=5).tokens == expected.tokens
    assert len(fork.messages) == len(chat.messages) == 4


def test_a_stream_left_early_has_not_taken_place():
    chat = language_model().chat()
    pieces = chat.stream(TURNS[0], max_new_tokens=40)
    next(pieces)
    pieces.close()
    assert (chat.messages, chat.context) == ([], None)


def test_an_empty_message_is_refused():
    with pytest.raises(ValueError, match="message is empty"):
        language_model().chat().send("")


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda lm: lm.chat(system=3), "system must be text, or None, got 3"),
        (lambda lm: lm.chat(context="x"), "context must be of Chat.context, .* got 'x'"),
        (lambda lm: lm.chat().send("a", seed=[1]), r"seed must be a whole number .* got \[1\]"),
    ],
)
def test_what_a_conversation_is_given_is_checked_where_it_enters(wrong, message):
    with pytest.raises(ValueError, match=message) as caught:
        wrong(language_model())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["context", "keep_context"])
def test_a_turn_takes_no_context_of_its_own(name):
    chat = language_model().chat()
    for turn in chat.send, chat.stream:
        with pytest.raises(
            TypeError, match=rf"^{name} is the conversation's own; .*chat\(context="
        ):
            turn("a", **{name: None})


def test_the_number_of_tokens_may_stand_behind_the_message():
    chat = language_model().chat()
    assert len(chat.fork().send(TURNS[0], 5).tokens) <= 5
    assert chat.send(TURNS[0], 5) == language_model().chat().send(TURNS[0], max_new_tokens=5)
