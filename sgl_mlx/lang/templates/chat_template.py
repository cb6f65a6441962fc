"""Named chat templates: for models without their own, and for programs that select one."""

from __future__ import annotations

import re
from collections.abc import Callable

from sgl_mlx import bounds
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
    """Register a template for `get_chat_template`; a template of the same name is replaced."""
    chat_template_registry[template.name] = template


def register_chat_template_matching_function(
    func: Callable[[str], str | None],
) -> Callable[[str], str | None]:
    """Register a function that maps model paths to template names; usable as a decorator.

    The function is called before the built-in rules are tried. It returns None for a path that it
    does not know.
    """
    matching_function_registry.append(func)
    return func


def get_chat_template(name: str) -> ChatTemplate:
    """Return the chat template of this name.

    Raises:
        ProgramError: for an unknown name; the message lists the known names.
    """
    if not isinstance(name, str) or name not in chat_template_registry:
        known = ", ".join(chat_template_registry)
        raise ProgramError(f"unknown chat template {bounds.shown(name)}; there are {known}")
    return chat_template_registry[name]


def get_chat_template_by_model_path(model_path: str) -> ChatTemplate:
    """Return the usual chat template for a model path; "default" if the path is not recognised.

    Raises:
        ProgramError: a registered function returns an unknown template name.
    """
    for match in matching_function_registry:
        if (chosen := match(model_path)) is not None:
            return get_chat_template(chosen)
    for pattern, name in BY_PATH:
        if re.search(pattern, model_path, re.IGNORECASE):
            return get_chat_template(name)
    return get_chat_template("default")


def template_for(backend: Backend) -> TurnWriter:
    """Return the chat template to use with a backend.

    This is the template set on the backend, else the model's own one, else "default".
    """
    get = getattr(backend, "get_chat_template", None)
    chosen = get() if get is not None else getattr(backend, "chat_template", None)
    if isinstance(chosen, ChatTemplate):
        return chosen
    try:
        backend.render_chat([{"role": "user", "content": "x"}])
    except TokenizerError:
        return get_chat_template("default")
    return DerivedTemplate(backend.render_chat)
