"""Measures the bits per byte of a model on whole texts.

  python -m experiments.bits_per_byte --model=FOLDER --text=FILE

Prints one JSON object: bits per UTF-8 byte of every document and of all together, with the state
carried through each document, and the mean loss by position in pieces of 16,384 tokens, or up to what
the longest text has. Without flags it is griffin-tiny's on its own model card. A model of
unbounded attention sees the last 768 to 1,023 tokens for the first figure (--capacity says so), which
keeps it within the 1,024 tokens that it was trained on; its loss by position is told both ways, with
everything in sight and with that sliding cache.
"""

import json
import sys

import jax
from absl import flags

from experiments import command, config_files, outputs
from griffin_jax import checkpoints
from griffin_jax.files import write_json
from griffin_jax.tokenizer import Tokenizer, check_vocabulary, load_tokenizer
from griffin_jax.training import corpus, evaluate

_MODEL = flags.DEFINE_string("model", "griffin-tiny", "Folder or name of the model.")
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", "", "Folder of its tokenizer; the model's by default."
)
_TEXT = flags.DEFINE_string(
    "text", str(config_files.CARD), "A text or JSON lines file, packed or not."
)
_OUTPUT = flags.DEFINE_string("output", None, "Write the JSON object here, too.")
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "float16", "bfloat16"],
    "The dtype of activations; by default float32 on a CPU, else bfloat16.",
)
_CHUNK = flags.DEFINE_integer(
    "chunk", 1024, "Tokens per call; 256 where the cache slides.", lower_bound=1
)
_CAPACITY = flags.DEFINE_integer(
    "capacity", 768, "Keys kept under unbounded attention.", lower_bound=1
)
_EDGES = flags.DEFINE_list(
    "edges",
    "0,64,256,1024,2048,4096,8192,16384",
    "Positions between which loss is averaged.",
)


def main() -> None:
    output = outputs.file(_OUTPUT, inputs=[_TEXT.value])
    folder = checkpoints.find_folder(_MODEL.value)
    config = checkpoints.open_checkpoint(folder).config
    tokenizer = load_tokenizer(checkpoints.find_folder(_TOKENIZER.value or folder))
    check_vocabulary(tokenizer, config)
    texts = list(corpus.read_documents(_TEXT.value))
    if not any(text.strip() for text in texts):
        raise ValueError(f"--text={_TEXT.value} holds no text")
    edges = positions(texts, tokenizer)
    model = checkpoints.load_checkpoint(folder)
    result = evaluate.measure_texts(
        model.config,
        model.params,
        tokenizer,
        texts,
        edges,
        dtype=_DTYPE.value or ("float32" if jax.default_backend() == "cpu" else "bfloat16"),
        chunk=_CHUNK.value,
        cache=(_CAPACITY.value, 256),
    )
    print(json.dumps(result, indent=2))
    if output is not None:
        write_json(output, result)


def positions(texts: list[str], tokenizer: Tokenizer) -> list[int]:
    """Returns the flag's edges; of the default ones, those that a text reaches.

    Raises:
      ValueError: an edge is no number, they do not rise, or no text is so long.
    """
    if not all(str(edge).strip().isdecimal() for edge in _EDGES.value):
        given = ",".join(map(str, _EDGES.value))
        raise ValueError(f"--edges={given}: positions are whole numbers with commas, such as 0,64")
    edges = [int(edge) for edge in _EDGES.value]
    if _EDGES.present:
        evaluate.check_edges(edges, texts, tokenizer)
        return edges
    longest = evaluate.longest_text(texts, tokenizer)
    if longest < 1:
        raise ValueError("--text holds no text")
    reached = [edge for edge in edges if edge <= longest]
    if len(reached) < 2:
        reached = [0, longest]
    if reached != edges:
        print(f"[the longest text has {longest:,} tokens: no position beyond]", file=sys.stderr)
    return reached


if __name__ == "__main__":
    command.run(main)
