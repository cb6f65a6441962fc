"""Chat templates: whatever they do, their rendering ends, in little memory, or is an error."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.errors import LimitError, TokenizerError
from sgl_mlx.limits import Limits
from sgl_mlx.tokenizer import chat
from tests.tokenizer.adversarial_templates import INSIDES, LOOPS, TEMPLATES

MESSAGES = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
LIMITS = Limits(template_seconds=0.1, max_template_chars=2_000_000)
MOST_BYTES = 64_000_000


def test_there_are_a_hundred_adversarial_templates() -> None:
    assert len(TEMPLATES) >= 100


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_adversarial_template_ends_in_little_memory(name: str) -> None:
    messages = [dict(message) for message in MESSAGES]
    tracemalloc.start()
    try:
        text = chat.render(TEMPLATES[name], messages, {}, LIMITS)
        assert len(text) <= LIMITS.max_template_chars
    except (LimitError, TokenizerError):
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < MOST_BYTES
    assert messages == MESSAGES


@pytest.mark.parametrize("template", INSIDES)
def test_a_template_does_not_see_the_insides_of_python(template: str) -> None:
    try:
        text = chat.render(template, MESSAGES, {}, LIMITS)
    except TokenizerError:
        return
    assert "<class" not in text
    assert "<function" not in text
    assert "root:" not in text


@pytest.mark.parametrize(
    ("template", "limit"),
    [
        (LOOPS[0], "seconds"),
        ("{{ 'a' * 3000000 }}", "max_template_chars"),
        ("a" * 200_001, "max_template_source"),
    ],
)
def test_the_error_names_the_limit_and_how_to_raise_it(template: str, limit: str) -> None:
    with pytest.raises(LimitError, match=rf"the limit \w*{limit} is .*--limit \w*{limit}=N"):
        chat.render(template, MESSAGES, {}, LIMITS)


@given(st.integers(1, 40), st.integers(0, 2000))
def test_what_a_template_writes_is_charged_once(repeats: int, size: int) -> None:
    messages = [{"role": "user", "content": "x" * size}] * repeats
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    limits = Limits(max_template_chars=80 + repeats * (size + 99))
    text = chat.render(template, messages, {}, limits)
    assert len(text) == repeats * size


def test_a_loop_keeps_its_length() -> None:
    told = "{{ loop.length }}{{ loop.last }}{{ loop.revindex }}"
    text = chat.render(f"{{% for m in messages %}}{told}{{% endfor %}}", MESSAGES, {})
    assert text == "2False22True1"


def test_texts_are_joined_as_jinja_joins_them() -> None:
    assert chat.render("{{ 1 ~ 'a' ~ [2] ~ none ~ nothing }}", MESSAGES, {}) == "1a[2]None"
