"""Chat data: what is learned, and how conversations share rows."""

import json

import numpy as np
import pytest

from griffin_jax.tokenizer import load_tokenizer
from griffin_jax.training.chat import ChatRows, load_chat, tokenize_chat
from griffin_jax.training.corpus import CorpusError

TOKENIZER = load_tokenizer("griffin_jax/assets/griffin-tiny")
CHAT = [
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "I am well."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "Still well, thank you."},
]


def text_of(tokens):
    return "".join(TOKENIZER._piece(int(token)) for token in tokens).replace("▁", " ")


def test_only_the_models_turns_and_their_ends_are_learned():
    conversation = tokenize_chat(CHAT, TOKENIZER)
    runs = "".join("x" if learned else " " for learned in conversation.learned).split()
    assert len(runs) == 2
    learned = [t for t, flag in zip(conversation.tokens, conversation.learned, strict=True) if flag]
    assert text_of(learned) == "I am well.<end_of_turn>Still well, thank you.<end_of_turn>"
    assert conversation.tokens[0] == TOKENIZER.bos_id


def test_the_model_learns_to_answer_the_very_tokens_that_a_prompt_ends_with():
    conversation = tokenize_chat(CHAT[:2], TOKENIZER)
    prompt = TOKENIZER.encode(TOKENIZER.format_chat(CHAT[:1], add_generation_prompt=True))
    first = conversation.learned.index(True)
    assert conversation.tokens[:first] == prompt


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_rows_hold_whole_conversations_and_count_each_learned_token_once(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"messages": CHAT[:2]}, {"messages": CHAT}] * 3)
    conversations = load_chat(path, TOKENIZER)
    rows = ChatRows(conversations, 64, TOKENIZER.pad_id, "a.jsonl")
    batch = [rows.row(0, i) for i in range(len(rows))]
    assert sum(row["mask"].sum() for row in batch) == sum(sum(c.learned) for c in conversations)
    targets = np.concatenate([row["targets"][row["mask"] > 0] for row in batch])
    assert text_of(targets).count("I am well.<end_of_turn>") == 6
    for row in batch:
        assert all(row[name].shape == (64,) for name in ("inputs", "targets", "positions", "mask"))
        np.testing.assert_array_equal(
            row["inputs"] == TOKENIZER.bos_id,
            (row["positions"] == 0) & (row["inputs"] != TOKENIZER.pad_id),
        )
        steps = np.diff(row["positions"])
        assert ((steps == 1) | (row["positions"][1:] == 0)).all()
    assert not rows.shortened and "lines [1" in rows.describe(np.array([0]))


def test_conversations_longer_than_a_row_are_cut_and_listed(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"messages": CHAT[:2]}, {"messages": CHAT}])
    rows = ChatRows(load_chat(path, TOKENIZER), 24, TOKENIZER.pad_id, "a.jsonl")
    assert rows.shortened == [2] and len(rows) == 2
    assert rows.row(0, 1)["inputs"].shape == (24,)


LONG = [{"role": "user", "content": "a long question " * 30}, CHAT[1]]


def test_conversations_whose_answers_are_cut_off_are_left_out(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"messages": LONG}, {"messages": CHAT[:2]}])
    rows = ChatRows(load_chat(path, TOKENIZER), 24, TOKENIZER.pad_id, "a.jsonl")
    assert rows.left_out == [1] and len(rows) == 1
    assert rows.row(0, 0)["mask"].any()
    assert not ChatRows(load_chat(path, TOKENIZER), 500, TOKENIZER.pad_id, "a.jsonl").left_out


@pytest.mark.parametrize("count", [1, 2, 7])
def test_chats_with_nothing_to_learn_are_refused_by_line(tmp_path, count):
    path = write_lines(tmp_path / "a.jsonl", [{"messages": LONG}] * count)
    with pytest.raises(CorpusError, match=r"line 1.*no answer begins within 24 tokens"):
        ChatRows(load_chat(path, TOKENIZER), 24, TOKENIZER.pad_id, "a.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"text": "x"}, 'line 1: no "messages" list'),
        ({"messages": CHAT[:1]}, "line 1: the model has no turn in it"),
        (
            {"messages": [CHAT[1], CHAT[0], CHAT[1]]},
            "line 1: messages: roles must alternate|no user",
        ),
    ],
)
def test_a_line_that_is_no_chat_is_named(line, message, tmp_path):
    with pytest.raises(CorpusError, match=message):
        load_chat(write_lines(tmp_path / "a.jsonl", [line]), TOKENIZER)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load_chat(tmp_path / "a.jsonl", TOKENIZER)
