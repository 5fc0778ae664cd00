"""Measures a model on whole texts:

    python -m experiments.bits_per_byte --model=griffin_jax/assets/griffin-tiny --text=FILE

Prints one JSON object: bits per UTF-8 byte of every document and of all together, with the state
carried through each document, and the mean loss by position in pieces of 16,384 tokens. A model of
unbounded attention sees the last 768 to 1,023 tokens for the first figure (--capacity and --chunk
say so), which keeps it within the 1,024 tokens that it was trained on, and everything for the second.
"""

import json

import numpy as np
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
_CHUNK = flags.DEFINE_integer("chunk", 1024, "Tokens per call; 256 under unbounded attention.")
_CAPACITY = flags.DEFINE_integer("capacity", 768, "Keys kept under unbounded attention.")
_EDGES = flags.DEFINE_list(
    "edges",
    [0, 64, 256, 1024, 2048, 4096, 8192, 16384],
    "Positions between which loss is averaged.",
)


def main() -> None:
    model = checkpoints.load_checkpoint(_MODEL.value)
    config, params = model.config, model.params
    tokenizer = load_tokenizer(_TOKENIZER.value or _MODEL.value)
    texts = list(corpus.read_documents(_TEXT.value))
    edges = [int(edge) for edge in _EDGES.value]
    unbounded = config.attention_window is None
    figures = evaluate.bits_per_byte(
        config,
        params,
        tokenizer,
        texts,
        dtype=_DTYPE.value,
        chunk=256 if unbounded else _CHUNK.value,
        capacity=_CAPACITY.value,
    )
    positions = evaluate.loss_by_position(
        config,
        params,
        tokenizer,
        texts,
        edges,
        dtype=_DTYPE.value,
        chunk=_CHUNK.value,
        capacity=edges[-1],
    )
    sizes = [len(text.encode()) for text in texts]
    result = {
        "bits_per_byte": float(np.average(figures, weights=sizes)),
        "bytes": sum(sizes),
        "documents": [
            {"bytes": size, "bits_per_byte": figure}
            for size, figure in zip(sizes, figures, strict=True)
        ],
        "loss_by_position": [
            {"from": a, "to": b, "nats_per_token": loss}
            for a, b, loss in zip(edges[:-1], edges[1:], positions, strict=True)
        ],
    }
    print(json.dumps(result, indent=2))
    if _OUTPUT.value:
        with open(_OUTPUT.value, "w") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    command.run(main)
