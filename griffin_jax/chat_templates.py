"""Conversations as text: in Gemma's turns, or as the chat template beside a model writes them."""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

START_OF_TURN = "<start_of_turn>"
END_OF_TURN = "<end_of_turn>"

Messages = Sequence[Mapping[str, str]]

_TURN_NAMES = {"user": "user", "assistant": "model", "model": "model"}
_PROBE = (
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
)


def gemmas_turns(messages: Messages, add_generation_prompt: bool = True) -> str:
    """Returns a conversation in Gemma's turns; see `Tokenizer.format_chat`.

    Raises:
      ValueError: the roles do not alternate, or a field is missing or not text.
    """
    turns = []
    for index, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if not isinstance(content, str):
            raise ValueError(f"messages[{index}]: content must be text, got {content!r}")
        turns.append((role, content.strip()))
    system = turns.pop(0)[1] + "\n\n" if turns and turns[0][0] == "system" else ""
    if not turns:
        raise ValueError("messages: no user message; a chat starts with one")

    text = ""
    for index, (role, content) in enumerate(turns):
        expected = "assistant" if index % 2 else "user"
        if _TURN_NAMES.get(role) != _TURN_NAMES[expected]:
            raise ValueError(
                f"messages: roles must alternate user, assistant, user, ... after an optional "
                f"system message; got {role!r} where {expected!r} belongs"
            )
        prefix = system if index == 0 else ""
        text += f"{START_OF_TURN}{_TURN_NAMES[role]}\n{prefix}{content}{END_OF_TURN}\n"
    return text + f"{START_OF_TURN}model\n" if add_generation_prompt else text


def is_gemmas(template: str | None, tokens: Mapping[str, str | None]) -> bool:
    """Returns whether a template writes Gemma's turns, as a model without a template is taken to
    do.

    Args:
      template: In Jinja.
      tokens: What bos_token and so on stand for in it.
    """
    if template is None:
        return True
    try:
        text = render(template, _PROBE, True, tokens)
    except ImportError:
        return START_OF_TURN in template and END_OF_TURN in template
    except ValueError:
        return False
    return text.removeprefix(tokens.get("bos_token") or "") == gemmas_turns(_PROBE)


def render(
    template: str, messages: Messages, add_generation_prompt: bool, tokens: Mapping[str, str | None]
) -> str:
    """Returns what a template makes of a conversation, as transformers' `apply_chat_template` has
    it.

    It runs in Jinja's sandbox: it comes from where the weights come from.

    Raises:
      ImportError: jinja2 is not installed.
      ValueError: the template is damaged, or refuses the conversation.
    """
    try:
        import jinja2
    except ImportError:
        raise ImportError(
            "the model's chat template is none of Gemma's: rendering it takes `pip install jinja2`"
        ) from None
    try:
        return _compiled(template).render(
            messages=list(messages),
            add_generation_prompt=add_generation_prompt,
            tools=None,
            documents=None,
            **{name: token for name, token in tokens.items() if token is not None},
        )
    # What a template does with text and lists can fail as Python does: "a".index("b").
    except (
        jinja2.TemplateError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(f"the model's chat template: {' '.join(str(error).split())}") from None


@functools.lru_cache(maxsize=4)
def _compiled(template: str) -> Any:
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    def refuse(message):
        raise jinja2.TemplateError(message)

    def as_json(value, indent=None):
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = as_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(template)
