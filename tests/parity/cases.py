"""What we and `recurrentgemma` are both run on."""

import numpy as np

from griffin_jax.config import ATTENTION, RECURRENT
from tests.tiny import GRIFFIN

WINDOW = GRIFFIN.attention_window
TIME = 3 * WINDOW + 2
CONFIGS = {
    "recurrence wider": GRIFFIN,
    "recurrence narrower": GRIFFIN.replace(
        num_layers=4,
        num_heads=2,
        head_size=16,
        block_pattern=(RECURRENT, RECURRENT, ATTENTION),
        recurrence_width=20,
        scale_embeddings=False,
    ),
}


def packed_positions():
    """Rows of one document, of two, and of four, of which one is a single token."""
    rows = [[TIME], [9, TIME - 9], [3, 1, 10, TIME - 14]]
    return np.stack([np.concatenate([np.arange(n) for n in row]) for row in rows])
