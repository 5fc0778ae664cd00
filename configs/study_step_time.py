"""Time of a training step over the length of its rows, figure 3 of the Griffin paper.

    python -m experiments.study --config=configs/study_step_time.py

Hardware: one GPU, two minutes, most of it compilation. Memory: 40 GB. :benchmark behind
the file's name takes what docs/benchmarks holds and times nothing.
Expected, by the paper: Griffin's time hardly changes with the length, that of the MQA Transformer grows;
a kernel for attention makes it grow less. With :tiny behind the file's name it takes seconds.
"""

from ml_collections import ConfigDict

from configs.studies_base import A, R, check_size


def get_config(size: str = "") -> ConfigDict:
    check_size(size, "benchmark")
    config = ConfigDict()
    # The name of its files.
    config.name = "step_time"
    config.kind = "step_time"
    config.title = "Time of a training step over length (figure 3)"
    config.paper = (
        "Models of 400 million parameters on TPU v3, tokens of a batch fixed, times relative to the MQA "
        "Transformer's at 2,048. Griffin's are flat, the Transformer's grow."
    )
    # What is run otherwise, for captions.
    config.shorter = (
        "one GPU; the vocabulary is 32,000 in place of 256,000, and lengths go to 32,768."
    )
    # Fields of GriffinConfig that the models share, and what each has otherwise.
    config.base = {
        "vocab_size": 32_000,
        "width": 1536,
        "mlp_width": 4608,
        "num_layers": 12,
        "num_heads": 12,
        "attention_window": 1024,
    }
    config.models = {
        "Transformer": {"block_pattern": (A,), "attention_window": None, "mlp_width": 5120},
        "Griffin": {"block_pattern": (R, R, A)},
    }
    # What times are relative to, at the first length.
    config.compared_with = "Transformer"
    # Tokens of a row, and of a batch.
    config.lengths = (2048, 4096, 8192, 16_384, 32_768)
    config.tokens = 32_768
    # REMAT:LOSS_CHUNKS:MICROBATCHES, as in bench_training.
    config.memory = "none:8:1"
    # The dtype of activations.
    config.dtype = "bfloat16"
    # Steps that are timed.
    config.repeats = 6
    # By model and length, the paper's times over that of the first model at the first length.
    config.paper_ratios = {
        "Transformer": {"2048": 1.00, "4096": 1.17, "8192": 1.46},
        "Griffin": {"2048": 0.93, "4096": 0.96, "8192": 0.98},
    }
    # What is put to the test; see griffin_jax.studies.claims.
    config.claims = (
        {
            "says": "Griffin's time is flat over lengths.",
            "if": (
                (
                    ("relative time", "Griffin", 8192),
                    "<=",
                    1.05,
                    ("relative time", "Griffin", 2048),
                ),
                (
                    ("relative time", "Griffin", 32_768),
                    "<=",
                    1.1,
                    ("relative time", "Griffin", 2048),
                ),
            ),
        },
        {
            "says": "The MQA Transformer's time grows with the length, to 1.46 at 8,192.",
            "if": ((("relative time", "Transformer", 8192), ">=", 1.3),),
        },
        {
            "says": "Griffin's step is the faster one at 8,192.",
            "if": (
                (
                    ("relative time", "Griffin", 8192),
                    "<",
                    1.0,
                    ("relative time", "Transformer", 8192),
                ),
            ),
        },
    )
    if size == "benchmark":
        config.measured = "docs/benchmarks/training.json"
        config.shorter = (
            "Griffin alone, of a billion parameters, as `experiments.benchmark` measured it; times are "
            "relative to its own at 2,048. The Transformer was not timed."
        )
        config.models, config.lengths = {"Griffin": config.models.Griffin}, (2048, 8192, 32_768)
        config.paper_ratios, config.compared_with = {}, "Griffin"
    if size == "tiny":
        config.name += "_tiny"
        config.claims = ()
        small = {"vocab_size": 32, "width": 16, "mlp_width": 24, "num_layers": 1, "num_heads": 2}
        config.base = small | {"attention_window": 8}
        config.models = {"Griffin": {"block_pattern": (R,)}}
        config.compared_with = "Griffin"
        config.lengths, config.tokens, config.repeats = (16, 32), 32, 1
        config.memory, config.dtype = "none:1:1", "float32"
    return config
