"""Rendering of a model's chat template, with the helper functions that Hugging Face provides."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache, partial
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from sgl_mlx import bounds
from sgl_mlx.errors import LimitError, PromptError, TokenizerError
from sgl_mlx.limits import Limits
from sgl_mlx.tokenizer.template_budget import Budget
from sgl_mlx.tokenizer.template_sandbox import BUDGET, TemplateSandbox

DEFAULT = Limits()
_PROBE = "Sglmlxprobe"
_MESSAGE = 'a dictionary such as {"role": "user", "content": "Hello"}'
_MESSAGES = f"a list, each item {_MESSAGE}"


class _GenerationTag(Extension):
    """Jinja tag `{% generation %}…{% endgeneration %}`, which only training uses: a no-op here."""

    tags = {"generation"}  # noqa: RUF012  (jinja's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def checked(messages: object) -> list[Mapping[str, Any]]:
    """Check chat messages and return them as a list.

    Raises:
        PromptError: `messages` is not a list of dictionaries, or contains text invalid in UTF-8.
    """
    found = bounds.listed(messages)
    if found is None:
        bounds.refuse("messages", messages, _MESSAGES, PromptError)
    for i, message in enumerate(found):
        if not isinstance(message, Mapping):
            bounds.refuse(f"messages[{i}]", message, _MESSAGE, PromptError)
    bounds.readable("messages", found, PromptError)
    return found


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any],
    limits: Limits = DEFAULT,
) -> str:
    """Render chat messages to text by a Jinja template.

    Args:
        variables: further variables for the template.
        limits: bounds on the template's size, its time, and the characters that it makes.

    Raises:
        TokenizerError: the template is not valid Jinja, or fails on these messages.
        LimitError: the template is over a limit.
    """
    size = len(template)
    limits.check("max_template_source", size, f"the chat template has {size:,} characters")
    own = {"messages": list(messages), BUDGET: Budget(limits, size)}
    try:
        return _compile(template).render({**variables, **own})
    except LimitError:
        raise
    except jinja2.TemplateSyntaxError as e:
        raise TokenizerError(f"chat template is broken at line {e.lineno}: {e.message}") from e
    except Exception as e:  # a template is a program: it may divide by zero or recurse
        roles = (m.get("role") for m in messages)
        said = (role if isinstance(role, str) else bounds.shown(role) for role in roles)
        raise TokenizerError(
            f"chat template rejects messages with roles [{', '.join(said)}]: {e}"
        ) from e


@lru_cache(maxsize=32)
def takes_parts(template: str, limits: Limits = DEFAULT) -> bool:
    """Return True if a template needs each message's content as a list of parts.

    Such a template, for example a LLaVA model's, would omit a content that is a string.
    """
    message = {"role": "user", "content": _PROBE}
    shows = partial(_shows_probe, template, limits)
    return not shows(message) and shows(in_parts(message))


def in_parts(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the message with a text content turned into a list of one text part.

    Messages with other contents are returned unchanged.
    """
    content = message.get("content")
    if not isinstance(content, str):
        return message
    return {**message, "content": [{"type": "text", "text": content}]}


def _shows_probe(template: str, limits: Limits, message: Mapping[str, Any]) -> bool:
    try:
        variables = {"bos_token": "", "eos_token": "", "tools": None, "documents": None}
        return _PROBE in render(template, [message], variables, limits)
    except (TokenizerError, LimitError):
        return False


@lru_cache(maxsize=32)
def _compile(template: str) -> jinja2.Template:
    environment = TemplateSandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.guard()
    return environment.from_string(template)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Write JSON as `json.dumps` does; jinja's own filter would escape `<`, `>` and `&`."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
