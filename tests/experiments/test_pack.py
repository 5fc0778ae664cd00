"""The pack and convert commands, as a user calls them, and sampling from what they make."""

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import griffin_jax
from griffin_jax.checkpoints import BUNDLED, find_folder, load_checkpoint, save_checkpoint
from griffin_jax.quantization import QuantizedTensor, dequantize
from griffin_jax.tokenizer import load_tokenizer
from tests.checkpoints.tiny_model import assert_same_tree, random_params

ROOT = Path(__file__).parents[2]
TOKENIZER = load_tokenizer(find_folder(BUNDLED))
CONFIG = griffin_jax.preset("tiny").replace(vocab_size=TOKENIZER.vocab_size, num_layers=1)
NF4 = griffin_jax.QuantizationConfig(bnb_4bit_quant_type="nf4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a tiny 16-bit model with a tokenizer lies in whole/."""
    folder = tmp_path_factory.mktemp("pack")
    save_checkpoint(
        folder / "whole",
        CONFIG,
        random_params(CONFIG, jnp.bfloat16),
        format="huggingface",
        tokenizer=TOKENIZER,
    )
    done = run(folder, "pack", "whole", "packed")
    assert done.returncode == 0, done.stderr
    (folder / "pack.txt").write_text(done.stdout)
    return folder


def run(folder, name, checkpoint, output, *flags):
    command = ["-m", f"experiments.{name}", f"--config.model={folder / checkpoint}"]
    return call(*command, f"--output={folder / output}", *flags)


def call(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)


def test_a_folder_packed_by_the_command_is_the_model_packed_on_loading(folder):
    packed = load_checkpoint(folder / "packed")
    expected = load_checkpoint(folder / "whole", quantization=NF4)
    assert_same_tree(packed.params, expected.params)
    assert packed.quantization == NF4.to_dict()
    assert load_tokenizer(folder / "packed").vocab_size == TOKENIZER.vocab_size


def test_packing_prints_sizes_errors_and_memory(folder):
    text = (folder / "pack.txt").read_text()
    rows = {
        cells[0]: cells[1:]
        for line in text.splitlines()
        if line.startswith("|") and (cells := [cell.strip() for cell in line.split("|")[1:-1]])
    }
    assert 0.08 < float(rows["mlp_block/up_proj"][-1]) < 0.1
    stored = sum(file.stat().st_size for file in (folder / "packed").glob("*.safetensors"))
    # The header takes some room, and quant_states.
    assert float(rows["all"][2]) == pytest.approx(stored / 1e6, abs=0.4)
    assert float(rows["all"][1]) > float(rows["all"][2])
    assert "peak memory" in text


@pytest.mark.slow
def test_text_is_sampled_from_a_packed_folder(folder):
    done = call(
        *("-m", "experiments.sample", f"--config.model={folder / 'packed'}"),
        *("--prompt=It was", "--config.max_new_tokens=4", "--config.temperature=0"),
    )
    assert done.returncode == 0, done.stderr
    lm = griffin_jax.load(folder / "packed")
    assert lm.sample(["It was"], max_new_tokens=4)[0].text in done.stdout
    assert "4 tokens" in done.stderr


@pytest.mark.slow
def test_converting_to_our_format_and_back_to_16_bits_keeps_the_values(folder):
    assert run(folder, "convert", "packed", "ours").returncode == 0
    ours = load_checkpoint(folder / "ours")
    packed = load_checkpoint(folder / "packed")
    assert_same_tree(ours.params, packed.params)
    assert ours.quantization == packed.quantization
    assert not list((folder / "ours").glob("tmp*"))

    done = run(
        folder,
        *("convert", "ours", "unpacked"),
        *("--config.format=huggingface", "--config.dequantize=true"),
    )
    assert done.returncode == 0, done.stderr
    whole = load_checkpoint(folder / "unpacked")
    assert whole.quantization is None
    weight = whole.params["blocks_0"]["mlp_block"]["up_proj"]["weight"]
    tensor = packed.params["blocks_0"]["mlp_block"]["up_proj"]["weight"]
    assert isinstance(tensor, QuantizedTensor)
    assert weight.dtype == jnp.bfloat16
    np.testing.assert_array_equal(weight, dequantize(tensor))
    assert "quantization_config" not in json.loads((folder / "unpacked/config.json").read_text())


def test_what_cannot_be_packed_ends_in_one_line_and_leaves_nothing(folder):
    params = random_params(CONFIG)
    params["final_norm"]["scale"] = params["final_norm"]["scale"].at[2].set(jnp.inf)
    save_checkpoint(folder / "damaged", CONFIG, params, format="huggingface")
    before = sorted(folder.iterdir())
    done = run(folder, "pack", "damaged", "result")
    assert done.returncode == 1
    assert done.stderr == "error: model.final_norm.weight holds NaN or infinity\n"
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    "command, flag, message",
    [
        ("pack", "--config.block_size=48", "block_size must be one of 32, 64"),
        ("convert", "--config.format=zip", "format must be one of huggingface, orbax"),
        ("convert", "--config.dtype=float", "dtype must be one of"),
    ],
)
def test_wrong_input_ends_in_one_line_and_leaves_nothing(folder, command, flag, message):
    before = sorted(folder.iterdir())
    done = run(folder, command, "whole", "result", flag)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("command", ["pack", "convert"])
def test_a_tokenizer_of_another_model_is_refused(tmp_path, command):
    config = CONFIG.replace(vocab_size=100)
    save_checkpoint(tmp_path / "misfit", config, random_params(config), tokenizer=TOKENIZER)
    done = run(tmp_path, command, "misfit", "result")
    assert done.returncode == 1
    assert "misfit: the tokenizer has 8192 pieces but the model's embedding 100" in done.stderr
    assert not (tmp_path / "result").exists()
