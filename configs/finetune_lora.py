"""A LoRA adapter for any model, on conversations; over a 4-bit folder this is QLoRA.

    python -m experiments.train --config=configs/finetune_lora.py --run=runs/adapter \\
        --config.init_from=FOLDER --config.train=chats.jsonl

chats.jsonl holds {"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}]} on
each line; the loss counts the assistant's turns only. runs/adapter/adapter is what PEFT reads;
--merge writes the merged model, too. --config.data=text trains on plain text.

Hardware: a GPU or TPU that holds the base (9B: 6.4 GB in NF4, 17.2 GB in bfloat16) and one sequence's
activations; the adapter itself has about 1% of the base's parameters. 500 steps of 16 x 1,024 tokens take
hours on a CPU. For a CPU and a few short chats there is

    python -m experiments.train --config=configs/finetune_lora.py:tiny --run=runs/adapter \\
        --config.train=chats.jsonl

20 steps of 4 x 32 tokens on griffin-tiny, at a rate at which it learns them by heart: half a minute.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """The settings; see griffin_jax.training.TrainConfig."""
    if variant not in ("", "tiny"):
        raise ValueError(f"{variant!r} is no variant: there is tiny")
    config = ConfigDict()
    config.init_from = "griffin-tiny"
    config.tokenizer = ""
    config.data = "chat"
    config.train = ""
    config.heldout = ""
    config.lora = {"rank": 16, "alpha": 32.0}
    config.steps = 500
    config.batch_size = 16
    config.seq_len = 1024
    config.microbatches = 1
    config.dtype = "bfloat16"
    config.remat = "block"
    config.loss_chunks = 4
    config.optimizer = {"learning_rate": 2e-4, "warmup_steps": 20, "weight_decay": 0.0}
    config.log_every = 10
    config.eval_every = 50
    config.checkpoint_every = 100
    config.seed = 0
    config.mesh = {"data": 1, "fsdp": -1, "model": 1, "sequence": 1}
    config.max_seconds = 0.0
    if variant == "tiny":
        config.steps, config.batch_size, config.seq_len, config.loss_chunks = 20, 4, 32, 1
        config.dtype, config.remat = "float32", "none"
        config.optimizer = {"learning_rate": 5e-3, "warmup_steps": 3, "weight_decay": 0.0}
    return config
