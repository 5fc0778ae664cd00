"""Trains a SentencePiece (BPE) vocabulary with Gemma's special pieces at Gemma's own ids.

The one of `griffin-tiny` came from

    python -m experiments.train_tokenizer --corpus=train.jsonl.xz \\
        --output=griffin_jax/assets/griffin-tiny/tokenizer.model

which takes about a minute and 1 GB of memory for 136 MB of text. The same corpus and flags give
the same bytes.
"""

import io

import sentencepiece
from absl import flags

from experiments import command, outputs

CORPUS = flags.DEFINE_multi_string(
    "corpus", None, "Text to learn from: .jsonl with a `text` field, else plain text; also packed."
)
HELDOUT = flags.DEFINE_string("heldout", None, "Like --corpus; bytes per token are measured on it.")
OUTPUT = flags.DEFINE_string("output", "tokenizer.model", "Where to write the vocabulary.")
VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 8192, "Number of pieces.", lower_bound=1024)

# Ids 0 to 3 are <pad>, <eos>, <bos> and <unk>; these follow from id 4 on. Learned pieces never
# cross a user-defined one, so a run of newlines is a piece only because it stands here.
GEMMA_PIECES = [
    "<mask>",
    "<2mass>",
    "[@BOS@]",
    *(f"<unused{i}>" for i in range(99)),
    "<start_of_turn>",
    "<end_of_turn>",
    "\n",
    "\n\n",
]
# How many characters of a message of SentencePiece are shown: it may quote much of the corpus.
_LONGEST = 300
PRINTABLE_ASCII = "".join(map(chr, range(33, 127)))
LATIN_AND_TYPOGRAPHIC = "‘’“”–—…£°àâäæçèéêëîïñôöùûüœÆÉ"  # noqa: RUF001


def read_documents(path: str) -> list[str]:
    """Returns the documents of a file, see `griffin_jax.training.corpus`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, no text, or holds none.
    """
    from griffin_jax.training import corpus

    documents = list(corpus.read_documents(path))
    if not any(document.strip() for document in documents):
        raise ValueError(f"corpus {path}: it holds no text")
    return documents


def train(documents: list[str], vocab_size: int) -> bytes:
    """Returns the serialized SentencePiece model; every text without U+2581 survives a round
    trip.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for document in documents for line in document.splitlines()),
        model_writer=model,
        vocab_size=vocab_size,
        # Unigram needs 0.1% fewer tokens here, but transformers reads Gemma's class as BPE.
        model_type="bpe",
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        bos_piece="<bos>",
        eos_piece="<eos>",
        user_defined_symbols=GEMMA_PIECES,
        byte_fallback=True,
        split_digits=True,
        required_chars=PRINTABLE_ASCII + LATIN_AND_TYPOGRAPHIC,
        character_coverage=0.9999,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        max_sentence_length=1 << 20,
        num_threads=2,
        minloglevel=1,
    )
    return model.getvalue()


def main() -> None:
    if not CORPUS.value:
        raise ValueError("give --corpus=FILE, text to learn from: megabytes for 8,192 pieces")
    read = [*CORPUS.value, *([HELDOUT.value] if HELDOUT.value else [])]
    output = outputs.file(OUTPUT, inputs=read)
    documents = [document for path in CORPUS.value for document in read_documents(path)]
    heldout = read_documents(HELDOUT.value) if HELDOUT.value else []
    try:
        model = train(documents, VOCAB_SIZE.value)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:_LONGEST]
        raise ValueError(f"--vocab_size={VOCAB_SIZE.value} with this corpus: {reason}") from error

    from griffin_jax.files import new_file

    with new_file(output) as file:
        file.write(model)
    print(f"{output}: {VOCAB_SIZE.value} pieces, {len(model)} bytes")

    if heldout:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        size = sum(len(document.encode()) for document in heldout)
        tokens = sum(len(processor.encode(document)) for document in heldout)
        print(f"{HELDOUT.value}: {size / tokens:.4f} bytes per token")


if __name__ == "__main__":
    command.run(main)
