"""Scans of the recurrence over lengths and widths, figure 8 of the Griffin paper.

    python -m experiments.study --config=configs/study_scans.py

Hardware: one GPU, some minutes, most of it compilation. Memory: 8 GB. :benchmark behind the file's name
takes what docs/benchmarks holds and times nothing; :cpu is for a CPU, without a kernel, a few minutes.
Expected, by the paper: on a TPU the linear scan in a kernel is fastest, and an associative scan slower
than one in plain JAX. With :tiny behind the file's name it takes seconds.
"""

from ml_collections import ConfigDict

from configs.studies_base import check_size


def get_config(size: str = "") -> ConfigDict:
    check_size(size, "benchmark", "cpu")
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
    # A file of experiments.benchmark whose rows are taken in place of timing any.
    config.measured = ""
    plain = "linear_recurrence", "reference"

    if size == "benchmark":
        config.measured = "docs/benchmarks/kernels_recurrences.json"
        config.shorter = (
            "one GPU and one shape, as `experiments.benchmark` measured them; the plain scan, step after "
            "step, is that of the package recurrentgemma."
        )
        config.lengths, config.widths = (8192,), (4096,)
        config.operations += ("jax.lax.associative_scan", "recurrentgemma's scan")
    if size == "benchmark":
        plain = "recurrentgemma's scan", "recurrentgemma's scan"

    if size == "cpu":
        config.name += "_cpu"
        config.title += " on a CPU"
        config.shorter = "a CPU, for which there is no kernel; the scan and the RG-LRU alone, one row at a time, in float32."
        config.lengths, config.widths, config.dtype = (512, 2048, 8192), (256, 1024), "float32"
        config.repeats = 9

    # What is put to the test; see griffin_jax.studies.claims. Quantities are microseconds of an
    # operation's kernel, forward and backward, at a length and a width.
    def time(operation, kernel):
        return "microseconds", operation, kernel, 8192, config.widths[-1]

    config.claims = (
        {
            "says": "The kernel is at least three times as fast as a scan in plain JAX, step after step.",
            "if": ((time(*plain), ">=", 3.0, time("linear_recurrence", "pallas_gpu")),),
        },
        {
            "says": "An associative scan is slower than one step after step.",
            "if": ((time("linear_recurrence", "associative"), ">", 1.0, time(*plain)),),
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
