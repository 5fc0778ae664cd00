"""Scans of the recurrence over lengths and widths, figure 8 of the Griffin paper.

    python -m experiments.study --config=configs/study_scans.py

Hardware: one GPU, two minutes, most of it compilation. Memory: 8 GB.
Expected, by the paper: on a TPU the linear scan in a kernel is fastest, and an associative scan slower
than one in plain JAX. With :tiny behind the file's name it takes seconds.
"""

from ml_collections import ConfigDict


def get_config(size: str = "") -> ConfigDict:
    config = ConfigDict()
    # The name of its files.
    config.name = "scans"
    config.kind = "scans"
    config.title = "Scans over length and width (figure 8)"
    config.paper = (
        "On TPU v3 the linear scan in a Pallas kernel is about three times as fast as one in plain JAX, "
        "and an associative scan is slower than either; a Griffin trains fastest with the kernel."
    )
    # What is run otherwise, for captions.
    config.shorter = "one GPU; the scan and the RG-LRU alone, one row at a time."
    # Tokens and channels.
    config.lengths = (2048, 8192, 32_768)
    config.widths = (1024, 4096)
    # What is timed; see griffin_jax.benchmarks.kernel_cases.
    config.operations = ("linear_recurrence", "rg_lru")
    # The dtype of the RG-LRU's inputs; the linear recurrence is float32.
    config.dtype = "bfloat16"
    # How long a loop takes at a twentieth of the device's limit, and times that each figure is taken.
    config.seconds = 0.05
    config.repeats = 3

    if size == "cpu":
        config.name += "_cpu"
        config.shorter = "two cores of a CPU, which have no kernel of their own; one row at a time."
        config.lengths, config.widths, config.seconds = (512, 2048, 8192), (256, 1024), 1e-3

    # What is put to the test; see griffin_jax.studies.claims. Quantities are microseconds of an
    # operation's kernel, forward and backward, at a length and a width.
    def time(kernel, length):
        return "microseconds", "linear_recurrence", kernel, length, config.widths[-1]

    config.claims = (
        {
            "says": "The kernel is about three times as fast as a scan in plain JAX, step after step.",
            "if": tuple(
                (time("reference", x), ">=", 3.0, time("pallas_gpu", x)) for x in (2048, 8192)
            ),
        },
        {
            "says": "An associative scan is slower than one step after step.",
            "if": tuple(
                (time("associative", x), ">", 1.0, time("reference", x)) for x in (2048, 8192)
            ),
        },
    )
    if size == "cpu":
        config.claims = config.claims[1:]
    if size == "tiny":
        config.name += "_tiny"
        config.claims = ()
        config.lengths, config.widths, config.seconds, config.repeats = (16,), (8,), 0.0, 1
        config.operations, config.dtype = ("linear_recurrence",), "float32"
    return config
