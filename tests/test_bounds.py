"""The door: any value, at any place that takes one, is taken or is an error of ours."""

from __future__ import annotations

import enum
import json
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sgl_mlx as sgl
from sgl_mlx import bounds
from sgl_mlx.core import SamplingParams, Text
from sgl_mlx.errors import InvalidParamsError, ProgramError, PromptError, SglError
from sgl_mlx.lang.templates.chat_template import get_chat_template
from sgl_mlx.limits import Limits
from sgl_mlx.runtime.config import EngineConfig
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.testing import ScriptedBackend
from tests.patience import PATIENCE
from tests.runtime.conftest import write_toy

HALF = json.loads('"half \\ud83d"')
BYTE = b"caf\xe9".decode("utf-8", "surrogateescape")


class Colour(str, enum.Enum):  # noqa: UP042  (its `str()` is its name)
    RED = "red"


class Rude:
    """An object whose every question goes wrong."""

    def __repr__(self) -> str:
        raise RuntimeError("no")

    def __str__(self) -> str:
        return "rude"

    __len__ = __iter__ = __float__ = __index__ = __eq__ = __repr__  # type: ignore[assignment]
    __hash__ = object.__hash__


VALUES: dict[str, Any] = {
    "none": None,
    "half": HALF,
    "byte": BYTE,
    "empty": "",
    "zero": "\0",
    "mark": "\ufeffa",
    "text": "ab",
    "numpy text": np.str_("ab"),
    "enum": Colour.RED,
    "bytes": b"ab",
    "bytearray": bytearray(b"ab"),
    "memory": memoryview(b"ab"),
    "int": 5,
    "huge": 10**5000,
    "float": 1.5,
    "nan": float("nan"),
    "bool": True,
    "numpy int": np.int64(5),
    "numpy bool": np.bool_(True),
    "0-d": np.array(5),
    "ids": np.array([5, 6]),
    "ids 2-D": np.array([[5, 6], [7, 8]]),
    "ids 3-D": np.zeros((1, 2, 3), int),
    "object ids": np.array([5, 6], object),
    "object mix": np.array([5, "a", None], object),
    "float ids": np.array([1.0, 2.0]),
    "bool ids": np.array([True, False]),
    "texts": np.array(["ab", "cd"]),
    "list": ["ab", "cd"],
    "tuple": ("ab",),
    "deque": deque(["ab"]),
    "no items": [],
    "nones": [None],
    "half in a list": ["ab", HALF],
    "nested": [["ab"], ["cd"]],
    "ragged": [[5], 6, ["x"]],
    "ints": [5, 6],
    "bools": [True],
    "dict": {"a": 1},
    "message": {"role": "user", "content": "ab"},
    "messages": [{"role": "user", "content": "ab"}],
    "half message": [{"role": "user", "content": [{"type": "text", "text": HALF}]}],
    "set": {"ab"},
    "range": range(3, 6),
    "generator": (x for x in ["ab"]),
    "object": object(),
    "rude": Rude(),
    "class": int,
    "function": len,
}
SHORT = {"max_new_tokens": 2, "temperature": 0}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = write_toy(tmp_path_factory.mktemp("door"))
    with Engine(str(folder), max_total_tokens=2000) as engine:
        engine.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        yield engine


@sgl.function
def appends(s: Any, x: Any) -> None:
    s += x
    s += sgl.gen("o", max_tokens=2)


@sgl.function
def selects(s: Any, x: Any) -> None:
    s += "pick "
    s += sgl.select("o", x)


@sgl.function
def forks(s: Any, x: Any) -> None:
    branches = s.fork(x)
    branches += "a"
    branches.join()


@sgl.function
def joins(s: Any, x: Any) -> None:
    s.fork(2).join(x)


def gen_with(name: str) -> Callable[[Engine, Any], Any]:
    @sgl.function
    def program(s: Any, x: Any) -> None:
        s += "a"
        s += sgl.gen(**{"name": "o", "max_tokens": 2, name: x})

    return lambda engine, x: program.run(x, backend=engine).text()


