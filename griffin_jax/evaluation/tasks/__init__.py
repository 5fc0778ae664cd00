"""Our own tasks of lm-evaluation-harness, beside the stock ones of the model card's rows.

Each is a YAML file of the harness in this folder, `griffin_NAME`, with Python beside it where YAML
isn't enough. docs/evaluation/tasks.md says what each does otherwise than the stock task, and why.

    manager = lm_eval.tasks.TaskManager(include_path=str(griffin_jax.evaluation.tasks.TASKS_PATH))
    lm_eval.simple_evaluate(model, tasks=["griffin_triviaqa"], task_manager=manager)

Options reach the tasks through the harness's metadata, `TaskManager(metadata={...})` or
`lm_eval --metadata '{...}'`: `toxicity_scorer`, `sentiment_scorer` and `generations_dir`, see
`griffin_jax.evaluation.scorers`. This module imports nothing of the harness.
"""

from pathlib import Path

TASKS_PATH = Path(__file__).parent
