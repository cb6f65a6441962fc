"""Chat templates by name, for models without one and for programs that choose one."""

from __future__ import annotations

import re
from collections.abc import Callable

from sgl_mlx.errors import ProgramError, TokenizerError
from sgl_mlx.lang.backend import Backend
from sgl_mlx.lang.templates.derived_template import DerivedTemplate
from sgl_mlx.lang.templates.named_templates import BY_PATH, TEMPLATES
from sgl_mlx.lang.templates.template import ChatTemplate, ChatTemplateStyle
from sgl_mlx.lang.templates.turns import TurnWriter

__all__ = [
    "ChatTemplate",
    "ChatTemplateStyle",
    "chat_template_registry",
    "get_chat_template",
    "get_chat_template_by_model_path",
    "register_chat_template",
    "register_chat_template_matching_function",
    "template_for",
]

chat_template_registry = {template.name: template for template in TEMPLATES}
matching_function_registry: list[Callable[[str], str | None]] = []


def register_chat_template(template: ChatTemplate) -> None:
    """Let `get_chat_template` find a template of the program's own, also in place of another."""
    chat_template_registry[template.name] = template


def register_chat_template_matching_function(
    func: Callable[[str], str | None],
) -> Callable[[str], str | None]:
    """Ask a function for the template's name of a model path, before the usual rules."""
    matching_function_registry.append(func)
    return func


def get_chat_template(name: str) -> ChatTemplate:
    """Return the template of this name.

    Raises:
        ProgramError: for an unknown name; lists the known ones.
    """
    if name not in chat_template_registry:
        known = ", ".join(chat_template_registry)
        raise ProgramError(f"unknown chat template {name!r}; there are {known}")
    return chat_template_registry[name]


def get_chat_template_by_model_path(model_path: str) -> ChatTemplate:
    """The template usual for models of this name, or "default"."""
    for match in matching_function_registry:
        if (chosen := match(model_path)) is not None:
            return get_chat_template(chosen)
    for pattern, name in BY_PATH:
        if re.search(pattern, model_path, re.IGNORECASE):
            return get_chat_template(name)
    return get_chat_template("default")


def template_for(backend: Backend) -> TurnWriter:
    """The template set on the backend, else its model's own, else "default"."""
    get = getattr(backend, "get_chat_template", None)
    chosen = get() if get is not None else getattr(backend, "chat_template", None)
    if isinstance(chosen, ChatTemplate):
        return chosen
    try:
        backend.render_chat([{"role": "user", "content": "x"}])
    except TokenizerError:
        return get_chat_template("default")
    return DerivedTemplate(backend.render_chat)