GENERATE: dict[str, Callable[[Engine, Any], Any]] = {
    "prompt": lambda e, x: e.generate(x, SHORT),
    "prompts": lambda e, x: e.generate([x, "ab"], SHORT),
    "ids": lambda e, x: e.generate(input_ids=x, sampling_params=SHORT),
    "rows of ids": lambda e, x: e.generate(input_ids=[x, [5]], sampling_params=SHORT),
    "params": lambda e, x: e.generate("ab", x, max_new_tokens=2),
    "pictures": lambda e, x: e.generate("ab", SHORT, image_data=x),
    "stream": lambda e, x: list(e.generate(x, SHORT, stream=True)),
    "submit": lambda e, x: e.submit(x, SamplingParams.of(SHORT)).result(PATIENCE),
    "part": lambda e, x: e.submit((Text("a"), x), SamplingParams.of(SHORT)).result(PATIENCE),
    "text part": lambda e, x: e.submit((Text(x),), SamplingParams.of(SHORT)).result(PATIENCE),
    "submit params": lambda e, x: e.submit((Text("a"),), x),
    "prefill": lambda e, x: e.prefill(x).result(PATIENCE),
    "prefetch": lambda e, x: e.prefetch(x).result(PATIENCE),
    "choices": lambda e, x: e.score((Text("a"),), x).result(PATIENCE),
    "choice": lambda e, x: e.score((Text("a"),), ["b", x]).result(PATIENCE),
    "score prompt": lambda e, x: e.score(x, ["b"]).result(PATIENCE),
    "messages": lambda e, x: e.render_chat(x),
    "content": lambda e, x: e.render_chat([{"role": "user", "content": x}]),
    "role": lambda e, x: e.render_chat([{"role": x, "content": "a"}]),
}
SCHEMAS: dict[str, Callable[[Engine, Any], Any]] = {
    "schema enum": lambda e, x: e.generate("a", SHORT, json_schema={"enum": [x]}),
}
GEN_NAMES = ("name", "stop", "stop_regex", "regex", "json_schema", "grammar", "choices", "dtype")
NUMBERS = ("max_tokens", "temperature", "top_k", "stop_token_ids", "return_logprob", "n")
PROGRAMS: dict[str, Callable[[Engine, Any], Any]] = {
    "append": lambda e, x: appends.run(x, backend=e).text(),
    "select": lambda e, x: selects.run(x, backend=e).text(),
    "user": lambda e, x: appends.run(sgl.user("a"), backend=e) and sgl.user(x),
    "image": lambda e, x: appends.run(sgl.image(x), backend=e).text(),
    "run option": lambda e, x: appends.run("a", backend=e, temperature=x).text(),
    **{f"gen {name}": gen_with(name) for name in (*GEN_NAMES, *NUMBERS)},
}
KEYWORDS: dict[str, Callable[[Engine, Any], Any]] = {
    **{
        f"generate {name}": lambda e, x, name=name: e.generate("a", SHORT, **{name: x})
        for name in ("rid", "priority", "timeout", "deadline", "stream")
    },
    "rids": lambda e, x: e.generate(["a", "b"], SHORT, rid=x),
    "rid of two": lambda e, x: e.generate(["a", "b"], SHORT, rid=["first", x]),
    "submit keyword": lambda e, x: e.submit((Text("a"),), SamplingParams.of(SHORT), rid=x),
    "abort": lambda e, x: e.abort(x),
    "score flag": lambda e, x: e.score((Text("a"),), ["b"], x).result(PATIENCE),
    "chat flag": lambda e, x: e.render_chat([{"role": "user", "content": "a"}], x),
    "on_event": lambda e, x: e.submit((Text("a"),), SamplingParams.of(SHORT), x),
}
RUNS: dict[str, Callable[[Engine, Any], Any]] = {
    **{
        f"run {name}": lambda e, x, name=name: appends.run("a", backend=e, **{name: x}).text()
        for name in ("timeout", "request_timeout", "stream", "use_thread", "num_threads")
    },
    "backend": lambda e, x: appends.run("a", backend=x).text(),
    "default backend": lambda e, x: sgl.set_default_backend(x),
    "batch": lambda e, x: [s.text() for s in appends.run_batch(x, backend=e)],
    "batch row": lambda e, x: [s.text() for s in appends.run_batch([x], backend=e)],
    "batch threads": lambda e, x: appends.run_batch([{"x": "a"}], backend=e, num_threads=x),
    "bind": lambda e, x: appends.bind(x=x).run(backend=e).text(),
    "join": lambda e, x: joins.run(x, backend=e).text(),
    "chat template": lambda e, x: get_chat_template(x),
    "endpoint": lambda e, x: sgl.RuntimeEndpoint(x),
    "openai": lambda e, x: sgl.OpenAI(x, client=object()),
    "fork": lambda e, x: forks.run(x, backend=e).text(),
    "read": lambda e, x: appends.run("a", backend=e)[x],
    "meta": lambda e, x: appends.run("a", backend=e).get_meta_info(x),
    "reasoning": lambda e, x: sgl.separate_reasoning(x),
    "reasoning model": lambda e, x: sgl.separate_reasoning(sgl.gen("a"), x),
    "choices method": lambda e, x: sgl.select("a", ["b"], choices_method=x),
    "video": lambda e, x: sgl.video(x, 8),
    "function": lambda e, x: sgl.function(x),
    "no passes": lambda e, x: appends.compile(passes=()).run(x, backend=e).text(),
    "passes": lambda e, x: appends.compile(passes=x),
    "reorder": lambda e, x: appends.compile(reorder=x),
    "compiled": lambda e, x: appends.compile().run(x, backend=e).text(),
    "traced": lambda e, x: appends.trace(x=x),
}
PLACES = {**GENERATE, **SCHEMAS, **PROGRAMS, **KEYWORDS, **RUNS}


def refusal(call: Callable[[], object], where: str) -> str | None:
    """The words of our error; None if the value is taken. Any other error fails the test."""
    told: str | None = None
    try:
        call()
    except SglError as error:
        told = str(error)
    except Exception as error:
        pytest.fail(f"{where}: {type(error).__name__}: {error}")
    return told


