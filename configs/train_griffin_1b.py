"""A Griffin of a billion parameters, trained in full with AdamW on one GPU.

    python -m experiments.train --config=configs/train_griffin_1b.py --run=runs/griffin-1b \\
        --config.tokenizer=FOLDER --config.train=FILES --config.heldout=FILE

1,007,802,880 parameters; 6.1 GFLOP a token. Width and MLP are RecurrentGemma-2B's, with 12 of its 26
layers, heads and window are Griffin-7B's, and the vocabulary has 32,000 pieces. Hardware: one H100
80GB, with XLA_PYTHON_CLIENT_MEM_FRACTION=0.95; 12.1 GB of master weights and optimizer, 4.0 GB of
gradients, the rest activations. Expected: what configs/bench_training.py measures of this step.
"""

from ml_collections import ConfigDict

from griffin_jax.config import GriffinConfig

MODEL = GriffinConfig(
    vocab_size=32_000,
    width=2560,
    mlp_width=7680,
    num_layers=12,
    num_heads=20,
    attention_window=1024,
)


def get_config() -> ConfigDict:
    """The settings; see griffin_jax.training.TrainConfig."""
    config = ConfigDict()
    config.model = MODEL.to_dict()
    config.init_from = ""
    config.tokenizer = ""
    config.train = ""
    config.heldout = ""
    config.steps = 20_000
    config.batch_size = 16
    config.seq_len = 2048
    config.microbatches = 1
    config.remat = "none"
    config.dropout = 0.0
    config.loss_chunks = 8
    config.dtype = "bfloat16"
    config.z_loss = 1e-4
    config.ema = 0.0
    config.seed = 0
    config.optimizer = {
        "learning_rate": 4e-4,
        "warmup_steps": 1000,
        "final_share": 0.1,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
    }
    config.log_every = 10
    config.eval_every = 1000
    config.eval_batches = 8
    config.checkpoint_every = 1000
    config.max_seconds = 0.0
    return config
