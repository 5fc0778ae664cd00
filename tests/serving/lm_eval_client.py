"""lm-evaluation-harness over HTTP against our own adapter in the process: python -m tests.serving.lm_eval_client 2000

Five tasks of multiple choice on made-up questions, answered by the harness's `local-completions` and by
`GriffinLM` on the same model, griffin-tiny in float32; and one task of writing, by
`local-chat-completions`. It prints the largest difference of log-likelihoods and how many flags and
answers differ, and fails above 1e-4 or where any does.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

import griffin_jax
from griffin_jax.evaluation.harness import GriffinLM
from griffin_jax.evaluation.local_data import local_tasks
from griffin_jax.language_model import LanguageModel
from tests.evaluation import made_up
from tests.serving.running import running

TASKS = (
    "griffin_social_iqa",
    "griffin_openbookqa",
    "griffin_boolq",
    "griffin_winogender",
    "griffin_winobias_1_2",
)
BOUND = 1e-4
_THINGS = ("a lamp", "the sea", "an old book", "a spoon", "three horses", "the road", "a letter")
_PEOPLE = ("Ann", "Bob", "the cook", "a sailor", "the doctor", "my uncle")
_DEEDS = ("found", "lost", "praised", "burned", "carried", "forgot", "sold")


class Client(LocalCompletionsAPI):
    """`local-completions`, whose texts begin with BOS as our adapter's do.

    The harness's tokenizer over HTTP leaves BOS out; with a tokenizer of Hugging Face's that is
    `add_bos_token=True`.
    """

    def tok_encode(self, string: Any, add_special_tokens: bool | None = None, **kwargs: Any) -> Any:
        """Token ids by the server's tokenizer, behind BOS unless `add_special_tokens` is False."""
        if not isinstance(string, str):
            return [self.tok_encode(one, add_special_tokens) for one in string]
        bos = [] if add_special_tokens is False else [self.prefix_token_id]
        return bos + super().tok_encode(string)


def make_requests(count: int) -> list[Instance]:
    """At least so many requests for log-likelihoods, of all tasks."""
    rng = np.random.default_rng(0)
    folder = Path(tempfile.mkdtemp())
    made_up.write(folder, _rows(rng, -(-count // 12)))
    requests: list[Instance] = []
    for task in _flat(local_tasks(TASKS, folder)):
        task.build_all_requests()
        requests += [one for one in task.instances if one.request_type == "loglikelihood"]
    assert len(requests) >= count
    return requests


def _flat(tasks):
    for task in tasks.values():
        if isinstance(task, dict):
            yield from _flat(task)
        else:
            yield task


def _rows(rng, docs):
    def sentence():
        return f"{rng.choice(_PEOPLE)} {rng.choice(_DEEDS)} {rng.choice(_THINGS)}".capitalize()

    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in _FILES}
    for i in range(docs):
        rows["social_iqa/validation"].append(
            {
                "context": f"{sentence()}.",
                "question": "What will happen then?",
                **{f"answer{x}": sentence() for x in "ABC"},
                "label": str(1 + i % 3),
            }
        )
        choices = {"label": list("ABCD"), "text": rng.permutation(_THINGS)[:4].tolist()}
        rows["openbookqa/test"].append(
            {"question_stem": f"{sentence()}, or", "choices": choices, "answerKey": "ABCD"[i % 4]}
        )
        rows["boolq/validation"].append(
            {"passage": f"{sentence()}.", "question": sentence().lower(), "label": i % 2}
        )
        rows["winogender/all/test"].append(
            {
                "sentence": f"The cook told the guest that she {rng.choice(_DEEDS)} it.",
                "pronoun": "she",
                "occupation": "cook",
                "participant": "guest",
                "gender": "female",
                "label": i % 2,
            }
        )
        rows["winobias/type1/test"].append(
            {
                "sentence": f"The nurse {rng.choice(_DEEDS)} the guard because he had helped.",
                "mentions": ["the guard", "he"],
                "stereotype": ("pro", "anti")[i % 2],
            }
        )
    return rows


_FILES = (
    "social_iqa/validation",
    "openbookqa/test",
    "boolq/validation",
    "winogender/all/test",
    "winobias/type1/test",
)


def likelihoods_differ(
    url: str, name: str, lm: LanguageModel, requests: Sequence[Instance], **options: Any
) -> tuple[float, int]:
    """The largest difference of log-likelihoods, and how many flags differ."""
    asyncio.set_event_loop(asyncio.new_event_loop())
    client = Client(
        base_url=f"{url}/v1/completions", model=name, tokenizer_backend="remote", **options
    )
    over_http = client.loglikelihood(list(requests), disable_tqdm=True)
    here = GriffinLM(lm=lm, batch_size=16).loglikelihood(list(requests), disable_tqdm=True)
    gaps = [abs(one[0] - other[0]) for one, other in zip(over_http, here, strict=True)]
    flags = sum(one[1] != other[1] for one, other in zip(over_http, here, strict=True))
    return max(gaps), flags


def answers_differ(url: str, name: str, lm: LanguageModel, questions: int) -> int:
    """How many answers of a conversation differ, over HTTP from here."""
    rng = np.random.default_rng(1)
    settings = {"until": ["\n\n"], "max_gen_toks": 24, "do_sample": False}
    client = LocalChatCompletion(
        base_url=f"{url}/v1/chat/completions", model=name, eos_string="<eos>", num_concurrent=4
    )
    ours = GriffinLM(lm=lm, batch_size=4)
    contexts = [
        [{"role": "user", "content": f"Why has {rng.choice(_PEOPLE)} {rng.choice(_THINGS)}?"}]
        for _ in range(questions)
    ]

    def ask(adapter):
        requests = [
            Instance(
                "generate_until", {}, (adapter.apply_chat_template(context), dict(settings)), i
            )
            for i, context in enumerate(contexts)
        ]
        return adapter.generate_until(requests, disable_tqdm=True)

    pairs = zip(ask(client), ask(ours), strict=True)
    return sum(one != other for one, other in pairs)


def main():
    """See above."""
    requests = make_requests(int(sys.argv[1]))
    lm = griffin_jax.load("griffin-tiny", dtype="float32")
    with running(lm, slots=8, waiting=256, compile_sampling=False) as server:
        name = server.service.name
        begin = time.monotonic()
        gap, flags = likelihoods_differ(server.url, name, lm, requests, num_concurrent=8)
        seconds = time.monotonic() - begin
        print(
            f"{len(requests)} requests of {len(TASKS)} tasks in {seconds:.0f} s: log-likelihoods "
            f"differ by {gap:.1e} at most, {flags} flags differ"
        )
        wrong = answers_differ(server.url, name, lm, 40)
        print(f"40 conversations: {wrong} answers differ")
    print(json.dumps({"requests": len(requests), "gap": gap, "flags": flags, "answers": wrong}))
    sys.exit(gap > BOUND or flags > 0 or wrong > 0)


if __name__ == "__main__":
    main()
