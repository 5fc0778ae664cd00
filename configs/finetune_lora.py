"""A LoRA adapter for any model, on conversations; over a 4-bit folder this is QLoRA.

    python -m experiments.train --config=configs/finetune_lora.py --run=runs/adapter \\
        --config.init_from=FOLDER --config.train=chats.jsonl

chats.jsonl holds {"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}]} on
each line; the loss counts the assistant's turns only. runs/adapter/adapter is what PEFT reads;
--merge writes the merged model, too. --config.data=text trains on plain text.

Hardware: what holds the base (9B: 6.4 GB in NF4, 17.2 GB in bfloat16) and one sequence's
activations; the adapter itself has about 1% of the base's parameters.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The settings; see griffin_jax.training.TrainConfig."""
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
    return config
