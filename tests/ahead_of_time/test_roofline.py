"""The roofline model agrees with what can be worked out by hand."""

import json
import re

import pytest

from configs import train_griffin_1b
from griffin_jax.ahead_of_time import programs, roofline, scaling
from griffin_jax.ahead_of_time.programs import Program
from griffin_jax.ahead_of_time.roofline import H200, V5E, Machine
from griffin_jax.config import RECURRENTGEMMA_9B
from griffin_jax.sharding import MeshShape
from griffin_jax.training.flops import matmul_params
from tests.tiny import GRIFFIN


def test_decoding_of_the_packed_9b_reads_its_weights_and_state_at_the_speed_of_memory():
    size = roofline.tree_bytes(programs.abstract_arguments(Program("recurrentgemma-9b", "nf4")))
    # 7.47e9 packed weights at 4.5 bits, 1.11e9 others in bfloat16.
    others = 8_579_977_216 - 7_474_249_728
    assert size == pytest.approx(7_474_249_728 * 4.5 / 8 + 2 * others, rel=1e-5)
    state = 12 * 2 * 2048 * 256 * 2 + 2 * 26 * 4096 * (4 + 3 * 2)
    floor = roofline.decode_roofline(RECURRENTGEMMA_9B, size, 1)
    assert floor.bound == "memory"
    assert floor.seconds == pytest.approx((size + state) / 819e9)
    sixteen = roofline.decode_roofline(RECURRENTGEMMA_9B, size, 16)
    assert sixteen.memory_seconds == pytest.approx((size + 16 * state) / 819e9)


def test_training_is_predicted_of_the_shape_that_is_trained():
    assert scaling._TRAINED == train_griffin_1b.MODEL


def test_chips_of_a_copy_share_weights_and_those_of_other_copies_rows():
    one = roofline.decode_roofline(RECURRENTGEMMA_9B, 6e9, 8)
    copies = roofline.decode_roofline(RECURRENTGEMMA_9B, 6e9, 32, MeshShape(data=4))
    assert copies.tokens_per_second_per_chip == pytest.approx(one.tokens_per_second_per_chip)
    cut = roofline.decode_roofline(RECURRENTGEMMA_9B, 6e9, 8, MeshShape(model=4))
    assert one.memory_seconds / 4 < cut.memory_seconds < one.memory_seconds
    reduces = 2 * 38 + 1
    assert cut.link_seconds == pytest.approx(
        reduces * roofline.all_reduce_seconds(8 * 4096 * 2, 4, V5E)
    )


def test_collectives_move_what_each_chip_lacks():
    machine = Machine(0, 1, 1, link_bytes_per_second=100.0)
    assert roofline.gather_seconds(1000, 4, machine) == pytest.approx(7.5)
    assert roofline.all_reduce_seconds(1000, 4, machine) == pytest.approx(15)
    assert roofline.gather_seconds(1000, 1, machine) == 0


def test_training_waits_only_for_communication_longer_than_the_products():
    params = 8_579_977_216
    few = roofline.train_roofline(RECURRENTGEMMA_9B, params, 64, 2048, MeshShape(fsdp=64))
    assert few.bound == "compute" and few.link_seconds == 0
    short = roofline.train_roofline(RECURRENTGEMMA_9B, params, 64, 16, MeshShape(fsdp=64))
    assert short.bound == "links"


def test_a_figure_that_the_model_predicts_has_no_error():
    floor = roofline.decode_roofline(RECURRENTGEMMA_9B, scaling._weight_bytes(*_BF16), 1)
    figure = scaling.Measured("decode", "bf16", 2 * floor.seconds, 4096, V5E, "test")
    (row,) = scaling.errors_table([figure])[1]
    assert row[-1] == "-50%"


_BF16 = ("recurrentgemma-9b", "bf16")


