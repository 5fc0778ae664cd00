"""Tokenizer: exact round trips, streaming, BOS, chat turns and one-line errors."""

import json
import pathlib
import pickle
import shutil
import sys

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from griffin_jax import config as config_lib
from griffin_jax import tokenizer as tokenizer_lib
from griffin_jax.tokenizer import StreamDecoder, load_tokenizer
from griffin_jax.tokenizer_files import KEPT

BUNDLED = pathlib.Path(tokenizer_lib.__file__).parent / "assets" / "griffin-tiny"
GEMMA_IDS = {
    "<pad>": 0,
    "<eos>": 1,
    "<bos>": 2,
    "<unk>": 3,
    "<mask>": 4,
    "<2mass>": 5,
    "[@BOS@]": 6,
    "<unused0>": 7,
    "<unused98>": 105,
    "<start_of_turn>": 106,
    "<end_of_turn>": 107,
    "\n": 108,
    "\n\n": 109,
}


def write_json_tokenizer(folder, special=("<pad>", "<eos>", "<bos>", "<unk>")):
    """A small tokenizer.json built as Gemma's is: BPE, "▁" for a space, byte pieces."""
    tokenizers = pytest.importorskip("tokenizers")
    pieces = [
        *special,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *"▁abcdefghijklmnopqrstuvwxyz\n",
        "th",
        "the",
        "▁the",
    ]
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=[("t", "h"), ("th", "e"), ("▁", "the")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    backend.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    backend.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
        ]
    )
    backend.add_special_tokens([*special, "<start_of_turn>", "<end_of_turn>"])
    backend.enable_padding(length=50)
    backend.enable_truncation(max_length=5)
    backend.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def bundled():
    return load_tokenizer(BUNDLED)


@pytest.fixture(scope="module")
def from_json(tmp_path_factory):
    folder = tmp_path_factory.mktemp("json")
    write_json_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.fixture(params=["bundled", "from_json"], scope="module")
def tokenizer(request):
    return request.getfixturevalue(request.param)


MARKS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")).filter(
    lambda text: not any(mark in text for mark in MARKS)
)


@settings(max_examples=150, deadline=None)
@given(texts)
@example("  two  spaces, a tab\t and\r\nline ends \n\n\n ")
@example("naïve “quotes” — 漢字 👩‍👩‍👧 \0 \u2028 1889")
@example("<unused3><mask>[@BOS@]<0x41>")
def test_every_text_without_special_marks_survives_a_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_streamed_pieces_join_to_the_whole_decode_for_any_ids_and_split(tokenizer, data):
    ids = data.draw(st.lists(st.integers(-1, tokenizer.vocab_size), max_size=40))
    decoder, pieces = StreamDecoder(tokenizer), []
    while ids[sum(map(len, pieces)) :]:
        start = sum(map(len, pieces))
        pieces.append(ids[start : start + data.draw(st.integers(1, 5))])
    streamed = [decoder.push(piece) for piece in pieces]
    assert "".join(streamed) + decoder.flush() == tokenizer.decode(ids)


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("aé漢😀\n ")))
def test_a_streamed_piece_never_holds_part_of_a_character(tokenizer, text):
    decoder, seen = StreamDecoder(tokenizer), ""
    for token_id in tokenizer.encode(text):
        seen += decoder.push([token_id])
        assert text.startswith(seen)
    assert decoder.flush() == ""
    assert seen == text


def test_an_unfinished_character_is_flushed_as_a_replacement(bundled):
    ids = bundled.encode("x漢")[:-1]
    decoder = StreamDecoder(bundled)
    assert decoder.push(ids) == "x"
    assert decoder.flush() == "\ufffd"
    assert bundled.decode(ids) == "x\ufffd"


def test_special_pieces_have_gemmas_ids(bundled):
    assert {piece: bundled.piece_to_id(piece) for piece in GEMMA_IDS} == GEMMA_IDS
    assert bundled.vocab_size == 8192
    assert (bundled.pad_id, bundled.eos_id, bundled.bos_id) == (0, 1, 2)
    assert bundled.piece_to_id("<no such piece>") is None


def test_generation_stops_at_eos_and_at_the_end_of_a_turn(tokenizer):
    assert tokenizer.stop_ids == (tokenizer.eos_id, tokenizer.piece_to_id("<end_of_turn>"))


