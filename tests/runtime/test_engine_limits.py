"""Limits of an engine: a request over one is refused before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sgl_mlx.core import Parallel, Text
from sgl_mlx.errors import LimitError
from sgl_mlx.limits import Limits
from sgl_mlx.runtime.engine import Engine
from tests.runtime.conftest import write_toy

LIMITS = {
    **{"max_n": 2, "max_prompt_chars": 20, "max_parts": 4, "max_choices": 2, "max_logprobs": 2},
    **{"max_stops": 2, "max_stop_chars": 3, "max_regex_chars": 6, "max_schema_depth": 2},
    **{"max_grammar_rules": 2, "template_seconds": 0.05},
}
SHORT = {"max_new_tokens": 1, "temperature": 0}
RULES = 'start: a\na: b\nb: "x"'
DEEP = {"items": {"items": {"items": {}}}}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = write_toy(tmp_path_factory.mktemp("limits"))
    with Engine(str(folder), max_total_tokens=500, limits=LIMITS) as engine:
        yield engine


CALLS: dict[str, Any] = {
    "max_n": lambda e: e.generate("a", SHORT, n=3),
    "max_prompt_chars": lambda e: e.generate("a" * 21, SHORT),
    "max_parts": lambda e: e.prefill((Text("a"), Parallel(((Text("b"),) * 3, (Text("c"),)))) * 1),
    "max_choices": lambda e: e.score((Text("a"),), ["a", "b", "c"]),
    "max_logprobs": lambda e: e.generate("a", SHORT, return_logprob=True, top_logprobs_num=3),
    "max_stops": lambda e: e.generate("a", SHORT, stop=["a", "b"], stop_token_ids=[5]),
    "max_stop_chars": lambda e: e.generate("a", SHORT, stop="abcd"),
    "max_regex_chars": lambda e: e.generate("a", SHORT, regex="a|b|c|d"),
    "max_schema_depth": lambda e: e.generate("a", SHORT, json_schema=DEEP),
    "max_grammar_rules": lambda e: e.generate("a", SHORT, grammar=RULES),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_request_over_a_limit_is_told_its_name(engine: Engine, name: str) -> None:
    with pytest.raises(LimitError, match=rf"the limit {name} is {LIMITS[name]}; to raise it"):
        CALLS[name](engine)
    assert len(engine.generate("a", SHORT)["output_ids"]) == 1


def test_a_long_list_of_ids_is_a_long_prompt(engine: Engine) -> None:
    with pytest.raises(LimitError, match="max_prompt_chars"):
        engine.generate(input_ids=[5] * 21, sampling_params=SHORT)


def test_a_template_is_held_to_the_engines_limits(engine: Engine) -> None:
    engine.tokenizer.chat_template = (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    )
    with pytest.raises(LimitError, match=r"template_seconds is 0\.05"):
        engine.render_chat([{"role": "user", "content": "a"}])


def test_an_engine_without_limits_has_the_defaults() -> None:
    from sgl_mlx.runtime.config import EngineConfig

    assert EngineConfig.of({}).limits == Limits()
    assert EngineConfig.of({"limits": Limits(max_n=5)}).limits.max_n == 5
