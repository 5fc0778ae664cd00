"""BIG-Bench Hard with three worked examples, answers taken from the text as its authors do.

The descriptions and examples are those of the harness's `bbh_cot_fewshot` tasks. Its stop "Q" ends
a reasoning at any capital q, and its pattern always drops the answer's last character; ours stop at
the next question and take what follows the last "the answer is", without a closing full stop
(suzgunmirac/BIG-Bench-Hard).
"""

from pathlib import Path

import lm_eval.tasks
import yaml

from griffin_jax.evaluation.tasks.task import GriffinTask

_STOCK = Path(lm_eval.tasks.__file__).parent / "bbh" / "cot_fewshot"
_MARK = "the answer is "


class BigBenchHard(GriffinTask):
    """One subset; `dataset_name` says which."""

    def __init__(self, config: dict):
        path = _STOCK / f"{config['dataset_name']}.yaml"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: the harness has no worked examples of BBH's {config['dataset_name']}; "
                "lm-eval 0.4.13 has them"
            )
        stock = yaml.safe_load(path.read_text(encoding="utf-8"))
        taken = ("description", "doc_to_text", "fewshot_config")
        super().__init__(config | {key: stock[key] for key in taken})


def answer_of(text: str) -> str:
    """Returns what follows the last "the answer is" on its line, without a full stop; else all of
    it.
    """
    line = (text.rpartition(_MARK)[2].strip().split("\n") or [""])[0].strip()
    return line.removesuffix(".").strip()


def extract(responses, docs):
    """Returns the answer in each response."""
    return [[answer_of(one) for one in answers] for answers in responses]
