"""The package where nothing is that only some systems or versions have: imported whole, and used.

Run by test_platforms.py, in a process of its own.
"""

from tests import hiding

hiding.hide_all()

import importlib
import pkgutil
import tempfile
from pathlib import Path

import jax.numpy as jnp

import griffin_jax
from griffin_jax.tokenizer import load_tokenizer
from griffin_jax.training import encoding
from tests.tiny import GRIFFIN, params_of

# Scripts that sandbox.py starts where the system is POSIX, and nobody imports.
NOT_MODULES = ("griffin_jax.evaluation.sandbox_child", "griffin_jax.evaluation.sandbox_linux")


def main():
    for module in pkgutil.walk_packages(griffin_jax.__path__, "griffin_jax."):
        if module.name not in NOT_MODULES:
            importlib.import_module(module.name)
    lm = griffin_jax.LanguageModel(GRIFFIN, params_of(GRIFFIN))
    with tempfile.TemporaryDirectory() as folder:
        griffin_jax.save(lm, folder + "/model")
        again = griffin_jax.load(folder + "/model")
    tokens = jnp.arange(6)[None]
    assert jnp.array_equal(again.apply(tokens)[0], lm.apply(tokens)[0])
    (sample,) = lm.sample([[1, 2, 3]], max_new_tokens=2)
    assert len(sample.tokens) == 2
    tokenizer = load_tokenizer(Path(griffin_jax.__file__).parent / "assets" / "griffin-tiny")
    documents = ["A text.", "Another one."]
    encoded = [list(tokens) for tokens, _ in encoding.encode_all(documents, tokenizer, alone=0)]
    assert encoded == [[*tokenizer.encode(text), tokenizer.eos_id] for text in documents]


if __name__ == "__main__":
    main()
