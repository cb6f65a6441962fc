"""The named chat templates of public models, and the model paths that select them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sgl_mlx.lang.templates.template import ChatTemplate, ChatTemplateStyle

_ASSISTANT_SYSTEM = "You are a helpful assistant."
_YI_VL_SYSTEM = (
    "This is a chat between an inquisitive human and an AI assistant. Assume the role of the AI "
    "assistant. Read all the images carefully, and respond to the human's questions with "
    "informative, helpful, detailed and polite answers."
    "这是一个好奇的人类和一个人工智能助手之间的对话。假设你扮演这个AI助手的角色。"
    "仔细阅读所有的图像，并对人类的问题做出信息丰富、有帮助、详细的和礼貌的回答。"
)
_INTERNVL_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位"
    "联合开发的多模态大语言模型。"
)
_INTERN_S1_SYSTEM = (
    "You are an AI assistant whose name is Intern-S1 (书生大模型).\n- Intern-S1 "
    "(书生大模型) is a vision-language model that is developed by Shanghai AI Laboratory "
    "(上海人工智能实验室).  It is designed to be helpful, honest, and harmless.\n- "
    "Intern-S1 (书生大模型) can understand and communicate fluently in the language "
    "chosen by the user such as English and 中文.\nYou are an expert reasoner with "
    "extensive experience in all areas. You approach problems through systematic "
    "thinking and rigorous reasoning. Your response should reflect deep understanding "
    "and precise logical thinking, making your solution path and reasoning clear to "
    "others. Please put your thinking process within <think>...</think> tags."
)


def _template(
    name: str,
    turns: Mapping[str, tuple[str, str]],
    stop: tuple[str, ...] = (),
    *,
    default_system_prompt: str | None = None,
    image_token: str = "<image>",
    style: ChatTemplateStyle = ChatTemplateStyle.PLAIN,
) -> ChatTemplate:
    return ChatTemplate(
        name, default_system_prompt, turns, stop, image_token=image_token, style=style
    )


def _marked(
    begin: str, end: str, names: Mapping[str, str] | None = None
) -> dict[str, tuple[str, str]]:
    """Return the `(prefix, suffix)` of each role.

    The prefix is `begin` with the role's name in place of `{}`; the suffix is `end`. `names` maps
    roles to the names that the model uses.
    """
    roles = ("system", "user", "assistant")
    return {role: (begin.format((names or {}).get(role, role)), end) for role in roles}


_CHATML = _template("chatml", _marked("<|im_start|>{}\n", "<|im_end|>\n"), ("<|im_end|>",))
_QWEN = replace(_CHATML, name="qwen", default_system_prompt=_ASSISTANT_SYSTEM)
_LLAMA_3 = _template(
    "llama-3-instruct",
    _marked("<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>"),
    ("<|eot_id|>",),
)
_DEEPSEEK = _template(
    "deepseek-v3",
    {
        "system": ("", ""),
        "user": ("<｜User｜>", ""),
        "assistant": ("<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
    },
    ("<｜end▁of▁sentence｜>",),
)
_MINICPM = _template(
    "minicpmv",
    {"system": ("", " "), "user": ("user:", " "), "assistant": ("assistant:", "</s>")},
    ("<|im_end|>", "<|endoftext|>"),
    image_token="(<image>./</image>)",
)
_INTERN = replace(_CHATML, stop_str=("<|im_end|>", "<|action_end|>"))
TEMPLATES = (
    _template(
        "default",
        {"system": ("SYSTEM:", "\n"), "user": ("USER:", "\n"), "assistant": ("ASSISTANT:", "\n")},
    ),
    _template(
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
    _template(
        "vicuna_v1.1",
        {"system": ("", " "), "user": ("USER:", " "), "assistant": ("ASSISTANT:", "</s>")},
        default_system_prompt=(
            "A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions."
        ),
        image_token=" <image>\n",
    ),
    _template(
        "llama-2-chat",
        {
            "system": ("<<SYS>>\n", "\n<</SYS>>\n\n"),
            "user": ("[INST] ", " [/INST]"),
            "assistant": ("", " </s><s>"),
        },
        style=ChatTemplateStyle.LLAMA2,
    ),
    _template(
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
    _template(
        "llama-4",
        _marked("<|header_start|>{}<|header_end|>\n\n", "<|eot|>"),
        ("<|eot|>",),
        image_token="<|image|>",
    ),
    _template(
        "yi-vl",
        {
            "system": ("", "\n\n"),
            "user": ("### Human:", "\n"),
            "assistant": ("### Assistant:", "\n"),
        },
        default_system_prompt=_YI_VL_SYSTEM,
        image_token=" <image_placeholder>\n",
    ),
    replace(_DEEPSEEK, name="janus-pro", image_token="<image_placeholder>\n"),
    replace(_DEEPSEEK, name="janus", image_token="<image_placeholder>\n"),
    _MINICPM,
    replace(_MINICPM, name="minicpmo", audio_token="(<audio>./</audio>)"),
    replace(_INTERN, name="internvl-2-5", default_system_prompt=_INTERNVL_SYSTEM),
    replace(_INTERN, name="interns1", default_system_prompt=_INTERN_S1_SYSTEM),
    _template(
        "yi-1.5",
        {
            "system": ("", ""),
            "user": ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
            "assistant": ("", "<|im_end|>\n"),
        },
        ("<|im_end|>",),
    ),
    _template(
        "gemma-it",
        {
            "system": ("", ""),
            "user": ("<start_of_turn>user\n", "<end_of_turn>\n"),
            "assistant": ("<start_of_turn>model\n", "<end_of_turn>\n"),
        },
    ),
    replace(_CHATML, name="dbrx-instruct"),
    _template(
        "c4ai-command-r",
        _marked(
            "<|START_OF_TURN_TOKEN|><|{}_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            {"system": "SYSTEM", "user": "USER", "assistant": "CHATBOT"},
        ),
    ),
    _DEEPSEEK,
    _template(
        "granite-3-instruct",
        _marked("<|start_of_role|>{}<|end_of_role|>", "<|end_of_text|>"),
        ("<|end_of_text|>",),
    ),
)

# The first match counts, so special cases stand before the model families they belong to.
BY_PATH = (
    (r"deepseek-(v3|r1)(?!.*distill)", "deepseek-v3"),
    (r"janus", "janus-pro"),
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
    (r"yi-vl", "yi-vl"),
    (r"yi-1\.5.*chat", "yi-1.5"),
    (r"gemma.*it|gemma-3", "gemma-it"),
    (r"minicpm-v", "minicpmv"),
    (r"minicpm-o", "minicpmo"),
    (r"c4ai-command-r", "c4ai-command-r"),
    (r"granite.*instruct", "granite-3-instruct"),
    (r"internvl2_5", "internvl-2-5"),
    (r"intern-?s1", "interns1"),
)
