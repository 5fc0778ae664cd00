"""Results of experiments.benchmark_forking as a Markdown page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from griffin_jax import provenance
from griffin_jax.files import write_text
from griffin_jax.markdown import table
from griffin_jax.paths import resolve

KIND = "forking"

# What the test split of MMLU holds.
_SUBJECTS, _QUESTIONS = 57, 14_042


def write(documents: Sequence[tuple[str, dict]], folder: Path) -> list[Path]:
    """Writes forking.md into `folder`, which must exist: a section for each document.

    Args:
      documents: File name, for errors, and content, as the command writes it.
      folder: Where the page goes.

    Returns:
      What was written.

    Raises:
      ValueError: a document lacks a field.
    """
    sections = []
    for name, content in documents:
        try:
            sections.append(markdown(content))
        except KeyError as error:
            raise ValueError(f"{name} has no field {error}") from None
    page = resolve(folder, "folder") / "forking.md"
    write_text(page, "# Forked states on 5-shot MMLU\n\n" + "\n".join(sections))
    return [page]


def markdown(content: Mapping[str, Any]) -> str:
    """Returns what was asked of which model, a line for each way, and what follows for all of
    MMLU.
    """
    head = ["way", "tokens read", "with padding", "seconds", "first round", "questions a second"]
    cells = []
    for row in content["rows"]:
        tokens = [row["tokens"], row["tokens_padded"]]
        cells.append(
            [
                row["name"],
                *("" if count is None else f"{count:,}" for count in tokens),
                f"{row['seconds']:.1f}",
                f"{row['first_seconds']:.1f}",
                f"{row['questions_per_second']:.2f}",
            ]
        )
    setting = f"{content['setting']}. {provenance.sentence(content.get('recorded'))}".rstrip()
    lines = [setting, "", table(head, cells), ""]
    lines += [
        f"Largest difference of log-likelihoods from {name}: {value:.1e} nats."
        for name, value in content["differences"].items()
    ]
    minutes = whole_seconds(content) / 60
    lines.append(
        f"At the rate of the first line, all {_QUESTIONS:,} questions take {minutes:,.1f} minutes, "
        f"the examples of each of the {_SUBJECTS} subjects read once (extrapolated)."
    )
    return "\n".join([*lines, ""])


def whole_seconds(content: Mapping[str, Any]) -> float:
    """Returns what all of MMLU would take: its tokens, as long as those here, at the tokens a
    second here.
    """
    examples = content["examples_tokens"] / content["subjects"] * _SUBJECTS
    questions = content["questions_tokens"] / content["questions"] * _QUESTIONS
    read = content["examples_tokens"] + content["questions_tokens"]
    return (examples + questions) / read * content["rows"][0]["seconds"]
