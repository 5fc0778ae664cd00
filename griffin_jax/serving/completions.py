"""POST /v1/completions."""

import functools
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from griffin_jax.inference import Context, Sample
from griffin_jax.inference.prompt_scores import PromptScores, score_prompt
from griffin_jax.serving import protocol
from griffin_jax.serving.bodies import read_json
from griffin_jax.serving.errors import invalid
from griffin_jax.serving.exchange import event_stream, json_response, unless_gone
from griffin_jax.serving.generation import Plan, finish, plan_texts, usage
from griffin_jax.serving.protocol import Completion
from griffin_jax.serving.service import Service
from griffin_jax.serving.token_texts import TokenTexts, completion_logprobs
from griffin_jax.serving.worker import Batch, Text

_DEFAULT_TOKENS = 16  # OpenAI's


async def create(request: Request) -> Response:
    """Answers one request."""
    service: Service = request.app.state.service
    service.check_ready()
    values = await read_json(request, service.settings)
    asked = await service.check(Completion, values, Asked, request)
    service.record(request).begin(asked.plan, asked.texts if service.settings.log_text else None)
    if asked.body.stream:
        batch, scores = await unless_gone(request, asked.start(pieces=True))
        service.record(request).batch = batch
        return event_stream(asked.events(batch, scores))
    return json_response(await unless_gone(request, asked.whole(service.record(request))))


