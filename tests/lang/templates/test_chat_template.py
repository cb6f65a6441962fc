"""Named templates: the conversations they write, and which model gets which."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sgl_mlx as sgl
from sgl_mlx.errors import ProgramError
from sgl_mlx.lang.templates.chat_template import (
    ChatTemplate,
    ChatTemplateStyle,
    chat_template_registry,
    get_chat_template,
    get_chat_template_by_model_path,
    matching_function_registry,
    register_chat_template,
    register_chat_template_matching_function,
)
from sgl_mlx.testing import ScriptedBackend

CONVERSATION = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U"},
    {"role": "assistant", "content": "A"},
    {"role": "user", "content": "V"},
]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("default", "SYSTEM:S\nUSER:U\nASSISTANT:A\nUSER:V\n"),
        (
            "chatml",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n"
            "<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nV<|im_end|>\n",
        ),
        (
            "llama-2-chat",
            "[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST]A </s><s>[INST] V [/INST]",
        ),
        (
            "llama-3-instruct",
            "<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nV<|eot_id|>",
        ),
        ("vicuna_v1.1", "S USER:U ASSISTANT:A</s>USER:V "),
        (
            "gemma-it",
            "S<start_of_turn>user\nU<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"
            "<start_of_turn>user\nV<end_of_turn>\n",
        ),
    ],
)
def test_named_templates_write_conversations(name: str, expected: str) -> None:
    assert get_chat_template(name).get_prompt(CONVERSATION) == expected


def test_a_default_system_prompt_comes_first() -> None:
    prompt = get_chat_template("qwen").get_prompt([{"role": "user", "content": "U"}])
    assert prompt.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-chat"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3-instruct"),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "llama-4"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mistral"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen"),
        ("Qwen/Qwen2-VL-7B-Instruct", "qwen2-vl"),
        ("lmsys/vicuna-7b-v1.5", "vicuna_v1.1"),
        ("liuhaotian/llava-v1.5-7b", "vicuna_v1.1"),
        ("google/gemma-2b-it", "gemma-it"),
        ("deepseek-ai/DeepSeek-V3", "deepseek-v3"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "default"),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "chatml"),
        ("some/unknown-model", "default"),
    ],
)
def test_models_are_told_by_their_path(path: str, name: str) -> None:
    assert get_chat_template_by_model_path(path).name == name


def test_an_unknown_template_is_refused_with_the_known() -> None:
    with pytest.raises(ProgramError, match=r"unknown chat template 'x'; there are default"):
        get_chat_template("x")


@sgl.function
def chat(s: Any) -> None:
    s += sgl.user("U") + sgl.assistant(sgl.gen("x"))


def test_a_model_without_a_template_gets_the_default_one() -> None:
    assert chat.run(backend=ScriptedBackend("A")).text() == "USER:U\nASSISTANT:A\n"


def test_a_template_set_on_the_backend_is_used() -> None:
    backend: Any = ScriptedBackend("A")
    backend.chat_template = get_chat_template("qwen")
    state = chat.run(backend=backend)
    assert state.messages()[0] == {"role": "system", "content": "You are a helpful assistant."}
    assert state.text() == get_chat_template("qwen").get_prompt(state.messages())
    assert backend.calls[0].params.stop == ("<|im_end|>",)


@given(
    prefixes=st.lists(st.text("UA:<>", min_size=1, max_size=4), min_size=3, max_size=3),
    stop=st.lists(st.text(min_size=1, max_size=3), max_size=2).map(tuple),
)
def test_a_template_in_sglangs_shape_can_be_registered(
    prefixes: list[str], stop: tuple[str, ...]
) -> None:
    template = ChatTemplate(
        name="mine",
        default_system_prompt=None,
        role_prefix_and_suffix=dict(
            zip(("system", "user", "assistant"), ((p, "\n") for p in prefixes), strict=True)
        ),
        stop_str=stop,
        style=ChatTemplateStyle.PLAIN,
    )
    register_chat_template(template)
    try:
        assert get_chat_template("mine") is template
        assert template.stop == stop
        turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
        assert template.get_prompt(turns) == f"{prefixes[1]}hi\n{prefixes[2]}ho\n"
    finally:
        del chat_template_registry["mine"]


def test_a_program_can_choose_templates_by_path() -> None:
    def mine(path: str) -> str | None:
        return "claude" if "my-model" in path else None

    register_chat_template_matching_function(mine)
    try:
        assert get_chat_template_by_model_path("org/my-model-instruct").name == "claude"
        assert get_chat_template_by_model_path("tinyllama").name == "chatml"
    finally:
        matching_function_registry.remove(mine)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("deepseek-ai/Janus-Pro-7B", "janus-pro"),
        ("01-ai/Yi-VL-6B", "yi-vl"),
        ("openbmb/MiniCPM-V-2_6", "minicpmv"),
        ("openbmb/MiniCPM-o-2_6", "minicpmo"),
        ("OpenGVLab/InternVL2_5-2B", "internvl-2-5"),
        ("internlm/Intern-S1", "interns1"),
        ("google/gemma-3-4b", "gemma-it"),
    ],
)
def test_further_models_have_their_templates(path: str, name: str) -> None:
    assert get_chat_template_by_model_path(path).name == name


def test_a_system_turn_without_content_gets_the_default() -> None:
    turns = [{"role": "system", "content": None}, {"role": "user", "content": "hi"}]
    assert "You are a helpful assistant." in get_chat_template("qwen").get_prompt(turns)
    assert get_chat_template("chatml").get_prompt(turns) == "<|im_start|>user\nhi<|im_end|>\n"
