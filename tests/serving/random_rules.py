"""Very many random rules, and texts that have to obey them: python -m tests.serving.random_rules 300

Half of them are JSON schemas, half regular expressions, for griffin-tiny, which would rather write
novels. It prints how many texts ended by themselves, which of those were not valid (none may be), and
what a mask costs.
"""

import json
import re
import sys
import time
from typing import Any

import numpy as np

import griffin_jax
from griffin_jax.serving.grammar import Progress
from tests.serving.running import running

_WORDS = ("name", "age", "city", "tags", "kind", "size", "note")


def random_schema(rng: np.random.Generator, depth: int = 0) -> dict[str, Any]:
    """A JSON schema of an object, whose values have bounds so that texts end."""
    names = rng.choice(_WORDS, rng.integers(1, 4), replace=False).tolist()
    properties = {name: _value(rng, depth) for name in names}
    required = [name for name in names if rng.random() < 0.7]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _value(rng, depth):
    kind = rng.integers(0, 7 if depth < 2 else 5)
    if kind == 0:
        return {"type": "string", "maxLength": int(rng.integers(1, 12))}
    if kind == 1:
        low = int(rng.integers(-50, 50))
        return {"type": "integer", "minimum": low, "maximum": low + int(rng.integers(0, 900))}
    if kind == 2:
        return {"type": "boolean"}
    if kind == 3:
        return {"enum": rng.choice(_WORDS, 3, replace=False).tolist()}
    if kind == 4:
        return {"type": "null"}
    if kind == 5:
        least = int(rng.integers(0, 2))
        items = _value(rng, depth + 1)
        return {"type": "array", "items": items, "minItems": least, "maxItems": least + 2}
    return random_schema(rng, depth + 1)


def random_regex(rng: np.random.Generator, depth: int = 0) -> str:
    """A regular expression that Python reads as llguidance does, of texts of bounded length."""
    parts = []
    for _ in range(rng.integers(1, 4)):
        kind = rng.integers(0, 5 if depth < 2 else 3)
        part = (
            ("[a-e]", "[0-9]", "[^x-z\\n]", "no", "\\.")[rng.integers(0, 5)]
            if kind < 3
            else f"({random_regex(rng, depth + 1)}|{random_regex(rng, depth + 1)})"
        )
        if kind == 4:
            part = f"({part})"
        low = int(rng.integers(0, 3))
        count = ("", "?", f"{{{low},{low + 2}}}")[rng.integers(0, 3)]
        parts.append(f"({part}){count}" if count else part)
    return "".join(parts)


def conforms(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is of a schema as `random_schema` makes them."""
    if "enum" in schema:
        return value in schema["enum"]
    kind = schema["type"]
    if kind == "object":
        known = schema["properties"]
        return (
            isinstance(value, dict)
            and set(schema["required"]) <= set(value) <= set(known)
            and all(conforms(inner, known[name]) for name, inner in value.items())
        )
    if kind == "array":
        return (
            isinstance(value, list)
            and schema["minItems"] <= len(value) <= schema["maxItems"]
            and all(conforms(inner, schema["items"]) for inner in value)
        )
    if kind == "string":
        return isinstance(value, str) and len(value) <= schema["maxLength"]
    if kind == "integer":
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and schema["minimum"] <= value <= schema["maximum"]
    return value is None if kind == "null" else isinstance(value, bool)


def main():
    """See above."""
    count = int(sys.argv[1])
    rng, spent, masks = np.random.default_rng(1), 0.0, 0
    allowed = Progress.allowed

    def timed(self, tokens):
        nonlocal spent, masks
        begin = time.perf_counter()
        try:
            return allowed(self, tokens)
        finally:
            spent, masks = spent + time.perf_counter() - begin, masks + 1

    Progress.allowed = timed
    lm = griffin_jax.load("griffin-tiny")
    ended, wrong = 0, []
    begin = time.perf_counter()
    with (
        running(lm, slots=8, waiting=64, name=None) as server,
        server.client(timeout=1200) as client,
    ):
        rules: list[dict[str, Any]] = []
        for i in range(count):
            if i % 2:
                rules.append({"regex": random_regex(rng)})
            else:
                form = {"name": "a", "schema": random_schema(rng)}
                rules.append({"response_format": {"type": "json_schema", "json_schema": form}})
        import concurrent.futures

        def ask(number):
            body = {"prompt": "It was a dark night, and", "max_tokens": 160, "seed": number}
            found = client.post("/v1/completions", json=body | rules[number])
            assert found.status_code == 200, (found.text, rules[number])
            return found.json()["choices"][0]

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for number, choice in enumerate(pool.map(ask, range(count))):
                if choice["finish_reason"] != "stop":
                    continue
                ended += 1
                if not _valid(choice["text"], rules[number]):
                    wrong.append((rules[number], choice["text"]))
    seconds = time.perf_counter() - begin
    print(
        f"{count} rules in {seconds:.0f} s: {ended} texts ended by themselves, {len(wrong)} wrong"
    )
    print(f"{masks} masks, {1e6 * spent / max(masks, 1):.0f} us each")
    for rule, text in wrong:
        print(json.dumps(rule), repr(text))
    sys.exit(bool(wrong) or not ended)


def _valid(text, rule):
    if "regex" in rule:
        return re.fullmatch(rule["regex"], text) is not None
    try:
        return conforms(json.loads(text), rule["response_format"]["json_schema"]["schema"])
    except ValueError:
        return False


if __name__ == "__main__":
    main()
