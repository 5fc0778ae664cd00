"""POST /v1/chat/completions."""

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from griffin_jax.fields import shown
from griffin_jax.inference import Context, Sample
from griffin_jax.serving import protocol
from griffin_jax.serving.bodies import read_json
from griffin_jax.serving.errors import invalid
from griffin_jax.serving.exchange import event_stream, json_response, unless_gone
from griffin_jax.serving.generation import Plan, finish, plan_texts, usage
from griffin_jax.serving.protocol import ChatCompletion
from griffin_jax.serving.service import Service
from griffin_jax.serving.token_texts import chat_logprobs
from griffin_jax.serving.worker import Batch
from griffin_jax.tokenizer import END_OF_TURN, Tokenizer

_ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}


async def create(request: Request) -> Response:
    """Answers one request."""
    service: Service = request.app.state.service
    service.check_ready()
    values = await read_json(request, service.settings)
    asked = await service.check(ChatCompletion, values, Asked, request)
    service.record(request).begin(asked.plan, asked.texts if service.settings.log_text else None)
    if asked.body.stream:
        batch = await unless_gone(request, asked.start(pieces=True))
        service.record(request).batch = batch
        return event_stream(asked.events(batch))
    return json_response(await unless_gone(request, asked.whole(service.record(request))))


def messages_of(value: Any) -> list[dict[str, str]]:
    """Returns the messages of a request, the parts of each joined.

    Raises:
      RequestError: one is none, or holds something else than text.
    """
    if not isinstance(value, list) or not value:
        raise invalid(f"messages must be a list of messages, got {shown(value)}", "messages")
    return [_message(f"messages[{i}]", message) for i, message in enumerate(value)]


def _message(name, message):
    if not isinstance(message, dict):
        raise invalid(
            f"{name} must be an object with role and content, got {shown(message)}", "messages"
        )
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in _ROLES:
        raise invalid(
            f"{name}: role must be one of {', '.join(_ROLES)}, got {shown(role)}", "messages"
        )
    if message.get("tool_calls"):
        raise invalid(f"{name}: tool_calls are not supported by this server", "messages")
    if isinstance(content, list):
        content = _joined(name, content)
    if not isinstance(content, str):
        raise invalid(
            f"{name}: content must be text or parts of type text, got {shown(content)}", "messages"
        )
    return {"role": _ROLES[role], "content": protocol.check_unicode(content, "messages")}


def _joined(name, parts):
    """Returns the text of a message that comes in parts."""
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, str) or part.get("type") != "text":
            raise invalid(f"{name}: content must be text or parts of type text", "messages")
        texts.append(text)
    return "".join(texts)


def encode_messages(
    tokenizer: Tokenizer, messages: list[dict[str, str]], goes_on: bool
) -> list[int]:
    """Returns the token ids of a conversation up to where the model's turn begins.

    Args:
      tokenizer: The model's.
      messages: See `messages_of`. What they hold is text, marks of turns and all.
      goes_on: Whether a text comes before, that ends within the model's turn.

    Raises:
      RequestError: the roles do not alternate, or the model has no turns.
    """
    try:
        if not goes_on:
            return tokenizer.encode_chat(messages, special="text")
        tokenizer.check_turns()
        end = tokenizer.encode(f"{END_OF_TURN}\n", bos=False)
        return end + tokenizer.encode_chat(messages, bos=False, special="text")
    except (ValueError, ImportError) as error:
        raise invalid(str(error), "messages") from None


class Asked:
    """All that one request asks for.

    Attributes:
      body: Its fields.
      plan: What the engine is asked for.
      texts: What was said, for logs.
    """

    def __init__(self, service: Service, body: ChatCompletion, context: Context | None):
        """Checks the request; not for the event loop, as it may take a while.

        Raises:
          RequestError: it asks for what cannot be.
        """
        self.body = body
        self._service = service
        self._tokenizer = tokenizer = service.lm.tokenizer
        if body.top_logprobs is not None and not body.logprobs:
            raise invalid("top_logprobs goes with logprobs=true", "top_logprobs")
        messages = messages_of(body.messages)
        prompt = encode_messages(tokenizer, messages, context is not None)
        most = body.max_completion_tokens
        if most is None:
            most = body.max_tokens
        elif body.max_tokens not in (None, most):
            raise invalid("give max_completion_tokens or max_tokens, not both", "max_tokens")
        self._usage = protocol.include_usage(body)
        # The chosen token's log-probability is there whenever any is.
        self._tops = body.top_logprobs or 0
        self.plan: Plan = plan_texts(
            service.lm,
            service.settings,
            body,
            [prompt],
            body.n,
            service.settings.most_new_tokens if most is None else most,
            self._tops,
            context,
            service.compiler,
        )
        self.texts = [f"{message['role']}: {message['content']}" for message in messages]
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": service.name,
            "system_fingerprint": service.fingerprint,
        }

    async def start(self, pieces: bool) -> Batch:
        """Begins to write."""
        worker = self._service.worker
        with worker.places(self.plan.draws):
            return await worker.begin(self.plan.wanted, pieces)

    async def whole(self, record: Any) -> dict[str, Any]:
        """Returns the answer at once."""
        batch = record.batch = await self.start(pieces=False)
        samples = await batch.results()
        choices = []
        for i, sample in enumerate(samples):
            message = {"role": "assistant", "content": sample.text, "refusal": None}
            choices.append({"index": i, "message": message} | self._rest(sample))
        return self._head | {
            "object": "chat.completion",
            "choices": choices,
            "usage": usage(self.plan, batch),
        }

    async def events(self, batch: Batch) -> AsyncIterator[dict[str, Any]]:
        """Yields the answer as it comes."""
        head = self._head | {"object": "chat.completion.chunk"}
        usual = head | ({"usage": None} if self._usage else {})
        for text in batch.texts:
            delta = {"role": "assistant", "content": ""}
            choice = {"index": text.index, "delta": delta, "finish_reason": None}
            yield usual | {"choices": [choice | {"logprobs": None}]}
        async for text, part in batch.parts():
            delta = {"content": part.text} if part.text else {}
            choice = {"index": text.index, "delta": delta} | self._rest(part)
            yield usual | {"choices": [choice]}
        if self._usage:
            yield head | {"choices": [], "usage": usage(self.plan, batch)}

    def _rest(self, sample: Sample) -> dict[str, Any]:
        """Returns what a choice holds beside its text."""
        rest: dict[str, Any] = {"logprobs": None, "finish_reason": None}
        if self.body.logprobs:
            rest["logprobs"] = chat_logprobs(
                self._tokenizer, sample.tokens, sample.logprobs, sample.top_logprobs
            )
        if sample.finish_reason is not None:
            rest["finish_reason"], rest["stop_reason"] = finish(sample.finish_reason)
        return rest
