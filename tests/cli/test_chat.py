from __future__ import annotations

import pytest

from sgl_mlx.core import Generated, Image, Text
from sgl_mlx.errors import PromptError, TokenizerError


def test_answers_until_the_input_ends(sgl, use) -> None:
    use(["Hello.", "Fine."])
    result = sgl("chat", stdin="Hi\nHow are you?\n")
    assert result.exit_code == 0
    assert result.stdout.index("Hello.") < result.stdout.index("Fine.")


def test_every_turn_continues_the_text_of_the_turn_before(sgl, use) -> None:
    backend = use(["Hello.", "Fine."])
    sgl("chat", stdin="Hi\nHow are you?\n")
    first, second = backend.prompts
    assert second.startswith(first + "Hello.")
    assert second.endswith("<user>How are you?</user>\n<assistant>")


def test_past_answers_keep_the_tokens_the_model_chose(sgl, use) -> None:
    backend = use(["Hello you.", "Fine."])
    sgl("chat", stdin="Hi\nHow are you?\n")
    kept = [part for part in backend.calls[1].prompt if isinstance(part, Generated)]
    assert [part.text for part in kept] == ["Hello you."]
    assert len(kept[0].token_ids) == 2


def test_reset_forgets_the_turns(sgl, use) -> None:
    backend = use("Yes.")
    sgl("chat", "--system", "Be brief.", stdin="One\n/reset\nTwo\n")
    expected = "<system>Be brief.</system>\n<user>{}</user>\n<assistant>"
    assert backend.prompts == [expected.format("One"), expected.format("Two")]


def test_exit_leaves_at_once(sgl, use) -> None:
    backend = use("Yes.")
    assert sgl("chat", stdin="/exit\nHi\n").exit_code == 0
    assert backend.prompts == []
    assert backend.stopped


def test_empty_lines_ask_nothing(sgl, use) -> None:
    backend = use("Yes.")
    sgl("chat", stdin="\n   \n")
    assert backend.prompts == []


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("/help", "/reset"),
        ("/stats", "9 prompt tokens, 4 of them cached; 3 generated in 2 forward passes"),
        ("/nonsense", "unknown command /nonsense"),
    ],
)
def test_commands_answer_without_the_model(sgl, use, typed: str, shown: str) -> None:
    backend = use("Yes.")
    assert shown in sgl("chat", stdin=typed + "\n").stdout
    assert backend.prompts == []


def test_a_turn_that_fails_is_forgotten_and_the_conversation_goes_on(sgl, use) -> None:
    backend = use(["Hello.", PromptError("too long: 9,000 of 8,192 tokens"), "Fine."])
    result = sgl("chat", stdin="Hi\nWar and Peace\nHow are you?\n")
    assert "too long: 9,000 of 8,192 tokens" in result.stderr
    assert "Fine." in result.stdout
    assert "War and Peace" not in backend.prompts[-1]
    assert backend.prompts[-1].startswith(backend.prompts[0] + "Hello.")


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(sgl, use, monkeypatch) -> None:
    shown: list[str] = []

    def interrupted_once(text: str, err: bool = False) -> None:
        shown.append(text)
        if len(shown) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("sgl_mlx.cli.output.write", interrupted_once)
    backend = use(["A long answer.", "Fine."], piece=6)
    assert sgl("chat", stdin="Hi\nGo on\n").exit_code == 0
    assert backend.prompts[1].startswith(backend.prompts[0] + "A long answe</assistant>")


def test_a_template_that_rewrites_the_past_is_followed() -> None:
    from sgl_mlx.cli.conversation import Conversation
    from sgl_mlx.core import SamplingParams
    from sgl_mlx.testing import ScriptedBackend

    def only_the_last_turn(messages, add_generation_prompt) -> str:
        return f"{len(messages)}: {messages[-1]['content']} > "

    backend = ScriptedBackend("ok", render_chat=only_the_last_turn)
    talk = Conversation(backend, SamplingParams())
    talk.ask("a", show=lambda piece: None)
    talk.ask("b", show=lambda piece: None)
    assert backend.prompts == ["1: a > ", "3: b > "]


# -- pictures -------------------------------------------------------------------------------------


def pictures_of(prompt) -> list[str]:
    return [part.source for part in prompt if isinstance(part, Image)]


