"""The harness's own command, with griffin_jax among its models.

python -m griffin_jax.evaluation --model griffin_jax --model_args checkpoint=FOLDER --tasks piqa
"""

from griffin_jax.evaluation.harness import lm_eval_command

if __name__ == "__main__":
    lm_eval_command()