def test_bos_comes_exactly_once(tokenizer):
    with_bos = tokenizer.encode("the sea")
    assert with_bos == [tokenizer.bos_id, *tokenizer.encode("the sea", bos=False)]
    assert with_bos.count(tokenizer.bos_id) == 1
    assert tokenizer.encode("<bos>the sea") == with_bos
    assert tokenizer.encode("<bos>the sea", bos=False) == with_bos
    assert tokenizer.encode("") == [tokenizer.bos_id]
    assert tokenizer.encode("", bos=False) == []


def test_decoding_skips_special_tokens(tokenizer):
    special = [tokenizer.pad_id, tokenizer.bos_id, *tokenizer.stop_ids]
    special.append(tokenizer.piece_to_id("<start_of_turn>"))
    ids = tokenizer.encode("the sea", bos=False)
    assert tokenizer.decode([*special, *ids, *special]) == "the sea"


def test_an_id_without_a_piece_shows_as_a_replacement(tokenizer):
    assert tokenizer.decode([-1, tokenizer.vocab_size]) == "\ufffd\ufffd"


def test_padding_and_truncation_stored_in_tokenizer_json_are_ignored(from_json):
    ids = from_json.encode("the sea and the land")
    assert len(ids) > 5
    assert from_json.pad_id not in ids


def test_a_vocabulary_that_adds_a_leading_space_drops_it_again(tmp_path):
    lines = ["the cat sat on the mat", "a dog ran to the cat"] * 20
    with (tmp_path / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=file,
            vocab_size=300,
            model_type="bpe",
            byte_fallback=True,
            minloglevel=2,
        )
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("the cat ran")
    decoder = StreamDecoder(tokenizer)
    assert tokenizer.decode(ids) == "the cat ran"
    assert "".join(decoder.push([token_id]) for token_id in ids) == "the cat ran"
    assert tokenizer.pad_id == tokenizer.eos_id
    assert tokenizer.stop_ids == (tokenizer.eos_id,)
    with pytest.raises(ValueError, match="no chat format"):
        tokenizer.format_chat([{"role": "user", "content": "hi"}])


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def system(content):
    return {"role": "system", "content": content}


def test_chat_turns_are_gemmas(tokenizer):
    assert tokenizer.format_chat([user(" hi\n")]) == (
        "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n"
    )
    assert tokenizer.format_chat([user("a"), assistant(" b "), user("c")]) == (
        "<start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n"
        "<start_of_turn>user\nc<end_of_turn>\n<start_of_turn>model\n"
    )
    native = {"role": "model", "content": "b"}
    assert tokenizer.format_chat([user("a"), native], add_generation_prompt=False) == (
        "<start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n"
    )


def test_a_system_message_opens_the_first_user_turn(tokenizer):
    chat = [system("be brief\n"), user(" hi"), assistant("yes"), user("why")]
    assert tokenizer.format_chat(chat) == (
        "<start_of_turn>user\nbe brief\n\nhi<end_of_turn>\n<start_of_turn>model\nyes<end_of_turn>\n"
        "<start_of_turn>user\nwhy<end_of_turn>\n<start_of_turn>model\n"
    )


def test_turn_marks_are_one_token_each(tokenizer):
    ids = tokenizer.encode(tokenizer.format_chat([user("hi")]))
    start, end = map(tokenizer.piece_to_id, ("<start_of_turn>", "<end_of_turn>"))
    assert ids[:2] == [tokenizer.bos_id, start]
    assert (ids.count(start), ids.count(end)) == (2, 1)


