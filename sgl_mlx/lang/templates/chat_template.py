"""Chat templates by name, for models without one and for programs that choose one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sgl_mlx.errors import ProgramError, TokenizerError
from sgl_mlx.lang.backend import Backend
from sgl_mlx.lang.templates.derived_template import DerivedTemplate
from sgl_mlx.lang.templates.turns import Opening, Roles, TurnWriter


@dataclass(frozen=True)
class ChatTemplate:
    """Fixed strings before and after the content of each role.

    Attributes:
        turns: role to (prefix, suffix).
        stop: strings that end a generated turn.
        default_system_prompt: written first when a conversation has no system turn.
        image_token: the text that stands for an image.
        system_in_user: write the system text inside the first user turn (Llama 2).
    """

    name: str
    turns: Mapping[str, tuple[str, str]]
    stop: tuple[str, ...] = ()
    default_system_prompt: str | None = None
    image_token: str = "<image>"
    system_in_user: bool = False

    def begin(self, closed: Roles, role: str) -> Opening:
        prefix = self.turns[role][0]
        if self.system_in_user and role == "system" and not closed:
            return Opening(self.turns["user"][0] + prefix)
        if self.system_in_user and role == "user" and closed == ("system",):
            return Opening("")
        return Opening(prefix)

    def end(self, closed: Roles, role: str) -> str:
        return self.turns[role][1]

    def get_prefix_and_suffix(
        self, role: str, hist_messages: Sequence[Mapping[str, str]]
    ) -> tuple[str, str]:
        """Return the text before and after the content of a turn that follows `hist_messages`."""
        closed = tuple(message["role"] for message in hist_messages)
        return self.begin(closed, role).text, self.end(closed, role)

    def get_prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Write the whole conversation."""
        if self.default_system_prompt and (not messages or messages[0]["role"] != "system"):
            messages = [{"role": "system", "content": self.default_system_prompt}, *messages]
        prompt = ""
        for i, message in enumerate(messages):
            prefix, suffix = self.get_prefix_and_suffix(message["role"], messages[:i])
            prompt += prefix + message["content"] + suffix
        return prompt


def _marked(
    begin: str, end: str, names: Mapping[str, str] | None = None
) -> dict[str, tuple[str, str]]:
    """Make turns that differ only in the role's name, which replaces `{}` in `begin`."""
    roles = ("system", "user", "assistant")
    return {role: (begin.format((names or {}).get(role, role)), end) for role in roles}


