"""Text files to tokens, and what is said about files that are not right."""

import io
import json
import lzma

import numpy as np
import pytest

from griffin_jax.training.corpus import CorpusError, load_corpus, read_documents
from tests.training.byte_tokenizer import ByteTokenizer

TEXTS = ["One book.", "Zwei Bücher.", "3"]


def write(path, data):
    path.write_bytes(lzma.compress(data) if path.suffix == ".xz" else data)
    return path


def json_lines(texts):
    return "".join(json.dumps({"text": text, "title": "-"}) + "\n" for text in texts).encode()


def test_every_kind_of_text_file_gives_its_documents(tmp_path):
    assert list(read_documents(write(tmp_path / "a.jsonl", json_lines(TEXTS)))) == TEXTS
    assert list(read_documents(write(tmp_path / "a.jsonl.xz", json_lines(TEXTS)))) == TEXTS
    text = "a page\nof text"
    assert list(read_documents(write(tmp_path / "a.txt", text.encode()))) == [text]
    assert list(read_documents(write(tmp_path / "a.txt.xz", text.encode()))) == [text]


def test_documents_are_tokenized_in_order_between_bos_and_eos_and_only_once(tmp_path):
    paths = [
        write(tmp_path / "a.jsonl.xz", json_lines(TEXTS[:2])),
        write(tmp_path / "b.txt", TEXTS[2].encode()),
    ]
    tokenizer = ByteTokenizer()
    corpus = load_corpus(paths, tokenizer, tmp_path / "cache")
    expected = [token for text in TEXTS for token in (*tokenizer.encode(text), tokenizer.eos_id)]
    np.testing.assert_array_equal(corpus.tokens, expected)
    assert corpus.tokens.dtype == np.uint16
    assert corpus.num_bytes == sum(len(text.encode()) for text in TEXTS)
    assert [corpus.document_of(i) for i in (0, 10, 11, len(expected) - 1)] == [0, 0, 1, 2]

    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    load_corpus(paths, tokenizer, tmp_path / "cache")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == written
    assert len(written) == 2


def test_token_files_are_read_as_they_are(tmp_path):
    tokens = np.array([2, 5, 6, 1, 2, 7, 1], np.uint16)
    np.save(tmp_path / "a.npy", tokens)
    tokens.tofile(tmp_path / "a.bin")
    for name in ("a.npy", "a.bin"):
        corpus = load_corpus([tmp_path / name], ByteTokenizer(), tmp_path)
        np.testing.assert_array_equal(corpus.tokens, tokens)
        assert corpus.bytes_per_token is None


def npy(tokens):
    file = io.BytesIO()
    np.save(file, tokens)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", "a.txt: the file is empty"),
        ("a.txt", b"caf\xe9", "a.txt: not UTF-8 at byte 3"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', "a.jsonl: not UTF-8 at line 2"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "y', "line 2: the file ends amid it: truncated"),
        ("a.jsonl", b'{"text": "x"}\nnonsense\n', "line 2: not JSON"),
        ("a.jsonl", b'{"body": "x"}\n', 'line 1: no "text" string'),
        ("a.jsonl.xz", lzma.compress(json_lines(TEXTS))[:-20], "truncated or damaged .xz"),
        ("a.npy", npy(np.arange(100))[:-8], "truncated or not a .npy file"),
        ("a.npy", npy(np.ones((2, 2), int)), r"expected integers \[n\]"),
        ("a.npy", npy(np.array([2, 260])), "token 260 is outside the vocabulary of 260"),
        ("a.npy", npy(np.array([2, -100, 5])), "token -100 is outside the vocabulary of 260"),
        ("a.npy", npy(np.array([2, 2**40])), "is outside the vocabulary of 260"),
        ("a.npy", npy(np.array([2, 5], np.uint8)), "uint8 holds ids up to 255, and the vocabulary"),
        ("a.npy", npy(np.array([2, 5], np.int8)), "int8 holds ids up to 127"),
        ("a.npy", npy(np.array([2.0, 5.0])), r"expected integers \[n\], got float64"),
        ("a.npy", npy(np.array([True, False])), r"expected integers \[n\], got bool"),
        (
            "a.bin",
            np.array([2, 5, 6, 1], "<u4").tobytes(),
            "every second uint16 is 0, as of 32-bit",
        ),
        ("a.bin", np.array([2, 300], "<u2").tobytes(), "token 300 is outside"),
        ("a.bin", b"\1\0\2", "3 bytes do not divide into uint16 tokens: truncated"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(name, data, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(CorpusError, match=message) as error:
        if name.endswith((".npy", ".bin")) or not data:
            load_corpus([path], ByteTokenizer(), tmp_path / "cache")
        else:
            list(read_documents(path))
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_sixteen_bits_hold_no_large_vocabulary(tmp_path):
    ids = np.array([2, 120_000, 7, 200_001, 1] * 20)
    ids.astype("<u4").tofile(tmp_path / "a.bin")
    np.save(tmp_path / "narrow.npy", ids.astype(np.uint16))
    for name in ("a.bin", "narrow.npy"):
        with pytest.raises(
            CorpusError, match="uint16 holds ids up to 65535, and the vocabulary has"
        ):
            load_corpus([tmp_path / name], ByteTokenizer(vocab_size=256_000), tmp_path)
    for dtype in (np.uint32, np.int64, ">u4"):
        np.save(tmp_path / "a.npy", ids.astype(dtype))
        np.testing.assert_array_equal(
            load_corpus([tmp_path / "a.npy"], ByteTokenizer(vocab_size=256_000), tmp_path).tokens,
            ids,
        )


def test_ids_that_a_tokenizer_should_not_make_are_not_cut_to_fit(tmp_path):
    class Wild(ByteTokenizer):
        def encode(self, text, bos=True):
            return [2, 70_000]

        def __reduce__(self):
            return ByteTokenizer, ()

    write(tmp_path / "a.txt", b"x")
    with pytest.raises(CorpusError, match="token 70000 is outside the vocabulary of 260"):
        load_corpus([tmp_path / "a.txt"], Wild(), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.npy"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt: there is no such file"):
        load_corpus([tmp_path / "nowhere.txt"], ByteTokenizer(), tmp_path)
