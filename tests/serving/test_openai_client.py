"""The `openai` package against the server, sync and async."""

import asyncio
import json

import openai
import pytest

from tests.serving.test_operations import until

MESSAGES = [{"role": "user", "content": "Who goes there?"}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"enum": [1, 2]}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def ai(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as found:
        yield found


def test_completions(ai, lm):
    found = ai.completions.create(
        model="tiny", prompt="The sea", n=2, max_tokens=9, temperature=1, seed=4, logprobs=2
    )
    assert len(found.choices) == 2 and found.usage.prompt_tokens > 0
    first = lm.sample(["The sea"], 9, temperature=1.0, seed=4)[0]
    assert found.choices[0].text == first.text
    assert found.choices[0].logprobs.tokens == [lm.tokenizer.token_name(t) for t in first.tokens]


def test_a_stream_of_completions(ai):
    body = {"model": "tiny", "prompt": "The sea", "max_tokens": 12, "temperature": 0}
    whole = ai.completions.create(**body)
    stream = ai.completions.create(**body, stream=True, stream_options={"include_usage": True})
    parts = list(stream)
    assert "".join(p.choices[0].text for p in parts if p.choices) == whole.choices[0].text
    assert parts[-1].usage == whole.usage


def test_chat(ai):
    body = {"model": "tiny", "messages": MESSAGES, "max_completion_tokens": 10, "seed": 2}
    whole = ai.chat.completions.create(**body, logprobs=True, top_logprobs=3)
    assert whole.choices[0].message.role == "assistant"
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 3
    parts = list(ai.chat.completions.create(**body, stream=True))
    text = "".join(part.choices[0].delta.content or "" for part in parts)
    assert text == whole.choices[0].message.content
    assert parts[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_json_schema_holds(ai):
    found = ai.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_completion_tokens=120,
        seed=1,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": SCHEMA, "strict": True},
        },
    )
    assert found.choices[0].finish_reason == "stop"
    value = json.loads(found.choices[0].message.content)
    assert set(value) == {"name", "age"} and value["age"] in (1, 2)


def test_errors_are_of_the_right_classes(ai, server):
    with pytest.raises(openai.BadRequestError, match="temperature") as caught:
        ai.completions.create(model="tiny", prompt="a", temperature=-1)
    assert caught.value.param == "temperature" and caught.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        ai.completions.create(model="other", prompt="a")
    with pytest.raises(openai.APITimeoutError):
        ai.with_options(timeout=0.001).completions.create(model="tiny", prompt="a", max_tokens=400)
    until(lambda: not server.service.worker.num_open)
    places = server.service.worker.places
    with places(server.service.worker.most_open), pytest.raises(openai.RateLimitError) as caught:
        ai.completions.create(model="tiny", prompt="a")
    assert int(caught.value.response.headers["retry-after"]) >= 1


def test_a_stream_that_is_left_frees_its_place(ai, server):
    stream = ai.completions.create(
        model="tiny",
        prompt="The sea",
        max_tokens=512,
        stream=True,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    stream.close()
    worker = server.service.worker
    until(lambda: not worker.num_open)
    assert worker.engine.stats.ended["cancelled"] > 0


def test_models(ai):
    assert [model.id for model in ai.models.list()] == ["tiny"]
    assert ai.models.retrieve("tiny").owned_by == "griffin_jax"


def test_many_at_once_and_asynchronously(server, lm):
    async def ask():
        url = f"{server.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as ai:

            async def one(seed):
                parts = []
                async for part in await ai.completions.create(
                    model="tiny", prompt="The sea", seed=seed, max_tokens=8, stream=True
                ):
                    parts.append(part.choices[0].text)
                return "".join(parts)

            return await asyncio.gather(*map(one, range(20)))

    seeds = [[seed] for seed in range(20)]
    expected = [lm.sample(["The sea"], 8, temperature=1.0, seed=seed)[0].text for seed in seeds]
    assert asyncio.run(ask()) == expected
