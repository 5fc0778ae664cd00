"""Compiling what requests will need, before they come."""

from collections.abc import Generator

from griffin_jax.inference import Engine, prefill
from griffin_jax.language_model import LanguageModel
from griffin_jax.serving.settings import ServerSettings


def steps(
    engine: Engine, lm: LanguageModel, settings: ServerSettings
) -> Generator[None, None, None]:
    """Has every number of rows and every length of reading run once.

    Programs for other needs (penalties, biases, filters, reports of likely tokens) are compiled when
    they are first needed.

    Args:
      engine: The server's, whose turns are taken between these steps.
      lm: Its model.
      settings: The server's.
    """
    kinds = [{}] + [{"temperature": 1.0}] * settings.compile_sampling
    bos = lm.tokenizer.bos_id
    for options in kinds:
        rows = 1
        while True:
            rows = min(rows, settings.slots)
            requests = [
                engine.submit([bos, bos], 3, stop_ids=(), seed=i, **options) for i in range(rows)
            ]
            while not all(request.ended for request in requests):
                yield
            if rows == settings.slots:
                break
            rows *= 2
    for length in prefill.CHUNKS:
        if length < settings.most_prompt_tokens:
            request = engine.submit([bos] * (length + 1), 1, stop_ids=())
            while not request.ended:
                yield