_ASSISTANT_SYSTEM = "You are a helpful assistant."
_CHATML = ChatTemplate("chatml", _marked("<|im_start|>{}\n", "<|im_end|>\n"), ("<|im_end|>",))
_QWEN = replace(_CHATML, name="qwen", default_system_prompt=_ASSISTANT_SYSTEM)
_LLAMA_3 = ChatTemplate(
    "llama-3-instruct",
    _marked("<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>"),
    ("<|eot_id|>",),
)
_TEMPLATES = (
    ChatTemplate(
        "default",
        {"system": ("SYSTEM:", "\n"), "user": ("USER:", "\n"), "assistant": ("ASSISTANT:", "\n")},
    ),
    ChatTemplate(
        "claude",
        {"system": ("", ""), "user": ("\n\nHuman: ", ""), "assistant": ("\n\nAssistant:", "")},
    ),
    _CHATML,
    replace(
        _CHATML,
        name="chatml-llava",
        default_system_prompt=_ASSISTANT_SYSTEM,
        image_token="<image>\n",
    ),
    _QWEN,
    replace(_QWEN, name="qwen2-vl", image_token="<|vision_start|><|image_pad|><|vision_end|>"),
    ChatTemplate(
        "vicuna_v1.1",
        {"system": ("", " "), "user": ("USER:", " "), "assistant": ("ASSISTANT:", "</s>")},
        default_system_prompt=(
            "A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions."
        ),
        image_token=" <image>\n",
    ),
    ChatTemplate(
        "llama-2-chat",
        {
            "system": ("<<SYS>>\n", "\n<</SYS>>\n\n"),
            "user": ("[INST] ", " [/INST]"),
            "assistant": ("", " </s><s>"),
        },
        system_in_user=True,
    ),
    ChatTemplate(
        "mistral",
        {
            "system": ("[SYSTEM_PROMPT] ", " [/SYSTEM_PROMPT]"),
            "user": ("[INST] ", " [/INST]"),
            "assistant": ("", " </s><s>"),
        },
        ("</s>",),
        image_token="[IMG]",
    ),
    _LLAMA_3,
    replace(_LLAMA_3, name="llama-3-instruct-llava", image_token="<image>\n"),
    ChatTemplate(
        "llama-4",
        _marked("<|header_start|>{}<|header_end|>\n\n", "<|eot|>"),
        ("<|eot|>",),
        image_token="<|image|>",
    ),
    ChatTemplate(
        "yi-1.5",
        {
            "system": ("", ""),
            "user": ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
            "assistant": ("", "<|im_end|>\n"),
        },
        ("<|im_end|>",),
    ),
    ChatTemplate(
        "gemma-it",
        {
            "system": ("", ""),
            "user": ("<start_of_turn>user\n", "<end_of_turn>\n"),
            "assistant": ("<start_of_turn>model\n", "<end_of_turn>\n"),
        },
    ),
    replace(_CHATML, name="dbrx-instruct"),
    ChatTemplate(
        "c4ai-command-r",
        _marked(
            "<|START_OF_TURN_TOKEN|><|{}_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            {"system": "SYSTEM", "user": "USER", "assistant": "CHATBOT"},
        ),
    ),
    ChatTemplate(
        "deepseek-v3",
        {
            "system": ("", ""),
            "user": ("<｜User｜>", ""),
            "assistant": ("<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
        },
        ("<｜end▁of▁sentence｜>",),
    ),
    ChatTemplate(
        "granite-3-instruct",
        _marked("<|start_of_role|>{}<|end_of_role|>", "<|end_of_text|>"),
        ("<|end_of_text|>",),
    ),
)
_BY_NAME = {template.name: template for template in _TEMPLATES}

# The first match is taken, so special cases stand before their families.
_BY_PATH = (
    (r"deepseek-(v3|r1)(?!.*distill)", "deepseek-v3"),
    (r"dbrx.*(base|instruct)", "dbrx-instruct"),
    (r"vicuna|llava-v1\.5|llava-next-video-7b", "vicuna_v1.1"),
    (r"llama-2.*chat|codellama.*instruct", "llama-2-chat"),
    (r"pixtral|(mistral|mixtral).*instruct", "mistral"),
    (r"llama-3.*instruct", "llama-3-instruct"),
    (r"llama-4.*instruct", "llama-4"),
    (r"tinyllama|smollm", "chatml"),
    (r"qwen.*vl", "qwen2-vl"),
    (r"qwen.*(chat|instruct)", "qwen"),
    (r"llava-v1\.6-34b|llava-onevision", "chatml-llava"),
    (r"yi-1\.5.*chat", "yi-1.5"),
    (r"gemma.*it", "gemma-it"),
    (r"c4ai-command-r", "c4ai-command-r"),
    (r"granite.*instruct", "granite-3-instruct"),
)


def get_chat_template(name: str) -> ChatTemplate:
    """Return the template of this name.

    Raises:
        ProgramError: for an unknown name; lists the known ones.
    """
    if name not in _BY_NAME:
        raise ProgramError(f"unknown chat template {name!r}; there are {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


def get_chat_template_by_model_path(model_path: str) -> ChatTemplate:
    """Return the usual template of models with this name, else "default"."""
    for pattern, name in _BY_PATH:
        if re.search(pattern, model_path, re.IGNORECASE):
            return get_chat_template(name)
    return get_chat_template("default")


def template_for(backend: Backend) -> TurnWriter:
    """Return the template set on the backend, else its model's own, else "default"."""
    chosen = getattr(backend, "chat_template", None)
    if isinstance(chosen, ChatTemplate):
        return chosen
    try:
        backend.render_chat([{"role": "user", "content": "x"}])
    except TokenizerError:
        return get_chat_template("default")
    return DerivedTemplate(backend.render_chat)
