"""Contexts as files: what comes back goes on as what was saved, and nothing else comes back."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from griffin_jax.errors import CheckpointError
from griffin_jax.inference.context import _checksum
from griffin_jax.inference.fingerprint import fingerprint
from griffin_jax.language_model import LanguageModel
from griffin_jax.models import stack_params
from tests.inference.tiny_model import CONFIG, ByteTokenizer, language_model

TEXT = "far beyond the window " * 3


@pytest.fixture(scope="module")
def lm():
    return language_model()


@pytest.fixture(scope="module")
def saved(lm, tmp_path_factory):
    """A file, and the context in it."""
    file = tmp_path_factory.mktemp("contexts") / "text.safetensors"
    context = lm.read(TEXT)
    lm.save_context(context, file)
    return file, context


def changed(lm, **options):
    """The model with other weights in one place."""
    params = dict(lm.params)
    params["final_norm"] = {"scale": lm.params["final_norm"]["scale"] + 1e-3}
    return dataclasses.replace(lm, params=params, **options)


def test_a_loaded_context_is_the_saved_one_bit_for_bit(lm, saved):
    file, context = saved
    back = lm.load_context(file)
    assert (back.tokens, back.read) == (context.tokens, context.read)
    jax.tree.map(np.testing.assert_array_equal, back.state, context.state)
    options = {"max_new_tokens": 12, "temperature": 1.0, "seed": 3}
    expected = lm.sample([" and on"], context=context, **options)
    assert lm.sample([" and on"], context=back, **options) == expected


def test_a_conversation_goes_on_from_a_file(lm, tmp_path):
    chat = lm.chat()
    chat.send("Good day.", max_new_tokens=9)
    lm.save_context(chat.context, tmp_path / "chat")
    expected = chat.send("And then?", max_new_tokens=9, temperature=1.0, seed=2)
    again = lm.chat(context=lm.load_context(tmp_path / "chat"))
    again.messages = chat.messages[:2]
    assert again.send("And then?", max_new_tokens=9, temperature=1.0, seed=2) == expected
    with pytest.raises(ValueError, match="system is for the beginning of a conversation"):
        lm.chat("Be brief.", context=chat.context)


@pytest.mark.slow
def test_stacked_layers_read_and_write_the_same_file(lm, saved, tmp_path):
    config = CONFIG.replace(num_layers=5)
    plain = language_model(config)
    stacked = LanguageModel(config, stack_params(config, plain.params), ByteTokenizer())
    assert fingerprint(config, stacked.params) == fingerprint(config, plain.params)
    plain.save_context(plain.read(TEXT), tmp_path / "plain")
    stacked.save_context(stacked.load_context(tmp_path / "plain"), tmp_path / "stacked")
    back = plain.load_context(tmp_path / "stacked")
    jax.tree.map(np.testing.assert_array_equal, back.state, plain.read(TEXT).state)
    (found,) = stacked.sample(["!"], 5, context=stacked.load_context(tmp_path / "plain"))
    (expected,) = plain.sample(["!"], 5, context=back)
    assert found.tokens == expected.tokens


def test_the_fingerprint_is_of_the_weights_and_not_of_how_they_are_kept(lm):
    found = fingerprint(CONFIG, lm.params)
    assert found == fingerprint(CONFIG, jax.tree.map(jnp.array, lm.params))
    assert found != fingerprint(CONFIG, changed(lm).params)
    assert found != fingerprint(CONFIG.replace(attention_window=9), lm.params)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), lm.params)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
    assert fingerprint(CONFIG, narrow) == fingerprint(CONFIG, wide) != found


def rewritten(file, target, change):
    """A copy of a context whose tensors and facts `change` has changed."""
    with safetensors.safe_open(file, "np") as opened:
        facts = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    change(tensors, facts)
    target.write_bytes(safetensors.numpy.save(tensors, facts))
    return target


def test_what_is_no_context_of_these_weights_is_refused_in_one_line(lm, saved, tmp_path):
    file, _ = saved
    data = file.read_bytes()
    (tmp_path / "short").write_bytes(data[:-9])
    (tmp_path / "shorter").write_bytes(data[:5])
    (tmp_path / "text").write_text("a text, and no context at all")
    (tmp_path / "flipped").write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    safetensors.numpy.save_file({"a": np.zeros(3)}, tmp_path / "other")
    later = rewritten(file, tmp_path / "later", lambda t, f: f.update(version=json.dumps(2)))
    for path, message in (
        ("short", "is no context, or damaged"),
        ("shorter", "is no context, or damaged"),
        ("text", "is no context, or damaged"),
        ("flipped", "is damaged: its numbers are not those that were written"),
        ("other", "is no context: LanguageModel.save_context writes them"),
        (later.name, "is a context of version 2; this release reads 1"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            lm.load_context(tmp_path / path)
        assert "\n" not in str(caught.value)
        assert path in str(caught.value)
    with pytest.raises(CheckpointError, match="written by a model of other weights"):
        changed(lm).load_context(file)
    with pytest.raises(CheckpointError, match=r"state/blocks/0/conv is float32.*bfloat16"):
        dataclasses.replace(lm, dtype=jnp.bfloat16).load_context(file)
    with pytest.raises(FileNotFoundError, match="there is no context at"):
        lm.load_context(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"context must be of LanguageModel\.read"):
        lm.sample([[5]], context=file)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t, f: f.update(read="3"), "says that 3 of its"),
        (lambda t, f: f.update(read='"x"'), "says that 'x' of its"),
        (lambda t, f: f.update(read="null"), "says that None of its"),
        (lambda t, f: f.update(read="[" * 10**5), "is no context, or damaged"),
        (lambda t, f: f.update(format='"another"'), "no context: its format is 'another'"),
        (lambda t, f: t.update(tokens=t["tokens"][None]), "tokens are no list of whole numbers"),
        (lambda t, f: t.update(toknes=t.pop("tokens")), "tokens are no list of whole numbers"),
        (lambda t, f: t["tokens"].fill(10**6), "a token is not one of 0 to"),
    ],
)
def test_facts_and_tokens_that_contradict_the_state_are_refused(
    lm, saved, tmp_path, change, message
):
    def changed_on_purpose(tensors, facts):
        change(tensors, facts)
        facts.update(checksum=json.dumps(_checksum(tensors)))

    file = rewritten(saved[0], tmp_path / "changed", changed_on_purpose)
    with pytest.raises(CheckpointError, match=message) as caught:
        lm.load_context(file)
    assert "\n" not in str(caught.value) and "changed" in str(caught.value)


def test_a_context_whose_file_is_replaced_meanwhile_is_one_of_both(lm, tmp_path, monkeypatch):
    file, deserialize = tmp_path / "context", safetensors.deserialize
    lm.save_context(lm.read([5, 6, 7]), file)

    def replaced(data):
        lm.save_context(lm.read([8, 9]), file)
        return deserialize(data)

    monkeypatch.setattr(safetensors, "deserialize", replaced)
    assert lm.load_context(file).tokens == (5, 6, 7)
    monkeypatch.undo()
    assert lm.load_context(file).tokens == (8, 9)


def test_a_file_appears_complete_or_not_at_all(lm, saved, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        lm.save_context(saved[1], tmp_path / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder"]
