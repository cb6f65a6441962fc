"""Small programs that check a backend, under the names that SGLang's own tests import.

Each runs on the default backend and raises AssertionError for an answer that is wrong. The
questions are easy, so that small models can answer them.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any

import sgl_mlx as sgl

_SHOTS = "Q: What is the opposite of hot?\nA: cold\nQ: What is the opposite of up?\nA: down\n"
_OPPOSITES = {"left": "right", "day": "night", "black": "white"}
_TWO = r"(0|[1-9]\d?)"
_ENDINGS = (
    ("She filled the kettle with", ["water", "gravel", "Tuesday", "trousers"]),
    ("The dog barked at the", ["stranger", "algebra", "seventeen", "verb"]),
    ("He unlocked the door with his", ["key", "soup", "rain", "opinion"]),
    ("At night we can see the moon and the", ["stars", "forks", "invoices", "shoes"]),
    ("The baker took the bread out of the", ["oven", "river", "song", "cloud"]),
    ("After the rain the street was", ["wet", "hungry", "plural", "married"]),
    ("The pilot landed the", ["plane", "onion", "poem", "carpet"]),
    ("The child blew out the candles on the", ["cake", "truck", "ocean", "wall"]),
)


@sgl.function
def _answer(s: Any, question: str) -> None:
    s += _SHOTS + f"Q: {question}\nA:" + sgl.gen("answer", stop="\n", temperature=0)


@sgl.function
def _talk(s: Any, first: str, second: str) -> None:
    s += sgl.system("You answer briefly.")
    s += sgl.user(first)
    s += sgl.assistant(sgl.gen("first", max_tokens=32))
    with s.user():
        s += second
    with s.assistant():
        s += sgl.gen("second", max_tokens=32)


def test_few_shot_qa() -> None:
    """Check answers to questions that follow examples, one at a time and in a batch."""
    asked: list[dict[str, Any]] = [
        {"question": f"What is the opposite of {word}?"} for word in _OPPOSITES
    ]
    states = [_answer.run(**asked[0]), *_answer.run_batch(asked)]
    answers = [state["answer"].strip().lower() for state in states]
    right = list(_OPPOSITES.values())
    assert all(map(str.startswith, answers, [right[0], *right])), answers


def test_mt_bench() -> None:
    """Check that a dialogue has its turns."""
    state = _talk.run("Name a sea.", "Name another.", temperature=0.7)
    assert [m["role"] for m in state.messages()][-4:] == ["user", "assistant"] * 2


def test_select(check_answer: bool) -> None:
    """Check that `select` takes one of the choices; the right one if `check_answer`."""

    @sgl.function
    def judge(s: Any, claim: str) -> None:
        s += "Claim: Fire is cold.\nVerdict: False\nClaim: Ice is cold.\nVerdict: True\n"
        s += f"Claim: {claim}\nVerdict:" + sgl.select("verdict", [" True", " False"])

    for claim, right in (("The sun is hot.", " True"), ("A stone is soft.", " False")):
        state = judge.run(claim=claim)
        assert state["verdict"] in ([right] if check_answer else [" True", " False"]), state.text()


def test_decode_int() -> None:
    """Check that numbers come as numbers."""

    @sgl.function
    def count(s: Any) -> None:
        s += "One by one: 7, 8, 9, 10, " + sgl.gen_int("first", max_tokens=2) + "\n"
        s += "One by one: 19, 20, 21, 22, " + sgl.gen_int("second", max_tokens=2) + "\n"

    state = count.run(temperature=0)
    assert (int(state["first"]), int(state["second"])) == (11, 23), state.text()


def test_decode_json_regex() -> None:
    """Check JSON whose values follow regular expressions."""
    from sgl_mlx.lang.ir import REGEX_FLOAT, REGEX_INT, REGEX_STR

    @sgl.function
    def describe(s: Any) -> None:
        s += "Oslo as JSON:\n"
        with s.var_scope("document"):
            s += '{"name": ' + sgl.gen(regex=REGEX_STR)
            s += ', "people": ' + sgl.gen(regex=REGEX_INT, stop=[" ", "\n"])
            s += ', "latitude": ' + sgl.gen(regex=REGEX_FLOAT, stop=[" ", "\n"]) + "}"

    document = json.loads(describe.run(temperature=0)["document"])
    assert isinstance(document["name"], str)
    assert isinstance(document["people"], int)


def test_decode_json() -> None:
    """Check JSON whose values have types."""

    @sgl.function
    def describe(s: Any) -> None:
        s += "Oslo as JSON:\n"
        with s.var_scope("document"):
            s += '{"name": ' + sgl.gen_string() + ', "people": ' + sgl.gen_int()
            s += ', "country": ' + sgl.gen(dtype=str) + ', "area": ' + sgl.gen(dtype=int) + "}"

    document = json.loads(describe.run(max_new_tokens=64)["document"])
    assert [type(document[k]) for k in ("name", "people", "country", "area")] == [str, int] * 2


def test_expert_answer(check_answer: bool = True) -> None:  # noqa: PT028  (SGLang's signature)
    """Check that a later part of a prompt can use an earlier answer."""

    @sgl.function
    def ask(s: Any) -> None:
        s += "A person who repairs teeth is called a" + sgl.gen("expert", stop=[".", "\n"]) + ".\n"
        s += "So for a toothache, see a" + s["expert"] + ". Ears, eyes and" + sgl.gen(max_tokens=4)

    state = ask.run(temperature=0)
    assert state.text().count(state["expert"]) >= 2
    assert not check_answer or "dentist" in state["expert"].lower(), state.text()


def test_tool_use() -> None:
    """Check that a program computes with what the model wrote."""

    @sgl.function
    def multiply(s: Any, left: int, right: int) -> None:
        s += "times(3, 4) = 12\nWrite 5 by 6 as a call: times(5, 6)\n"
        s += f"Write {left} by {right} as a call: times(" + sgl.gen("numbers", stop=")") + ") = "
        with s.var_scope("answer"):
            a, b = (int(number) for number in s["numbers"].split(","))
            s += str(a * b)

    assert multiply.run(left=257, right=983, temperature=0)["answer"] == str(257 * 983)


def test_react() -> None:
    """Check a loop of thoughts and chosen actions that ends by its own choice or after four."""

    @sgl.function
    def act(s: Any) -> None:
        s += "Question: Is the shop open?\nAction: Look [door]\nAction: Finish [yes]\nQuestion: "
        s += "Is the light on?\n"
        for i in range(4):
            s += "Action: " + sgl.select(f"action_{i}", ["Look", "Finish"]) + " ["
            s += sgl.gen("answer", stop=["]", "\n"], max_tokens=16) + "]\n"
            if s[f"action_{i}"] == "Finish":
                break

    state = act.run(temperature=0.1)
    assert "]" not in state["answer"]


def test_parallel_decoding() -> None:
    """Check branches that are written side by side and used after a join."""

    @sgl.function
    def advise(s: Any) -> None:
        s += "Three tips for a good night:\n"
        forks = s.fork(3)
        for i in range(3):
            forks[i] += f"{i + 1}." + sgl.gen("tip", max_tokens=12, stop=[".", "\n"])
        forks.join()
        s += "".join(f"{i + 1}.{forks[i]['tip']}\n" for i in range(3))
        s += "In short," + sgl.gen("summary", max_tokens=24)

    state = advise.run(temperature=0.3)
    assert len(state["tip"]) == 3
    assert isinstance(state["summary"], str)


def test_parallel_encoding(check_answer: bool = True) -> None:  # noqa: PT028  (SGLang's signature)
    """Check statements that are read side by side."""

    @sgl.function
    def remember(s: Any, statements: list[str]) -> None:
        s += "Remember these statements.\n"
        forks = s.fork(len(statements))
        forks += lambda i: f"{statements[i]}\n"
        forks.join(mode="concate_and_append")
        s += "Who has the red hat? The red hat belongs to" + sgl.gen("who", max_tokens=6)

    told = ["Ann has the blue hat.", "Bob has the red hat.", "Eve has the green hat."]
    state = remember.run(statements=told, temperature=0)
    assert not check_answer or "Bob" in state["who"], state.text()


def test_image_qa() -> None:
    """Check a question about the picture `example_image.png` of the working folder."""

    @sgl.function
    def look(s: Any) -> None:
        s += sgl.user(sgl.image("example_image.png") + "Which vehicle is this?")
        s += sgl.assistant(sgl.gen("answer", max_tokens=64))

    answer = look.run(temperature=0)["answer"].lower()
    assert any(word in answer for word in ("car", "taxi", "cab")), answer


def test_stream() -> None:
    """Check that the pieces of a stream make up the text, of all of it and of one variable."""
    for name in (None, "first"):
        state = _talk.run("Tell me about rivers.", "And lakes?", stream=True)
        pieces = list(state.text_iter(name))
        assert "".join(pieces) == (state.text() if name is None else state[name])


def test_regex() -> None:
    """Check that an answer matches its regular expression."""
    pattern = rf"{_TWO}:{_TWO}:{_TWO}"

    @sgl.function
    def clock(s: Any) -> None:
        s += "The time is " + sgl.gen("time", regex=pattern, temperature=0, max_tokens=32)

    assert re.fullmatch(pattern, clock.run()["time"])


def test_dtype_gen() -> None:
    """Check that values have the types that were asked for."""

    @sgl.function
    def facts(s: Any) -> None:
        s += "The word for a baby dog is " + sgl.gen("word", dtype=str) + ".\n"
        s += "A cat has this many legs: " + sgl.gen("legs", dtype=int) + "\n"
        s += "Half of five is " + sgl.gen("half", dtype=float) + "\n"
        s += "Snow is white: " + sgl.gen("white", dtype=bool) + "\n"

    state = facts.run(temperature=0)
    assert isinstance(json.loads(state["word"]), str)
    assert int(state["legs"]) == float(state["legs"])
    assert float(state["half"]) == float(state["half"])
    assert state["white"] in ("True", "False")


@sgl.function(num_api_spec_tokens=64)
def _portrait(s: Any) -> None:
    s += "Name: Ann Lee\nJob: baker\n\nAnother one.\nName:" + sgl.gen("name", stop="\n")
    s += "\nJob:" + sgl.gen("job", stop="\n") + "\n"


def test_completion_speculative() -> None:
    """Check that a program with `num_api_spec_tokens` gives every variable a value."""
    state = _portrait.run()
    assert "\n" not in state["name"] + state["job"]


def test_chat_completion_speculative() -> None:
    """Check the same in a turn of the assistant."""

    @sgl.function(num_api_spec_tokens=256)
    def portrait(s: Any) -> None:
        s += sgl.user("Invent a person, as 'Name: ...' and 'Job: ...' on two lines.")
        s += sgl.assistant("Name:" + sgl.gen("name", stop="\n") + "\nJob:" + sgl.gen("job"))

    state = portrait.run()
    assert isinstance(state["name"] + state["job"], str)


def test_hellaswag_select() -> tuple[float, float]:
    """Return accuracy and seconds of choosing the endings of sentences.

    The sentences are a few of this package's own, so that nothing is downloaded.
    """

    @sgl.function
    def end(s: Any, beginning: str, endings: list[str]) -> None:
        s += beginning + " " + sgl.select("ending", endings)

    rows = [{"beginning": beginning, "endings": endings} for beginning, endings in _ENDINGS]
    started = time.perf_counter()
    states = end.run_batch(rows, temperature=0)
    seconds = time.perf_counter() - started
    again = end.run_batch(rows, temperature=0, generator_style=True)
    chosen = [state["ending"] for state in states]
    assert chosen == [state["ending"] for state in again]
    right = [choice == endings[0] for choice, (_, endings) in zip(chosen, _ENDINGS, strict=True)]
    return sum(right) / len(right), seconds


def test_gen_min_new_tokens() -> None:
    """Check that an answer has at least as many tokens as were asked for."""

    @sgl.function
    def ask(s: Any) -> None:
        s += sgl.user("Say yes.")
        s += sgl.assistant(sgl.gen("answer", min_tokens=64, max_tokens=96))

    meta = ask.run().get_meta_info("answer")
    assert meta["completion_tokens"] >= 64, meta
