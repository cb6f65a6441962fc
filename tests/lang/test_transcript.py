"""The text of a stream: how parts merge and what forks own."""

from __future__ import annotations

from functools import partial

from sgl_mlx.core import Completion, FinishReason, Generated, Parallel, Shift, Text
from sgl_mlx.lang.templates.chat_template import get_chat_template
from sgl_mlx.lang.templates.turns import Opening
from sgl_mlx.lang.transcript import Transcript, merged


def new_transcript() -> Transcript:
    return Transcript(partial(get_chat_template, "default"))


def completion(text: str) -> Completion:
    return Completion(text, (1, 2), FinishReason("stop"), 0, 0)


def test_neighbouring_texts_merge_and_empty_ones_go() -> None:
    parts = [Text("a"), Text(""), Text("b"), Generated("c", (1,)), Generated(""), Text("d")]
    assert merged(parts) == (Text("ab"), Generated("c", (1,)), Text("d"))


def test_a_fork_owns_what_came_after_it() -> None:
    parent = new_transcript()
    parent.append("shared")
    child = parent.fork()
    child.append(" own")
    assert child.prompt() == (Text("shared own"),)
    assert child.own_prompt() == (Text(" own"),)
    assert parent.text == "shared"


def test_a_gap_is_part_of_the_fork_alone() -> None:
    parent = new_transcript()
    parent.append("shared")
    child = parent.fork(gap=8)
    assert child.prompt() == (Text("shared"), Shift(8))
    assert parent.prompt() == (Text("shared"),)


def test_branches_read_one_after_another() -> None:
    transcript = new_transcript()
    transcript.append_parallel([(Text("a"), Generated("b")), (Text("c"),)])
    assert transcript.text == "abc"
    assert isinstance(transcript.prompt()[0], Parallel)


class Owing:
    """A template whose blank before the answer is written by the program or the model."""

    stop = ()
    default_system_prompt = None

    def begin(self, closed: tuple[str, ...], role: str) -> Opening:
        return Opening("[", " ")

    def end(self, closed: tuple[str, ...], role: str) -> str:
        return "]"


def test_what_a_turn_owes_comes_before_text_but_is_left_to_the_model() -> None:
    written, generated, empty = (Transcript(Owing) for _ in range(3))
    for transcript in (written, generated, empty):
        transcript.begin("assistant")
    written.append("text")
    written.append(" more")
    generated.append_generated(completion("text"))
    for transcript in (written, generated, empty):
        transcript.end()
    assert [t.text for t in (written, generated, empty)] == ["[ text more]", "[text]", "[]"]
    assert written.messages == [{"role": "assistant", "content": "text more"}]
