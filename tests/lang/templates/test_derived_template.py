"""The text of a program equals its conversation rendered by the model's own template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import ByteLevel
from tokenizers.models import WordLevel

import sgl_mlx as sgl
from sgl_mlx.core import prompt_text
from sgl_mlx.errors import ProgramError, TokenizerError
from sgl_mlx.lang.templates.derived_template import DerivedTemplate, merge_system
from sgl_mlx.testing import ScriptedBackend
from sgl_mlx.tokenizer import Tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant."
    "<|im_end|>\n{% endif %}" + CHATML
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_3 = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
)
MISTRAL = (
    "<s>"
    + _ALTERNATE
    + "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    + "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
GEMMA = (
    "<bos>{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    + _ALTERNATE
    + "<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0].role == 'system' %}"
    "{% set turns = messages[1:] %}{% set system = messages[0].content %}"
    "{% else %}{% set turns = messages %}{% set system = none %}{% endif %}"
    "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}<s>[INST] "
    "{% if loop.first and system is not none %}<<SYS>>\n{{ system }}\n<</SYS>>\n\n{% endif %}"
    "{{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content | trim }} </s>{% endif %}{% endfor %}"
)

Render = Callable[[Sequence[Mapping[str, Any]], bool], str]
NAMES = ("CHATML", "DEFAULT_SYSTEM", "LLAMA_3", "MISTRAL", "GEMMA", "LLAMA_2")


def source(name: str) -> Render:
    """`render_chat` of a model with the template of this name."""

    def reject(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(globals()[name], globals={"raise_exception": reject})

    def render(messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
        try:
            return template.render(messages=messages, add_generation_prompt=add_generation_prompt)
        except TemplateError as error:
            raise TokenizerError(str(error)) from error

    return render


@sgl.function
def converse(s: Any, system: str | None, answers: str) -> None:
    if system is not None:
        s += sgl.system(system)
    s += sgl.user("Hi there")
    s += sgl.assistant(sgl.gen("first") if answers == "generated" else "Hello")
    s += sgl.user("How are you?")
    s += sgl.assistant(sgl.gen("second") if answers == "generated" else "Fine")


@pytest.mark.parametrize("system", [None, "Be brief"])
@pytest.mark.parametrize("name", NAMES)
def test_a_written_conversation_is_the_rendered_one(name: str, system: str | None) -> None:
    render = source(name)
    state = converse.run(system, "written", backend=ScriptedBackend(render_chat=render))
    messages = state.messages()
    assert [m["role"] for m in messages[-4:]] == ["user", "assistant"] * 2
    if name in ("MISTRAL", "GEMMA"):
        messages = merge_system(messages)
    assert state.text() == render(messages, False)


@pytest.mark.parametrize("system", [None, "Be brief"])
@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_asked_with_its_own_generation_prompt(name: str, system: str | None) -> None:
    render = source(name)
    # the models behind this template begin their answers with the blank it leaves them
    blank = " " if name == "LLAMA_2" else ""
    backend = ScriptedBackend([f"{blank}Hello", f"{blank}Fine"], render_chat=render)
    state = converse.run(system, "generated", backend=backend)
    messages = state.messages()
    if name in ("MISTRAL", "GEMMA"):
        messages = merge_system(messages)
    assert backend.prompts[0] == render(messages[:-3], True)
    assert backend.prompts[1] == render(messages[:-1], True)
    assert state.text() == render(messages, False)


@pytest.mark.parametrize(
    ("name", "stop"),
    [
        ("CHATML", ("<|im_end|>",)),
        ("LLAMA_3", ("<|eot_id|>",)),
        ("MISTRAL", ("</s>",)),
        ("GEMMA", ("<end_of_turn>",)),
        ("LLAMA_2", ("</s>",)),
    ],
)
def test_what_ends_an_answer_stops_it(name: str, stop: tuple[str, ...]) -> None:
    backend = ScriptedBackend("Hello", render_chat=source(name))
    converse.run(None, "generated", backend=backend, stop="#").sync()
    params = backend.calls[0].params
    assert params is not None
    assert params.stop == ("#", *stop)


def test_text_without_turns_has_no_template() -> None:
    @sgl.function
    def complete(s: Any) -> None:
        s += "2+2=" + sgl.gen("x")

    backend = ScriptedBackend("4", render_chat=source("DEFAULT_SYSTEM"))
    complete.run(backend=backend).sync()
    params = backend.calls[0].params
    assert backend.prompts == ["2+2="]
    assert params is not None
    assert params.stop == ()


def test_a_template_may_think_in_answers_that_are_written_but_not_in_generated_ones() -> None:
    template = DerivedTemplate(source("THINKING"))
    opening = template.begin(("user",), "assistant")
    assert opening.text == "<|im_start|>assistant\n"
    assert opening.owed == "<think>\n\n</think>\n\n"


def test_select_continues_the_text_of_a_turn_not_the_models_own() -> None:
    @sgl.function
    def choose(s: Any) -> None:
        s += sgl.user("Is it?") + sgl.assistant(sgl.select("x", ["yes", "no"]))

    backend = ScriptedBackend(render_chat=source("LLAMA_2"))
    choose.run(backend=backend).sync()
    assert prompt_text(backend.calls[0].prompt) == "<s>[INST] Is it? [/INST] "


def test_a_system_turn_alone_becomes_a_user_turn_where_there_is_no_system_role() -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.system("Be brief") + sgl.assistant("Yes")

    state = program.run(backend=ScriptedBackend(render_chat=source("GEMMA")))
    merged = [{"role": "user", "content": "Be brief"}, {"role": "assistant", "content": "Yes"}]
    assert state.text() == source("GEMMA")(merged, False)


def test_an_order_of_roles_that_the_template_rejects_is_explained() -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user("a") + sgl.user("b")

    state = program.run(backend=ScriptedBackend(render_chat=source("MISTRAL")))
    with pytest.raises(ProgramError, match=r"order user, user: .*must alternate"):
        state.sync()


def test_each_conversation_is_rendered_once() -> None:
    rendered: list[tuple[str, ...]] = []

    def render(messages: Any, generation: bool) -> str:
        rendered.append((*(m["role"] for m in messages), str(generation)))
        return str(source("CHATML")(messages, generation))

    template = DerivedTemplate(render)
    for _ in range(3):
        template.begin(("system", "user"), "assistant")
        template.end(("system", "user"), "assistant")
    assert len(rendered[1:]) == len(set(rendered[1:]))


PARTS = (
    "{% for m in messages %}{{ m.role | upper }}: "
    "{% for p in m.content | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
    "{% for p in m.content | selectattr('type', 'equalto', 'text') %}{{ p.text }} {% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
AFTER_THE_PICTURE = (
    "{% for m in messages %}<|im_start|>{{ m.role }} "
    "{% for p in m.content %}{% if p.type == 'image' %}<image>{% endif %}{% endfor %}"
    "{% for p in m.content %}{% if p.type == 'text' %}\n{{ p.text }}{% endif %}{% endfor %}"
    "<|im_end|>{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [(PARTS, "<image>\n"), (AFTER_THE_PICTURE, "<image>"), (CHATML, "<image>")],
    ids=["line of its own", "in line", "text alone"],
)
def test_pictures_stand_as_the_template_writes_them(template: str, expected: str) -> None:
    backend = Backend(WordLevel({"a": 0}, "a"))
    backend.decoder = ByteLevel()
    tokenizer = Tokenizer(backend, chat_template=template)
    assert DerivedTemplate(tokenizer.render_chat).image_token == expected
