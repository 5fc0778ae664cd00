"""Measures a model on whole texts:

    python -m experiments.bits_per_byte --model=griffin_jax/assets/griffin-tiny --text=FILE

Prints one JSON object: bits per UTF-8 byte of every document and of all together, with the state
carried through each document, and the mean loss by position in pieces of 16,384 tokens. A model of
unbounded attention sees the last 768 to 1,023 tokens for the first figure (--capacity says so), which
keeps it within the 1,024 tokens that it was trained on; its loss by position is told both ways, with
everything in sight and with that sliding cache.
"""

import json

from absl import flags

from experiments import command
from griffin_jax import checkpoints
from griffin_jax.tokenizer import load_tokenizer
from griffin_jax.training import corpus, evaluate

_MODEL = flags.DEFINE_string("model", None, "Folder of the model.", required=True)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", "", "Folder of its tokenizer; the model's by default."
)
_TEXT = flags.DEFINE_string("text", None, "A text or JSON lines file, .xz or not.", required=True)
_OUTPUT = flags.DEFINE_string("output", "", "Write the JSON object here, too.")
_DTYPE = flags.DEFINE_string("dtype", "bfloat16", "Of activations.")
_CHUNK = flags.DEFINE_integer("chunk", 1024, "Tokens per call; 256 where the cache slides.")
_CAPACITY = flags.DEFINE_integer("capacity", 768, "Keys kept under unbounded attention.")
_EDGES = flags.DEFINE_list(
    "edges",
    [0, 64, 256, 1024, 2048, 4096, 8192, 16384],
    "Positions between which loss is averaged.",
)


def main() -> None:
    model = checkpoints.load_checkpoint(_MODEL.value)
    result = evaluate.measure_texts(
        model.config,
        model.params,
        load_tokenizer(_TOKENIZER.value or _MODEL.value),
        list(corpus.read_documents(_TEXT.value)),
        [int(edge) for edge in _EDGES.value],
        dtype=_DTYPE.value,
        chunk=_CHUNK.value,
        cache=(_CAPACITY.value, 256),
    )
    print(json.dumps(result, indent=2))
    if _OUTPUT.value:
        with open(_OUTPUT.value, "w") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    command.run(main)
