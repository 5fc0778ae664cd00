"""Figures of `experiments.compare_training` as results of a study."""

from collections.abc import Mapping
from typing import Any


def results(found: Mapping[str, Any], variant: str) -> list[dict[str, Any]]:
    """Returns a run of a study for each model that was compared, with its loss by position.

    Args:
      found: What the comparison's `results.json` holds.
      variant: The variant of the study that the models are of.
    """
    runs = []
    for name, of in found.items():
        places = of["loss_by_position"]
        by_position = {
            "edges": [places[0]["from"], *(place["to"] for place in places)],
            "by_position": [place["nats_per_token"] for place in places],
        }
        lengths = [place["to"] - place["from"] for place in places]
        total = sum(n * x for n, x in zip(lengths, by_position["by_position"], strict=True))
        runs.append(
            {
                "model": name,
                "variant": variant,
                "learning_rate": None,
                "seed": 0,
                "parameters": of["parameters"],
                "heldout_loss": of["heldout_loss"],
                "curve": [],
                "tests": {
                    f"length {places[-1]['to']}": by_position | {"loss": total / sum(lengths)}
                },
                "seconds": of["tokens"] / of["tokens_per_second"],
            }
        )
    return runs
