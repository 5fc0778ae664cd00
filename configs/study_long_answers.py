"""Questions about long texts, lines of JSON as LongBench has them, answered in one pass and from chunks.

    python -m experiments.study --config=configs/study_long_answers.py --config.model=FOLDER --config.lines=hotpotqa.jsonl

Hardware: that of the model; on a CPU, griffin-tiny answers the four lines that are here in half a minute.
Memory: the model, and a state for each chunk that is read at once. Lines that are done are kept in --run, and the
same command goes on behind them; --minutes=9 stops in time. LongBench's own templates ask each data set in
its own words: give them as --config.template. Expected: a recurrent model gains by chunks where contexts
are longer than what its state holds. With :tiny behind the file's name it takes seconds.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs.studies_base import check_size


def get_config(size: str = "") -> ConfigDict:
    check_size(size)
    config = ConfigDict()
    # The name of its files.
    config.name = "long_answers"
    config.kind = "long_answers"
    config.title = "Questions about long texts from chunks (OPRM)"
    config.paper = (
        "OPRM (arXiv:2505.07793) reads a long text in chunks, each with the question, and answers from "
        "the chunk of which the model is most certain; recurrent models gain much by it on LongBench "
        "(arXiv:2308.14508), for their states overflow in one pass."
    )
    # What is run otherwise, for captions.
    config.shorter = (
        "griffin-tiny, which was trained on books and follows no instructions, on four lines of the "
        "project's own, which show that it runs and no more."
    )
    # "griffin-tiny", a folder of a model, or a name on the Hub.
    config.model = "griffin-tiny"
    # JSON lines of "context", "input" and "answers", and how many of them; None for all.
    config.lines = str(Path(__file__).with_suffix(".jsonl"))
    config.limit = None
    # The prompt: {context}, or a chunk of it, and the question, {input}, behind it.
    config.template = (
        "Read the text, and answer the question in a few words. If the text does not answer it, say "
        '"unanswerable".\n\n{context}\n\nQuestion: {input}\nAnswer:'
    )
    # Answers that say that a chunk has none.
    config.unanswerable = ("unanswerable",)
    # Tokens of a chunk.
    config.chunks = (128, 256)
    # What chooses a chunk: "entropy" or "probability".
    config.certainty = "entropy"
    # Tokens of an answer, and chunks that are read at once.
    config.max_new_tokens, config.slots = 24, 8
    # What is put to the test; see griffin_jax.studies.claims.
    config.claims = (
        {
            "says": "Read in chunks, a recurrent model answers better than in one pass.",
            "if": ((("f1", "chunks read"), ">", 1.0, ("f1", "one pass")),),
            # Where no chunk has a right answer, there is nothing to choose.
            "given": ((("f1", "best chunk"), ">=", 0.05),),
        },
    )
    if size == "tiny":
        config.name += "_tiny"
        config.claims, config.limit, config.chunks, config.max_new_tokens = (), 1, (400,), 2
    return config
