"""Chat prompts and their ids equal transformers', over synthetic tokenizers and templates."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import processors

from sgl_mlx.compat.tokenizer import TransformersTokenizer
from sgl_mlx.tokenizer import Tokenizer
from tests.tokenizer.synthetic import KINDS

LOOP = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
IM = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TEMPLATES = [
    *(LOOP, IM, "{{ bos_token }}" + LOOP, LOOP + "{{ eos_token }}", IM + "\n\n", "\n" + IM),
    IM + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{% if tools is not none %}{{ tools | tojson }}{% endif %}" + LOOP,
    "{% if tools is defined %}D{{ tools }}{% else %}U{% endif %}" + LOOP,
    "{% if tools == None %}N{% endif %}{% if documents is not none %}D{% endif %}" + LOOP,
    "{{ unk_token }}|{{ pad_token }}|{{ sep_token }}|{{ mask_token }}" + LOOP,
    "{% if pad_token is defined %}P{% endif %}{{ additional_special_tokens }}" + LOOP,
    "{% for m in messages %}{% if m.role == 'user' %}[U]{{ m.content }}{% else %}"
    "{{ m.content + eos_token }}{% endif %}{% endfor %}",
    "{{ messages | tojson(indent=2) }}{{ messages[0] | tojson(sort_keys=true) }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}<tool_call>{{ messages[-1].content }}</tool_call>",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "{% generation %}{{ messages[0].content | trim | upper }}{% endgeneration %}",
    "{{ messages[1:] | length }}{{ messages[0].content.split(' ')[0] }} {{ messages[0].nope }}",
    "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(messages[0].content) }}{{ enable_thinking }}",
    "{{ raise_exception('no') if messages[0].role == 'x' }}{{ messages | map(attribute='role') | "
    "join('+') }}",
    "<think>\n\n</think>    {{ messages[0].content }}<table>Müller 日本</table>",
    "{{ bos_token }}{% for m in messages %}{{ ' ' if loop.last }}{{ m.content }}{% endfor %}",
    "{% if messages[0].role == 'system' %}S{{ messages[0].content }}{% endif %}{{ eos_token }}",
    "{{ 1 / 3 | round(2) }}{{ '%.2f' % 0.5 }}{{ messages[0] is mapping }}<|im_end|><s></s>",
    "{% for m in messages %}\n    {% if m.role == 'user' %}\n  U: {{ m.content }}\n {% endif %}\n"
    "{% endfor %}END",
]
MESSAGES = [
    {"role": "system", "content": "Be nice."},
    {"role": "user", "content": "Hi <b> & 'you' é 日本 Müller\n\n    x"},
    {"role": "assistant", "content": "Yo 😀"},
    {"role": "user", "content": " Bye  "},
]
NAMED = {"bos_token": "<s>", "eos_token": "<|im_end|>", "unk_token": "<unk>", "pad_token": "</s>"}


def write_folder(folder: Path, kind: str, **config: Any) -> Path:
    backend = KINDS[kind]()
    backend.enable_truncation(7)
    backend.enable_padding(length=9)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    backend.save(str(folder / "tokenizer.json"))
    names = {**NAMED, "tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 4]}))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_and_ids_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import PreTrainedTokenizerFast

    folder = write_folder(tmp_path, kind)
    theirs, ours = PreTrainedTokenizerFast.from_pretrained(folder), Tokenizer.from_file(folder)
    assert len(TEMPLATES) * len(KINDS) >= 200
    for template in TEMPLATES:
        for generate in (True, False):
            ours.chat_template = template
            text = ours.render_chat(MESSAGES, generate)
            expected = theirs.apply_chat_template(
                MESSAGES, chat_template=template, tokenize=False, add_generation_prompt=generate
            )
            assert text == expected, template
            ids = theirs(text, add_special_tokens=False)["input_ids"]
            assert ours.encode(text, add_special=False) == ids
            plain = text.startswith("<s>")
            assert ours.encode(text) == ids if plain else ours.encode(text) == [1, *ids]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("named", [NAMED, {**NAMED, "pad_token": None}, {"eos_token": "</s>"}])
def test_special_tokens_have_transformers_names(tmp_path: Path, kind: str, named: Any) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = write_folder(tmp_path, kind, **{**dict.fromkeys(NAMED), **named})
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    ours = TransformersTokenizer(Tokenizer.from_file(folder))
    for name in ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "mask_token"):
        assert getattr(ours, name) == getattr(theirs, name)
        assert getattr(ours, f"{name}_id") == getattr(theirs, f"{name}_id")


# foreign-metaspace, like Llama 2, writes a space after every added token
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "foreign-metaspace"])
def test_text_comes_back_whole_whatever_the_files_say(tmp_path: Path, kind: str) -> None:
    tokenizer = Tokenizer.from_file(write_folder(tmp_path, kind))
    for message in MESSAGES:
        text = message["content"].strip()
        ids = tokenizer.encode(text, add_special=False)
        if not set(ids) & {tokenizer.backend.token_to_id("<unk>")}:
            assert tokenizer.decode(ids) == text


ADDED = {"<|new|>": True, "<word>": False}


@pytest.mark.parametrize("where", ["decoder", "file"])
@pytest.mark.parametrize("kind", ["byte-level", "metaspace"])
def test_tokens_that_only_the_other_files_name_are_known(
    tmp_path: Path, kind: str, where: str
) -> None:
    write_folder(tmp_path, kind)
    size = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab_size()
    ids = {text: size + i for i, text in enumerate(ADDED)}
    config = {**NAMED, "sep_token": "<|new|>"}
    if where == "decoder":
        config["added_tokens_decoder"] = {
            str(ids[text]): {"content": text, "special": special, "normalized": False}
            for text, special in ADDED.items()
        }
    else:
        (tmp_path / "added_tokens.json").write_text(json.dumps(ids))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_file(tmp_path)
    for text, special in ADDED.items():
        found = tokenizer.encode(f"a{text}b", add_special=False)
        assert ids[text] in found
        assert tokenizer.is_special(ids[text]) == special


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"default": "D", "tool_use": "T"}, "D"),
        ([{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}], "D"),
        ({"only": "O"}, "O"),
        ({"a": "A", "b": "B"}, None),
        ("plain", "plain"),
    ],
)
def test_templates_are_found_however_they_are_written(
    tmp_path: Path, written: Any, expected: str | None
) -> None:
    folder = write_folder(tmp_path, "byte-level", chat_template=written)
    assert Tokenizer.from_file(folder).chat_template == expected


def test_an_end_of_turn_that_the_template_writes_ends_an_answer(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "byte-level", chat_template=IM, eos_token="</s>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    assert Tokenizer.from_file(folder).eos_token_ids == {2, 4}
    (folder / "tokenizer_config.json").write_text(json.dumps({**NAMED, "eos_token": "</s>"}))
    assert Tokenizer.from_file(folder).eos_token_ids == {2}


@pytest.mark.parametrize(
    "template", ["{{ 1 / 0 }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"]
)
def test_a_template_that_goes_wrong_is_an_error_of_ours(template: str) -> None:
    from sgl_mlx.errors import TokenizerError
    from tests.tokenizer.synthetic import tokenizer

    broken = Tokenizer(tokenizer("byte-level").backend, chat_template=template)
    with pytest.raises(TokenizerError, match="rejects messages"):
        broken.render_chat([{"role": "user", "content": "x"}])
