"""Which layers and channels of griffin-tiny remember beyond the attention window.

    python -m experiments.study --config=configs/study_memory.py --output=docs/tracing

Hardware: any; 18 minutes on two CPU cores that others used, too. Memory: a few GB.
Expected: docs/tracing/memory.md, and what follows from it in docs/tracing/finding.md. With :tiny behind the file's name it takes seconds.
"""

from ml_collections import ConfigDict

from configs.studies_base import PACKAGE, check_size


def get_config(size: str = "") -> ConfigDict:
    check_size(size)
    config = ConfigDict()
    # The name of its files.
    config.name = "memory"
    config.kind = "memory"
    config.title = "What the states of griffin-tiny remember, and for how long"
    # A folder or the name of a model.
    config.model = "griffin-tiny"
    # Texts that it was not trained on; rows come from one of each in turn.
    config.text = "heldout.jsonl.xz"
    # Tokens read before states are swapped, and behind it.
    config.before = 512
    config.after = 1536
    # Rows, each of which gets the state of the next.
    config.rows = 6
    # Distances between which effects are averaged; the window is 512.
    config.edges = (0, 16, 64, 256, 512, 1024, 1536)
    # Memory lengths, in tokens until 1/e is left, between which channels are grouped.
    config.lengths = (0, 16, 64, 256)
    if size == "tiny":
        config.name += "_tiny"
        config.text = str(PACKAGE / "assets" / "griffin-tiny" / "README.md")
        config.before, config.after, config.rows = 16, 16, 2
        config.edges, config.lengths = (0, 4, 16), (0, 16)
    return config
