"""Gates of the recurrence on text, figure 7 and appendix B of the Griffin paper.

    python -m experiments.study --config=configs/study_gates.py --minutes=9 \
        --config.knobs.train=train.jsonl.xz --config.knobs.heldout=heldout.jsonl.xz

Hardware: one GPU, about ten minutes a run; call it again until all are done. Memory: 30 GB.
Expected, by the paper: a complex recurrence (CG-LRU) does not help on language. With :tiny behind the
file's name it learns from this project's source in seconds, which shows nothing.
"""

from ml_collections import ConfigDict

from configs.studies_base import RECURRENCES, shrink, trained


def get_config(size: str = "") -> ConfigDict:
    config = trained("gates", "Gates of the recurrence (figure 7, appendix B)")
    config.paper = (
        "The RG-LRU beside other gates of h = alpha h + beta x on the same tokens. Appendix B says that "
        "a complex-valued recurrence does not improve language models."
    )
    # What is run otherwise, for captions.
    config.shorter = "models of about 10 million parameters on 33 million tokens of old books."
    config.task = "text"
    # Files as the flags name them; the tokenizer is griffin-tiny's.
    config.knobs = {"train": "train.jsonl.xz", "heldout": "heldout.jsonl.xz", "length": 1024}
    # Fields of GriffinConfig that the models share; the vocabulary is the tokenizer's.
    config.base = {
        "width": 256,
        "mlp_width": 768,
        "num_layers": 6,
        "num_heads": 4,
        "attention_window": 512,
    }
    # What each model has otherwise.
    config.models = RECURRENCES
    # Each model keeps the rate of the lowest held-out loss.
    config.learning_rates = (1e-3, 3e-3)
    config.seeds = (0, 1, 2)
    # Updates, and rows in each.
    config.steps = 2000
    config.batch_size = 16
    config.optimizer = {"warmup_steps": 200}
    config.dtype = "bfloat16"
    config.test_rows = 128
    # Updates between points of the curve, and between checkpoints.
    config.eval_every = 200
    config.checkpoint_every = 1000
    # On text nothing is solved; the column says when the loss is below this.
    config.solved = 4.0
    if size == "tiny":
        source = "griffin_jax/models/state.py"
        shrink(config, {"train": source, "heldout": source, "length": 32})
    return config