def test_a_chat_encodes_to_its_turns_encoded_one_after_another(tokenizer):
    chat = [user("the sea"), assistant("and the land"), user("why")]
    turn_by_turn = tokenizer.encode(tokenizer.format_chat(chat[:1]))
    turn_by_turn += tokenizer.encode(chat[1]["content"] + "<end_of_turn>", bos=False)
    turn_by_turn += tokenizer.encode("\n" + tokenizer.format_chat(chat[2:]), bos=False)
    assert turn_by_turn == tokenizer.encode(tokenizer.format_chat(chat))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "no user message"),
        ([system("be brief")], "no user message"),
        ([assistant("hi")], "got 'assistant' where 'user' belongs"),
        ([user("a"), user("b")], "got 'user' where 'assistant' belongs"),
        ([user("a"), system("b")], "got 'system' where 'assistant' belongs"),
        ([{"role": "tool", "content": "a"}], "got 'tool' where 'user' belongs"),
        ([{"content": "a"}], "got None where 'user' belongs"),
        ([{"role": "user"}], r"messages\[0\]: content must be text, got None"),
    ],
)
def test_a_chat_out_of_order_is_one_line(bundled, messages, message):
    with pytest.raises(ValueError, match=message) as error:
        bundled.format_chat(messages)
    assert "\n" not in str(error.value)


def test_a_lone_surrogate_is_refused(tokenizer):
    with pytest.raises(ValueError, match="not valid Unicode"):
        tokenizer.encode("a\ud800")


def test_a_folder_without_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path.name}: holds neither"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("keep", [0, 1000, 100_000, -3])
def test_a_truncated_model_is_named(tmp_path, keep):
    whole = (BUNDLED / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(whole[:keep])
    with pytest.raises(ValueError, match=r"tokenizer\.model: truncated"):
        load_tokenizer(tmp_path)


def test_a_truncated_json_is_named(tmp_path):
    write_json_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text()[:500])
    with pytest.raises(ValueError, match=r"tokenizer\.json is not JSON"):
        load_tokenizer(tmp_path)


def test_a_json_without_bos_is_named(tmp_path):
    write_json_tokenizer(tmp_path, special=("<pad>", "<eos>", "<unk>"))
    with pytest.raises(ValueError, match=r"tokenizer\.json: .* holds <bos> and <eos>"):
        load_tokenizer(tmp_path)


def test_a_json_with_pieces_of_another_kind_is_refused(tmp_path):
    write_json_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    contents = json.loads(path.read_text())
    contents["decoder"] = {"type": "Fuse"}
    path.write_text(json.dumps(contents))
    with pytest.raises(ValueError, match="not SentencePiece's"):
        load_tokenizer(tmp_path)


def test_a_json_without_the_extra_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"pip install 'griffin_jax\[hf\]'"):
        load_tokenizer(tmp_path)


def test_tokenizer_json_counts_where_it_has_another_vocabulary(tmp_path, bundled):
    """As under transformers, which reads it and not tokenizer.model."""
    write_json_tokenizer(tmp_path)
    alone = load_tokenizer(tmp_path)
    shutil.copy(BUNDLED / "tokenizer.model", tmp_path)
    both = load_tokenizer(tmp_path)
    assert both.vocab_size == alone.vocab_size != bundled.vocab_size
    assert both.encode("the sea<eos>") == alone.encode("the sea<eos>")


def test_a_saved_tokenizer_is_the_same_files(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).encode("the sea") == tokenizer.encode("the sea")
    assert {path.name for path in tmp_path.iterdir()} < set(KEPT)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (tokenizer._folder / path.name).read_bytes()


def test_saving_into_its_own_folder_changes_nothing(tmp_path, bundled):
    bundled.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    load_tokenizer(tmp_path).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_pickled_tokenizer_encodes_the_same(tokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode("the sea") == tokenizer.encode("the sea")


def test_a_vocabulary_larger_than_the_embedding_is_refused(bundled):
    tokenizer_lib.check_vocabulary(bundled, config_lib.TINY.replace(vocab_size=8192))
    tokenizer_lib.check_vocabulary(bundled, config_lib.RECURRENTGEMMA_2B)
    with pytest.raises(ValueError, match="8192 pieces but the model's embedding 8191 rows"):
        tokenizer_lib.check_vocabulary(bundled, config_lib.TINY.replace(vocab_size=8191))


@pytest.mark.parity
def test_transformers_reads_the_bundled_vocabulary_alike(bundled):
    transformers = pytest.importorskip("transformers")
    other = transformers.AutoTokenizer.from_pretrained(BUNDLED)
    for text in (
        "It was in Warwick Castle, 1889.\n\n“Yes,”  said he -- naïve 漢字.",
        bundled.format_chat([user("Who art thou?\n\nSpeak!")]),
    ):
        assert other(text)["input_ids"] == bundled.encode(text)
