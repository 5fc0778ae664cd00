"""Figures of speed in RecurrentGemma-9B's model card, to stand beside what is measured.

https://huggingface.co/google/recurrentgemma-9b-it, sections on inference. Its throughput figure is a
picture without numbers; the machine is not named.
"""

PROTOCOL = "end-to-end seconds to sample N tokens after a prompt of 4K tokens, batch size 1"
# Seconds by tokens sampled; None where the card says "OOM".
LATENCY = {
    "gemma-7b": {
        128: 3.1,
        256: 5.9,
        512: 11.6,
        1024: 23.5,
        2048: 48.2,
        4096: 101.9,
        8192: None,
        16_384: None,
    },
    "recurrentgemma-9b": {
        128: 2.8,
        256: 5.4,
        512: 10.5,
        1024: 20.6,
        2048: 40.9,
        4096: 81.5,
        8192: 162.8,
        16_384: 325.2,
    },
}