class Asked:
    """All that one request asks for.

    Attributes:
      body: Its fields.
      plan: What the engine is asked for.
      texts: The prompts as texts, where an echo or the log shows them.
    """

    def __init__(self, service: Service, body: Completion, context: Context | None):
        """Checks the request; not for the event loop, as it may take a while.

        Raises:
          RequestError: it asks for what cannot be.
        """
        self.body = body
        self._service = service
        self._tokenizer = service.lm.tokenizer
        best_of = body.n if body.best_of is None else body.best_of
        if best_of < body.n:
            raise invalid(f"best_of is {best_of}, which is less than n, {body.n}", "best_of")
        if body.stream and best_of > body.n:
            raise invalid("best_of takes all texts before it tells the best: no stream", "best_of")
        self._scores = body.echo and body.logprobs is not None
        if self._scores and context is not None:
            raise invalid("echo with logprobs scores whole prompts; leave out context", "echo")
        given = protocol.prompts_of(body.prompt)
        prompts = [self._encode(i, prompt, context) for i, prompt in enumerate(given)]
        self._usage = protocol.include_usage(body)
        self.plan: Plan = plan_texts(
            service.lm,
            service.settings,
            body,
            prompts,
            best_of,
            _DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens,
            body.logprobs or 0,
            context,
            service.compiler,
        )
        wanted = given if body.echo or service.settings.log_text else []
        self.texts = [
            prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt)
            for prompt in wanted
        ]
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.name,
            "system_fingerprint": service.fingerprint,
        }

    def _encode(self, index, prompt, context):
        if isinstance(prompt, str):
            protocol.check_unicode(prompt, "prompt")
            bos = False if context is not None or not self.body.add_special_tokens else None
            prompt = self._tokenizer.encode(prompt, bos=bos)
            if not prompt and context is None:
                raise invalid("prompt is empty; give some text", "prompt")
            if not prompt:
                return []
        elif not prompt and context is not None:
            return []
        return protocol.check_tokens(prompt, self._service.lm.config.vocab_size, f"prompt[{index}]")

    async def start(self, pieces: bool) -> tuple[Batch, list[PromptScores] | None]:
        """Scores the prompts where that is asked for, and begins to write."""
        service = self._service
        with service.worker.places(len(self.plan.prompts) * self.plan.draws):
            scores = None
            if self._scores:
                scores = [await self._score(prompt) for prompt in self.plan.prompts]
            contexts = None if scores is None else [score.context for score in scores]
            wanted = functools.partial(self.plan.wanted, contexts)
            batch = await service.worker.begin(wanted, pieces)
        return batch, scores

    async def _score(self, prompt):
        model, params = self._service.lm.model, self._service.lm.scoring_params
        top = min(self.body.logprobs, self._service.lm.config.vocab_size)
        return await self._service.worker.run(score_prompt(model, params, prompt, top))

    async def whole(self, record: Any) -> dict[str, Any]:
        """Returns the answer at once."""
        batch, scores = await self.start(pieces=False)
        record.batch = batch
        samples = await batch.results()
        choices, pairs = [], list(zip(batch.texts, samples, strict=True))
        for i in range(len(self.plan.prompts)):
            own = pairs[i * self.plan.draws : (i + 1) * self.plan.draws]
            if self.plan.draws > self.body.n:
                own = sorted(own, key=lambda pair: _likelihood(pair[1]), reverse=True)[
                    : self.body.n
                ]
            for text, sample in own:
                texts = TokenTexts(self._tokenizer)
                echoed = self._echo(i, texts, scores) if self.body.echo else None
                written = self._choice(len(choices), text, sample, texts)
                choices.append(_joined(echoed, written) if echoed else written)
        return self._head | {"choices": choices, "usage": usage(self.plan, batch)}

    async def events(
        self, batch: Batch, scores: list[PromptScores] | None
    ) -> AsyncIterator[dict[str, Any]]:
        """Yields the answer as it comes."""
        usual = {"usage": None} if self._usage else {}
        texts = [TokenTexts(self._tokenizer) for _ in batch.texts]
        for text in batch.texts if self.body.echo else ():
            echoed = self._echo(text.index // self.plan.draws, texts[text.index], scores)
            yield self._head | usual | {"choices": [echoed | {"index": text.index}]}
        async for text, part in batch.parts():
            choice = self._choice(text.index, text, part, texts[text.index])
            yield self._head | usual | {"choices": [choice]}
        if self._usage:
            yield self._head | {"choices": [], "usage": usage(self.plan, batch)}

    def _choice(self, index: int, text: Text, sample: Sample, texts: TokenTexts) -> dict[str, Any]:
        """Returns a choice, or what is new of it."""
        choice: dict[str, Any] = {"index": index, "text": sample.text, "logprobs": None}
        if self.body.logprobs is not None:
            found = (sample.tokens, sample.logprobs, sample.top_logprobs)
            # Clients count on a token that was drawn last, also where it is none of the text.
            if sample.finish_reason is not None and (stop := text.request.stop_token):
                token, logprob, top = stop
                tops = None if sample.top_logprobs is None else [*sample.top_logprobs, top]
                found = ([*sample.tokens, token], [*sample.logprobs, logprob], tops)
            choice["logprobs"] = completion_logprobs(self._tokenizer, texts, *found)
        choice["finish_reason"] = None
        if sample.finish_reason is not None:
            choice["finish_reason"], choice["stop_reason"] = finish(sample.finish_reason)
        return choice

    def _echo(self, index, texts: TokenTexts, scores) -> dict[str, Any]:
        """Returns a choice of the prompt alone."""
        choice: dict[str, Any] = {"text": self.texts[index], "logprobs": None}
        if scores is not None:
            score, tokens = scores[index], self.plan.prompts[index]
            tops = None if score.tops is None else [None, *score.tops]
            logprobs = [None, *score.logprobs.tolist()]
            choice["logprobs"] = completion_logprobs(self._tokenizer, texts, tokens, logprobs, tops)
        return choice | {"finish_reason": None}


def _joined(echoed, written):
    """Returns a choice of the prompt and what was written after it."""
    logprobs = written["logprobs"]
    if echoed["logprobs"] is not None:
        logprobs = {
            name: None if values is None else values + logprobs[name]
            for name, values in echoed["logprobs"].items()
        }
    return written | {"text": echoed["text"] + written["text"], "logprobs": logprobs}


def _likelihood(sample):
    """Returns the mean log-probability of a text's tokens, by which the best ones are chosen."""
    return float(np.mean(sample.logprobs)) if sample.logprobs else -np.inf
