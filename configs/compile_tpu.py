"""Does a configuration fit a slice of TPU v5e, what does it communicate, how fast can it be?

    python -m experiments.compile_tpu --config=configs/compile_tpu.py
    python -m experiments.compile_tpu --config.topology=v5e:2x2 --config.mesh.model=4 --config.batch_size=8
    python -m experiments.compile_tpu --sweep --output=docs/tpu

Hardware: none but a CPU with libtpu, `pip install "griffin_jax[tpu]"` (Linux on x86-64). The first
command compiles the 9B in NF4 for one chip: half a minute on two cores with the static estimate, 3 GB
of memory, and says that decoding needs 6.0 of 15.75 GiB and about 15 ms a token. The sweep compiles
the table of docs/tpu in about half an hour, a row at a time: what is there already is kept.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    # The slice: v5e:1x1 is one chip, v5e:4x4 are 16.
    config.topology = "v5e:1x1"
    # Chips along each axis; one may be -1, "all that remain".
    config.mesh = ConfigDict({"data": 1, "fsdp": 1, "model": 1, "sequence": 1})
    # A preset.
    config.model = "recurrentgemma-9b"
    # bf16, nf4, fp4 or int8; or nf4-double or fp4-double, whose scales are quantized, too.
    config.weights = "nf4"
    # decode, prefill, train, or lora (of an adapter over weights as they are).
    config.job = "decode"
    # Rows, over all chips.
    config.batch_size = 1
    # Tokens of each row that a call of prefill or training reads.
    config.tokens = 2048
    # A loop over groups of layers, which compiles one of them.
    config.stack_layers = True
    # For training: what is computed again, "none", "dots" or "block".
    config.remat = "block"
    # For training: parts of a sequence's logits that exist at a time.
    config.loss_chunks = 8
    # For training: parts of a batch, one after another.
    config.microbatches = 1
    # Ask the compiler for its schedule as well: two more compilations.
    config.static = True
    # Static estimates are for one chip.
    one = {"topology": "v5e:1x1", "model": "recurrentgemma-9b", "weights": "nf4"}
    four = one | {"topology": "v5e:2x2", "mesh": {"model": 4}, "static": False}
    eight = four | {"topology": "v5e:2x4", "mesh": {"model": 8}}
    train = {"job": "train", "weights": "bf16", "mesh": {"fsdp": -1}, "static": False}
    # For --sweep: what each row of the table changes.
    config.rows = (
        *(one | {"job": "decode", "batch_size": rows} for rows in (1, 4, 16, 64)),
        one | {"job": "decode", "weights": "nf4-double"},
        one | {"job": "prefill", "tokens": 2048},
        one | {"job": "prefill", "tokens": 4096},
        *(one | {"job": "decode", "weights": "int8", "batch_size": rows} for rows in (1, 16)),
        one | {"job": "decode", "stack_layers": False, "static": False},
        one | {"job": "prefill", "tokens": 2048, "stack_layers": False, "static": False},
        one | {"job": "decode", "weights": "bf16", "static": False},
        *(four | {"job": "decode", "batch_size": rows} for rows in (4, 64)),
        four | {"job": "decode", "weights": "bf16", "batch_size": 4},
        four | {"job": "prefill", "weights": "bf16", "tokens": 4096},
        eight | {"job": "decode", "batch_size": 8},
        eight | {"job": "decode", "weights": "bf16", "batch_size": 8},
        eight | {"job": "decode", "weights": "bf16", "batch_size": 128},
        train | {"topology": "v5e:4x4", "model": "recurrentgemma-2b", "batch_size": 16},
        train | {"topology": "v5e:8x8", "model": "recurrentgemma-9b", "batch_size": 64},
        train
        | {
            "topology": "v5e:8x8",
            "model": "recurrentgemma-9b",
            "batch_size": 64,
            "mesh": {"fsdp": 16, "model": 4},
        },
        train
        | {
            "topology": "v5e:16x16",
            "model": "recurrentgemma-9b",
            "batch_size": 256,
            "mesh": {"fsdp": 64, "model": 4},
        },
    )
    # Where `--sweep` finds figures that were measured, to hold the roofline model against.
    config.benchmarks = "docs/benchmarks"
    return config
