"""Long documents answered from chunks, by the models of the phonebook study or of the needle study.

    python -m experiments.study --config=configs/study_phonebook.py
    python -m experiments.study --config=configs/study_long_documents.py

Hardware: any; some minutes on two CPU cores. Memory: a few GB. The first command trains the models and
leaves them in --run; :tiny behind the second's file name takes those of study_phonebook.py:tiny, and
seconds. :needle takes those of study_needle.py, needles in texts of fillers in place of phonebooks; and :needle_cpu
and :needle_tiny those of study_needle.py:cpu and :tiny.
Expected: reading in chunks beats one pass where a book is longer than what the state holds.
"""

from ml_collections import ConfigDict

from configs.studies_base import check_size

# The needle study's sizes, by what stands behind this file's name, and the tokens of a chunk.
_NEEDLES = {"needle": ("", 253), "needle_cpu": (":cpu", 61), "needle_tiny": (":tiny", 16)}


def get_config(size: str = "") -> ConfigDict:
    check_size(size, *_NEEDLES)
    config = ConfigDict()
    # The name of its files.
    config.name = "long_documents"
    config.kind = "long_documents"
    config.title = "Long documents from chunks (OPRM)"
    config.paper = (
        "OPRM (arXiv:2505.07793) reads a long text in chunks, each with the question, and answers from "
        "the chunk of which the model is most certain; recurrent models gain much by it on LongBench, for "
        "their states overflow in one pass."
    )
    # What is run otherwise, for captions.
    config.shorter = (
        "the small models of the phonebook study, on books of up to 16 times as many entries."
    )
    # The study whose models answer, and which of them.
    config.study = "study_phonebook.py"
    config.models = ("Griffin", "Hawk", "Transformer")
    # Entries of a chunk; about the length of training.
    config.entries = 36
    # Chunks of a book.
    config.chunks = (1, 2, 4, 8, 16)
    # Books of each size, and in a call.
    config.rows, config.batch_size = 128, 16
    # What is put to the test; see griffin_jax.studies.claims.
    config.claims = (
        {
            "says": "Read in chunks, the recurrent models answer more than in one pass beyond what a "
            "state holds.",
            "if": tuple(
                (("chunks read", model, 8), ">", 1.0, ("one pass", model, 8))
                for model in ("Griffin", "Hawk")
            ),
        },
    )
    if size in _NEEDLES:
        # The claim is that of phonebooks.
        config.name += f"_{size}"
        config.title += ": a needle"
        config.shorter = (
            "the small models of the needle study, on texts of up to 16 times the length that they were "
            "trained on. A chunk's end may cut a needle."
        )
        of, config.entries = _NEEDLES[size]
        config.study = f"study_needle.py{of}"
    if size == "tiny":
        config.name += "_tiny"
        config.study += ":tiny"
        config.entries = 3
    if size.endswith("tiny"):
        config.models, config.claims = ("Griffin",), ()
        config.chunks, config.rows, config.batch_size = (1, 2), 4, 4
    return config