def test_pictures_are_shown_with_the_first_question_and_stay(sgl, use, photo) -> None:
    backend = use(["A cat.", "Grey."])
    sgl("chat", "--image", photo, stdin="What is it?\nWhich colour?\n")
    first, second = (call.prompt for call in backend.calls)
    assert first[:2] == (Text("<user>"), Image(photo))
    assert backend.prompts[0].endswith("\nWhat is it?</user>\n<assistant>")
    assert second[: len(first)] == first
    assert pictures_of(second) == [photo]


def test_a_picture_can_be_shown_later(sgl, use, photo) -> None:
    backend = use(["Hello.", "A cat."])
    result = sgl("chat", stdin=f"Hi\n/image {photo}\nWhat is it?\nSure?\n")
    assert "shown with the next question" in result.stdout
    assert [pictures_of(call.prompt) for call in backend.calls] == [[], [photo], [photo]]


def test_a_wrong_picture_is_told_and_nothing_is_shown(sgl, use) -> None:
    backend = use("Hello.")
    result = sgl("chat", stdin="/image nowhere.png\n/image\nHi\n")
    assert result.exit_code == 0
    assert "nowhere.png" in result.stderr
    assert "name the picture: /image FILE" in result.stdout
    assert pictures_of(backend.calls[0].prompt) == []


def test_a_picture_of_a_turn_that_fails_is_forgotten_with_it(sgl, use, photo) -> None:
    backend = use([PromptError("scripted takes no pictures"), "Fine."])
    result = sgl("chat", "--image", photo, stdin="What is it?\nHi\n")
    assert "takes no pictures" in result.stderr
    assert pictures_of(backend.calls[1].prompt) == []


def test_reset_forgets_the_pictures(sgl, use, photo) -> None:
    backend = use("Yes.")
    sgl("chat", "--image", photo, stdin="/reset\nHi\n")
    assert pictures_of(backend.calls[0].prompt) == []


def test_a_template_that_rewrites_the_past_gets_every_picture_again(photo) -> None:
    from sgl_mlx.cli.conversation import Conversation
    from sgl_mlx.core import SamplingParams
    from sgl_mlx.testing import ScriptedBackend

    def numbered(messages, add_generation_prompt) -> str:
        return f"{len(messages)}:" + "".join(m["content"] for m in messages)

    backend = ScriptedBackend("ok", render_chat=numbered)
    talk = Conversation(backend, SamplingParams())
    talk.ask("a", show=lambda piece: None, images=[photo])
    talk.ask("b", show=lambda piece: None, images=[photo])
    assert [pictures_of(call.prompt) for call in backend.calls] == [[photo], [photo, photo]]


# -- templates ------------------------------------------------------------------------------------


def test_a_missing_template_is_said_before_the_first_question(sgl, use) -> None:
    backend = use("Yes.")
    backend._render_chat = None
    result = sgl("chat", stdin="Hi\n")
    assert result.exit_code == 1
    assert "no chat template" in result.stderr
    assert result.stdout == ""


def test_where_a_template_has_no_system_turns_the_question_begins_with_it(sgl, use) -> None:
    def without_system(messages, add_generation_prompt) -> str:
        if any(m["role"] == "system" for m in messages):
            raise TokenizerError("chat template rejects messages: no system role")
        return "".join(f"<{m['role']}>{m['content']}\n" for m in messages)

    backend = use("Yes.")
    backend._render_chat = without_system
    result = sgl("chat", "--system", "Be brief.", stdin="One\nTwo\n/reset\nThree\n")
    assert result.exit_code == 0
    first = "<user>Be brief.\n\nOne\n"
    assert backend.prompts[0] == first
    assert backend.prompts[1].startswith(first)
    assert backend.prompts[2] == "<user>Be brief.\n\nThree\n"


def test_a_template_that_rejects_a_later_turn_does_not_end_the_conversation(sgl, use) -> None:
    def one_turn(messages, add_generation_prompt) -> str:
        if len(messages) > 1:
            raise TokenizerError("chat template rejects messages: one turn only")
        return messages[0]["content"]

    backend = use("Yes.")
    backend._render_chat = one_turn
    result = sgl("chat", stdin="One\nTwo\n/reset\nThree\n")
    assert (result.exit_code, backend.prompts) == (0, ["One", "Three"])
    assert "one turn only\n/reset starts a new conversation" in result.stderr