def test_figures_come_from_the_benchmark_where_there_are_some(tmp_path):
    assert scaling.measured_figures(tmp_path / "none") == list(scaling._OTHERS)
    (tmp_path / "decode.json").write_text(
        '{"kind": "decode", "machine": {"device": "GPU"}, "limits": {"bytes_per_second": 3e12, '
        '"flops_per_second": 8e14}, "rows": ['
        '{"model": "recurrentgemma-9b", "weights": "bfloat16", "what": "decode", "position": 4096, '
        '"seconds_per_token": {"median": 0.006}},'
        '{"model": "recurrentgemma-9b", "weights": "nf4", "what": "prefill", "prompt": 2048, '
        '"seconds": {"median": 0.1}},'
        '{"model": "tiny", "weights": "nf4", "what": "decode"}]}'
    )
    figure, prefill = scaling.measured_figures(tmp_path)
    assert (figure.weights, figure.seconds, figure.tokens) == ("bf16", 0.006, 4096)
    assert (prefill.what, prefill.seconds, prefill.tokens) == ("prefill", 0.1, 2048)
    assert figure.source == "GPU, decode.json"


def test_steps_of_training_come_from_the_benchmark_and_are_predicted(tmp_path):
    row = {"status": "ok", "length": 64, "batch_size": 2, "document": 64, "remat": "block"}
    row |= {"seconds": {"median": 1.0}}
    results = {
        "kind": "training",
        "config": {"model": GRIFFIN.to_dict()},
        "machine": {"device": "GPU"},
        "limits": {"bytes_per_second": 3e12, "flops_per_second": 8e14},
        "rows": [row, row | {"document": 16}, row | {"status": "out of memory"}],
    }
    (tmp_path / "training.json").write_text(json.dumps(results))
    figure = scaling.measured_figures(tmp_path)[-1]
    assert (figure.what, figure.rows, figure.remat) == ("train", 2, "block")
    assert figure.config == GRIFFIN
    (cells,) = scaling.errors_table([figure])[1]
    assert cells[0].endswith("train, 2 x 64, remat block") and cells[-1] == "-100%"


def test_around_a_switch_every_chip_receives_from_all_others_at_once():
    machine = Machine(0, 1, 1, link_bytes_per_second=100.0, hop_seconds=1.0, switched=True)
    for chips in (2, 4, 8):
        seconds = 1000 * (chips - 1) / chips / 100 + 1
        assert roofline.gather_seconds(1000, chips, machine) == pytest.approx(seconds)


def test_several_gpus_are_predicted_and_held_against_what_they_took(tmp_path):
    head, rows = scaling.host_table()
    assert head[1:] == ["1 GPU", "2 GPUs", "4 GPUs", "8 GPUs"] and len(rows) == 11
    row = {"model": "recurrentgemma-9b", "weights": "bfloat16", "what": "throughput"}
    row |= {"position": 2048, "batch_size": 16, "seconds_per_token": {"median": 0.01}}
    results = {
        "kind": "throughput",
        "machine": {"device": "NVIDIA H200"},
        "limits": {"bytes_per_second": H200.bytes_per_second, "flops_per_second": 664e12},
        "rows": [row, row | {"devices": 2, "mesh": {"model": 2}}],
    }
    (tmp_path / "throughput.json").write_text(json.dumps(results))
    figures = [one for one in scaling.measured_figures(tmp_path) if one.rows > 1]
    alone, shared = scaling.errors_table(figures)[1]
    assert alone[0] == "9B bf16 decode at 2,048, 16 rows"
    assert shared[0] == "9B bf16 decode at 2,048, 16 rows, model=2"
    predicted = next(line for line in rows if line[0] == "9B bf16 decode, 16 rows")
    assert alone[3] == predicted[1]
    # With the part of it that links take.
    assert re.fullmatch(rf"{shared[3]} \(\d\d%\)", predicted[2])


def test_an_adapter_spares_the_gradients_of_weights_and_gathers_them_as_they_are_stored():
    mesh, machine = MeshShape(fsdp=4), Machine(0, 1e30, 1.0, link_bytes_per_second=1.0)
    lora = roofline.lora_roofline(GRIFFIN, 1e12, 8, 64, mesh, machine)
    train = roofline.train_roofline(GRIFFIN, 10**6, 8, 64, mesh, machine)
    # A product with weights forward, backward and forward again: 6 of 8 FLOPs per weight and token.
    spared = 2 * matmul_params(GRIFFIN) * 8 * 64 / 4
    assert train.compute_seconds - lora.compute_seconds == pytest.approx(spared)
    assert lora.link_seconds == pytest.approx(3 * 1e12 * 3 / 4 - lora.compute_seconds)
    assert roofline.lora_roofline(GRIFFIN, 1e12, 8, 64, MeshShape(), machine).link_seconds == 0
