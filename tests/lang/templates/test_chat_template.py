"""Named templates: the conversations they write, and which model gets which."""

from __future__ import annotations

from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.errors import ProgramError
from sgl_mlx.lang.templates.chat_template import get_chat_template, get_chat_template_by_model_path
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
