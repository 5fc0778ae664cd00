"""A Griffin model as lm-evaluation-harness sees one.

Registered there as "griffin_jax". `lm_eval_command` is the harness's own command line with it.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

from griffin_jax.evaluation import model as models
from griffin_jax.foreign_settings import without_effect
from griffin_jax.inference import PrefixCache, score
from griffin_jax.inference.forking import Work
from griffin_jax.inference.generation_settings import read_generation_settings
from griffin_jax.language_model import LanguageModel
from griffin_jax.tokenizer import END_OF_TURN

log = logging.getLogger(__name__)

# The most bytes of states that prompts have in common; those of one task's prompts are few.
_CACHE_BYTES = 2**30


class GriffinLM(TemplateLM):
    """The harness's interface over a `LanguageModel`.

    Every sequence begins with BOS, once. What requests have in common (few-shot examples, the
    question of several choices) is read once and its state forked; see `inference.scoring`.
    Results depend neither on the order of requests nor on the batch size.

    Attributes:
      lm: The model.
      work: What reading took so far; `Work.alone` is what it would take request by request.
      answered: How many requests it has answered.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        *,
        lm: LanguageModel | None = None,
        quantization: str | None = None,
        dtype: str | None = None,
        stack_layers: bool | None = None,
        mesh: jax.sharding.Mesh | None = None,
        batch_size: int | str = 16,
        max_length: int | None = None,
        max_gen_toks: int = 1024,
        gen_toks_cap: int | None = None,
        fork: bool = True,
        seed: int = 0,
        max_batch_size: int | None = None,
        device: str | None = None,
        **unknown: Any,
    ):
        """The arguments are those of `--model_args`.

        Args:
          checkpoint: The model; see `evaluation.model.load` for this and the next four.
          lm: The model itself, in place of a checkpoint.
          quantization: "nf4", "fp4" or "int8".
          dtype: "float32", "bfloat16" or "float16".
          stack_layers: True or False.
          mesh: Not on the command line of the harness.
          batch_size: Texts that run together; "auto" is 32.
          max_length: Longer requests lose their beginning, but for BOS. None, and the model reads
            requests of any length.
          max_gen_toks: New tokens of generation tasks that do not say how many.
          gen_toks_cap: At most so many new tokens, whatever a task says: for trial runs.
          fork: Read once what requests have in common.
          seed: The seed of tasks that sample.
          max_batch_size: Ignored; the harness passes it.
          device: Ignored; jax chooses the device (JAX_PLATFORMS).

        Raises:
          ValueError: an argument is unknown or out of its range; or as `evaluation.model.load`.
        """
        super().__init__()
        if unknown:
            raise ValueError(
                f"griffin_jax has no model argument {', '.join(map(repr, sorted(unknown)))}; there "
                "are checkpoint, quantization, dtype, stack_layers, batch_size, max_length, "
                "max_gen_toks, gen_toks_cap, fork and seed"
            )
        if (lm is None) == (checkpoint is None):
            raise ValueError("give --model_args checkpoint=FOLDER, or a name such as griffin-tiny")
        self._batch_size = 32 if str(batch_size).startswith("auto") else int(batch_size)
        for name, value in (
            ("batch_size", self._batch_size),
            ("max_length", max_length),
            ("max_gen_toks", max_gen_toks),
            ("gen_toks_cap", gen_toks_cap),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if lm is None:
            lm = models.load(
                checkpoint,
                quantization=quantization,
                dtype=dtype,
                stack_layers=stack_layers,
                mesh=mesh,
            )
        if lm.tokenizer is None:
            raise ValueError("the model has no tokenizer; the harness's tasks are texts")
        self.lm = lm
        self.checkpoint = checkpoint
        self.max_length = max_length
        self.max_gen_toks = max_gen_toks
        self.gen_toks_cap = gen_toks_cap
        self.work = Work()
        self.answered = 0
        self._fork = fork
        self._seed = seed

    @property
    def batch_size(self) -> int:
        """Texts that run together."""
        return self._batch_size

    @property
    def eot_token_id(self) -> int:
        """EOS."""
        return self.lm.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """BOS, which comes before every text."""
        return self.lm.tokenizer.bos_id

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Returns the token ids, behind BOS unless `add_special_tokens` is False."""
        return self.lm.tokenizer.encode(string, bos=add_special_tokens is not False)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        for (context, continuation), _, ids in requests:
            if not ids:
                raise ValueError(
                    f"{continuation!r} adds no token of its own after {context[-40:]!r}: nothing "
                    "to score"
                )
        # The last token is not read.
        rooms = [len(ids) - 1 for _, _, ids in requests]
        contexts = self._truncate([context for _, context, _ in requests], rooms, "context")
        pairs = [(context, ids) for context, (_, _, ids) in zip(contexts, requests, strict=True)]
        return self._score(
            pairs, [("loglikelihood", key) for key, _, _ in requests], "choices", disable_tqdm
        )

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Returns the log-likelihood of whole texts of any length behind BOS: the state is carried
        on.
        """
        texts = [request.args for request in requests]
        ids = [self.tok_encode(text, add_special_tokens=False) for (text,) in texts]
        known = [i for i, tokens in enumerate(ids) if tokens]  # an empty text is certain
        scores = dict.fromkeys(range(len(ids)), 0.0)
        found = self._score(
            [([self.prefix_token_id], ids[i]) for i in known],
            [("loglikelihood_rolling", texts[i]) for i in known],
            "texts",
            disable_tqdm,
        )
        scores.update(zip(known, (log_probability for log_probability, _ in found), strict=True))
        return list(scores.values())

    def _score(self, pairs, keys, what, disable_tqdm):
        with tqdm(total=len(pairs), desc=what, disable=disable_tqdm or not pairs) as bar:

            def on_score(i, result):
                method, args = keys[i]
                kept = result[0] if method == "loglikelihood_rolling" else result
                self.cache_hook.add_partial(method, args, kept)
                self.answered += 1
                bar.update()

            return score(
                self.lm.model,
                self.lm.scoring_params,
                pairs,
                self._batch_size,
                fork=self._fork,
                on_score=on_score,
                work=self.work,
            )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Returns what the model writes after each context, up to the first stop string or stop
        token.

        Tasks that sample draw each text from a random stream of its own, which follows from the
        seed and how often the same request came before; what is beside it does not matter.
        """
        arguments: list[Any] = [request.args for request in requests]
        groups: dict[str, list[int]] = {}
        for i, (_, settings) in enumerate(arguments):
            groups.setdefault(json.dumps(settings, sort_keys=True), []).append(i)
        plans: list[dict[str, Any]] = [{}] * len(requests)
        for key, rows in groups.items():
            sampling, max_new_tokens, stop = self._drawing(arguments[rows[0]][1])
            prompts = [self.tok_encode(arguments[i][0]) for i in rows]
            prompts = self._truncate(prompts, [max_new_tokens] * len(rows), "prompt")
            seeds = self._seeds(key, [arguments[i][0] for i in rows])
            for i, prompt, seed in zip(rows, prompts, seeds, strict=True):
                plans[i] = {
                    "prompt": prompt,
                    "max_new_tokens": max_new_tokens,
                    "sampling": sampling,
                    "seed": seed,
                    "stop": stop,
                    "name": f"prompt {i}",
                }
        return self._write(arguments, plans, disable_tqdm)

    def _write(self, arguments, plans, disable_tqdm):
        """Returns what the model writes for each of the plans, arguments of `Engine.submit`."""
        texts = [""] * len(plans)
        slots = min(self._batch_size, max(len(plans), 1))
        cache = PrefixCache(_CACHE_BYTES, exact=False) if self._fork else None
        with (
            tqdm(total=len(plans), desc="texts", disable=disable_tqdm) as bar,
            self.lm.engine(
                slots=slots, seconds=None, fill_first=True, prefix_cache=cache
            ) as engine,
        ):
            # Texts that begin alike come one after another.
            order = sorted(range(len(plans)), key=lambda i: plans[i]["prompt"])
            numbers = {engine.submit(**plans[i]): i for i in order}
            for request in engine.as_ended(numbers):
                i = numbers[request]
                texts[i] = request.result().text
                self.cache_hook.add_partial("generate_until", arguments[i], texts[i])
                self.answered += 1
                bar.update()
            self.work.add(engine.stats)
        return texts

    def _seeds(self, settings, contexts):
        """Returns a seed for each text, from what it is and how often it came before."""
        seen: Counter[str] = Counter()
        seeds = []
        for context in contexts:
            name = json.dumps([self._seed, settings, context, seen[context]])
            seeds.append(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]))
            seen[context] += 1
        return seeds

    def _drawing(self, arguments):
        """Returns how to draw, how many tokens at most, and stop strings, of a request's
        arguments.
        """
        settings: dict[str, Any] = dict(normalize_gen_kwargs(arguments, self.max_gen_toks))
        stop = [string for string in settings.pop("until") if string]
        max_new_tokens = settings.pop("max_gen_toks")
        if self.gen_toks_cap is not None:
            max_new_tokens = min(max_new_tokens, self.gen_toks_cap)
        rules = {
            "eos_token_id": self._is_own_stop,
            "seed": without_effect,
            "is_gsm8k": without_effect,
        }
        drawing = read_generation_settings(settings, "generation arguments", rules)
        return drawing, max_new_tokens, stop

    def _is_own_stop(self, eos_token_id):
        """Returns whether texts end at these tokens anyway."""
        ids = eos_token_id if isinstance(eos_token_id, list | tuple) else [eos_token_id]
        return set(ids) == set(self.lm.tokenizer.stop_ids) or list(ids) == [self.eot_token_id]

    def tokens_cut(self, requests: Sequence[Instance]) -> list[int]:
        """Returns what `max_length` takes from requests, whether they have been answered or not.

        Returns:
          How many tokens each request loses that is longer.

        Raises:
          ValueError: it has no room for a context beside a request's continuation or new tokens.
        """
        if self.max_length is None:
            return []
        cut = []
        for request in tqdm(requests, desc="lengths", disable=not requests, leave=False):
            arguments: Any = request.args
            if request.request_type == "loglikelihood":
                context, continuation = arguments
                if context:
                    ids, chosen = self._encode_pair(context, continuation)
                else:
                    ids = [self.prefix_token_id]
                    chosen = self.tok_encode(continuation, add_special_tokens=False)
                cut.append(self._excess(len(ids), len(chosen) - 1, "context"))
            elif request.request_type == "generate_until":
                context, settings = arguments
                room = self._drawing(settings)[1]
                cut.append(self._excess(len(self.tok_encode(context)), room, "prompt"))
        return [tokens for tokens in cut if tokens]

    def _excess(self, length, room, part):
        """Returns how many tokens of a text have no place beside `room` further ones."""
        limit = self.max_length
        if limit is None or length + room <= limit:
            return 0
        if room >= limit:
            raise ValueError(
                f"max_length {limit} has no room for a {part} beside {room} further tokens; give a "
                "larger one, or none: the model itself has no limit"
            )
        return length + room - limit

    def _truncate(self, texts, rooms, part):
        """Returns texts without what has no place; what is cut comes after BOS."""
        pairs = zip(texts, rooms, strict=True)
        cut = [self._excess(len(text), room, part) for text, room in pairs]
        if line := describe_cut(self.max_length, [tokens for tokens in cut if tokens], len(texts)):
            log.warning(line)
        return [text[:1] + text[1 + n :] for text, n in zip(texts, cut, strict=True)]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Returns a conversation in Gemma's turns, without BOS, which `tok_encode` adds.

        Without `add_generation_prompt` the last message is the beginning of an answer, which stays
        open. There is no system turn: a system message goes before the first user message.
        """
        if add_generation_prompt:
            return self.lm.tokenizer.format_chat(chat_history)
        *before, last = chat_history
        return self.lm.tokenizer.format_chat(before) + last["content"].strip()

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Returns a name for the turns of `apply_chat_template`, for reports."""
        return f"<start_of_turn>ROLE\\nTEXT{END_OF_TURN}\\n" if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        """The name by which the harness tells its caches of prompts apart."""
        return f"griffin_jax-{self.checkpoint}".replace("/", "__")


# Not as a decorator, after which a type checker knows no more than that it is some model.
register_model("griffin_jax")(GriffinLM)


def describe_cut(max_length: int | None, cut: Sequence[int], total: int) -> str:
    """Returns a line on what `GriffinLM.tokens_cut` found in `total` requests; empty if it is
    nothing.
    """
    if not cut:
        return ""
    return (
        f"{len(cut)} of {total} prompts are longer than max_length {max_length} and lose up to "
        f"{max(cut)} tokens after BOS"
    )


def lm_eval_command() -> None:
    """Runs the command line of lm-evaluation-harness, where `--model griffin_jax` is known."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