@pytest.mark.parametrize("place", PLACES)
def test_a_value_is_taken_or_an_error_of_ours(engine: Engine, place: str) -> None:
    for name, value in VALUES.items():
        told = refusal(lambda value=value: PLACES[place](engine, value), f"{place}, {name}")
        assert told is None or len(told.encode()) < 900, (place, name)
    assert engine.generate("ab", SHORT)["output_ids"]


IDS = [5, 6]


@pytest.mark.parametrize(
    "same", [np.array(IDS), np.array(IDS, np.uint8), (5, 6), [np.int64(5), 6], range(5, 7)]
)
def test_ids_of_any_library_are_ids(engine: Engine, same: Any) -> None:
    expected = engine.generate(input_ids=IDS, sampling_params=SHORT)
    found = engine.generate(input_ids=same, sampling_params=SHORT)
    assert found["output_ids"] == expected["output_ids"]


def test_rows_of_an_array_are_prompts(engine: Engine) -> None:
    found = engine.generate(input_ids=np.array([[5, 6], [7, 8]]), sampling_params=SHORT)
    assert len(found) == 2
    texts = engine.generate(np.array(["ab", "cd"]), SHORT)
    assert [row["output_ids"] for row in texts] == [
        row["output_ids"] for row in engine.generate(["ab", "cd"], SHORT)
    ]


def test_texts_of_other_classes_are_texts(engine: Engine) -> None:
    expected = engine.generate("red", SHORT)["text"]
    assert engine.generate(Colour.RED, SHORT)["text"] == expected
    assert engine.generate(np.str_("red"), SHORT)["text"] == expected


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("prompt", b"ab", "decode bytes first"),
        ("prompts", b"ab", "prompt 0 must be text"),
        ("prompt", VALUES["messages"], "for chat messages: engine.render_chat"),
        ("prompt", [5, 6], "for token ids: input_ids"),
        ("prompt", HALF, r"half a character \(the lone surrogate U\+D83D\) at position 5"),
        ("prompt", BYTE, r"the byte 0xE9 at position 3, not valid UTF-8"),
        ("ids", b"ab", "input_ids must be a list of token ids"),
        ("ids", [5, [6]], r"token id \[6\] is not in the vocabulary"),
        ("ids", [[5], 6], r"input_ids\[1\] must be a list, as the first row is, got 6"),
        ("ids", [True], "token id True"),
        ("submit", "ab", "a prompt must be a tuple of parts"),
        ("messages", "ab", 'messages must be a list, each item a dictionary such as {"role"'),
        ("messages", ["ab"], r"messages\[0\] must be a dictionary"),
        ("messages", VALUES["half message"], r"messages\[0\]\['content'\]\[0\]\['text'\] holds"),
        ("append", HALF, "text of a program holds half a character"),
        ("schema enum", HALF, r"json_schema\['enum'\]\[0\] holds half a character"),
        ("gen name", [], r"the name of gen\(\) must be a text, got \[\]"),
    ],
)
def test_a_refusal_says_what_is_wrong_and_where(
    engine: Engine, place: str, value: Any, message: str
) -> None:
    with pytest.raises((PromptError, InvalidParamsError, ProgramError), match=message):
        PLACES[place](engine, value)


@given(st.text(st.characters(codec="utf-8")) | st.text(st.characters(categories=["Cs"])))
def test_exactly_text_that_utf8_holds_is_readable(text: str) -> None:
    halves = [i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"]
    fault = bounds.unreadable(text)
    assert (fault is None) == (not halves)
    assert fault is None or f"position {halves[0]}" in fault


Json = st.recursive(st.none() | st.text() | st.integers(), lambda x: st.lists(x, max_size=3))


@given(st.lists(Json, max_size=4), st.booleans())
def test_half_a_character_is_found_however_deep(values: list[Any], hidden: bool) -> None:
    values = [*values, [{"a": [HALF]}]] if hidden else values
    if hidden:
        with pytest.raises(PromptError, match=r"\['a'\]\[0\] holds half"):
            bounds.readable("x", values, PromptError)
    else:
        bounds.readable("x", values, PromptError)


@pytest.mark.parametrize("name", EngineConfig.__dataclass_fields__)
def test_engine_options_are_taken_or_refused_by_name(name: str) -> None:
    for value in VALUES.values():
        taken: list[Any] = []

        def take(value: Any = value, taken: list[Any] = taken) -> None:
            taken.append(getattr(EngineConfig.of({name: value}), name))

        told = refusal(take, name)
        assert (
            name in told if told else type(taken[0]) in (int, float, bool, str, Limits, type(None))
        )


def test_programs_are_checked_before_any_backend_sees_them() -> None:
    backend = ScriptedBackend("x")
    for program in (appends, selects):
        with pytest.raises(ProgramError, match="half a character"):
            program.run(HALF if program is appends else [HALF], backend=backend)
    assert backend.calls == []
