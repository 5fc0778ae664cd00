"""griffin-tiny: a Griffin of 32.5 million parameters on English books.

    python -m experiments.train --config=configs/train_griffin_tiny.py --run=runs/griffin-tiny \\
        --config.train=train.jsonl.xz --config.heldout=heldout.jsonl.xz

32,546,752 parameters; 203 MFLOP a token; 3,200 steps of 65,536 tokens are 210 million tokens, 6.0
epochs of 299 books. Hardware: one H100 80GB, 3.7 minutes of steps, 20 GB. Expected: the figures of
docs/griffin-tiny/README.md. So many epochs overfit: dropout, weight decay and the running average of
the parameters, which is what is evaluated and exported, are there against that.
With --config.max_seconds=N the run stops after N seconds with a checkpoint, and the same command
goes on from there.
"""

from ml_collections import ConfigDict

from griffin_jax.config import GriffinConfig

MODEL = GriffinConfig(
    vocab_size=8192,
    width=448,
    mlp_width=1344,
    num_layers=12,
    num_heads=7,
    attention_window=512,
)


def get_config() -> ConfigDict:
    """The settings; see griffin_jax.training.TrainConfig."""
    config = ConfigDict()
    config.model = MODEL.to_dict()
    config.init_from = ""
    config.tokenizer = "griffin-tiny"
    config.train = "train.jsonl.xz"
    config.heldout = "heldout.jsonl.xz"
    config.steps = 3200
    config.batch_size = 64
    config.seq_len = 1024
    config.microbatches = 1
    config.remat = "none"
    config.dropout = 0.1
    config.loss_chunks = 1
    config.dtype = "bfloat16"
    config.z_loss = 1e-4
    config.ema = 0.997
    config.seed = 0
    config.optimizer = {
        "learning_rate": 2e-3,
        "warmup_steps": 200,
        "final_share": 0.1,
        "weight_decay": 0.8,
        "clip_norm": 1.0,
    }
    config.log_every = 10
    config.eval_every = 500
    config.eval_batches = 8
    config.checkpoint_every = 1000
    config.mesh = {"data": 1, "fsdp": -1, "model": 1, "sequence": 1}
    config.max_seconds = 0.0
    return config
