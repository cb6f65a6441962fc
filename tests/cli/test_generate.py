from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sgl_mlx.core import (
    Completion,
    FinishReason,
    Image,
    Logprobs,
    Prompt,
    SamplingParams,
    Text,
    TokenLogprob,
)
from tests.models.vision.test_image import png_header


def test_prints_the_answer_alone(sgl, use) -> None:
    use(" blue and wide.")
    assert sgl("generate", "The sea is").output == " blue and wide.\n"


def test_reads_the_prompt_from_standard_input(sgl, use) -> None:
    backend = use()
    assert sgl("generate", "-", stdin="Grüße, 世界").exit_code == 0
    assert backend.prompts == ["Grüße, 世界"]


def test_bytes_that_are_no_text_are_refused(sgl, use) -> None:
    backend = use()
    result = sgl("generate", "-", stdin=b"ab\xff")
    assert result.exit_code == 1
    assert "not valid UTF-8" in result.stderr
    assert "position 2" in result.stderr
    assert backend.calls == []


def test_chat_uses_the_models_template(sgl, use) -> None:
    backend = use()
    sgl("generate", "--chat", "Hi")
    assert backend.prompts == ["<user>Hi</user>\n<assistant>"]


def test_sampling_options_reach_the_request(sgl, use) -> None:
    backend = use()
    options = "--max-tokens 7 --temperature 0 --top-p 0.5 --top-k 3 --min-p 0.1 --seed 5"
    rest = "--stop X --stop YZ --frequency-penalty 1 --presence-penalty -1 --ignore-eos"
    sgl("generate", "x", *options.split(), *rest.split(), "--repetition-penalty", "1.5")
    params = backend.calls[0].params
    assert (params.max_new_tokens, params.temperature, params.top_p) == (7, 0.0, 0.5)
    assert (params.top_k, params.min_p, params.seed) == (3, 0.1, 5)
    assert (params.stop, params.ignore_eos) == (("X", "YZ"), True)
    assert (params.frequency_penalty, params.presence_penalty) == (1.0, -1.0)
    assert params.repetition_penalty == 1.5


def test_values_out_of_range_are_refused_before_a_model_is_loaded(sgl) -> None:
    result = sgl("generate", "x", "--top-p", "1.5")
    assert result.exit_code == 1
    assert result.stderr == "Error: top_p must be a number in (0, 1], got 1.5\n"


def test_json_is_one_document(sgl, use) -> None:
    use(" green")
    document = json.loads(sgl("generate", "--json", "Grass is").stdout)
    assert document["text"] == " green"
    assert document["variables"] == {}
    assert document["stats"]["cached_tokens"] == 4


def test_streamed_text_keeps_out_of_the_json_document(sgl, use) -> None:
    use(" green and tall")
    result = sgl("generate", "--json", "--stream", "Grass is")
    assert result.stderr == " green and tall\n"
    assert json.loads(result.stdout)["text"] == " green and tall"


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_streaming_changes_when_but_not_what_is_printed(sgl, use, stream: str) -> None:
    use(" one two three four")
    assert sgl("generate", stream, "Count:").output == " one two three four\n"


# -- constraints ----------------------------------------------------------------------------------

SCHEMA = '{"type": "integer"}'
GRAMMAR = 'start: "yes" | "no"'


def test_a_regex_reaches_the_request(sgl, use) -> None:
    backend = use()
    assert sgl("generate", "x", "--regex", "[ab]+").exit_code == 0
    assert backend.calls[0].params.regex == "[ab]+"


def test_a_schema_is_a_file_or_written_out(sgl, use, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(SCHEMA, "utf-8")
    for schema in (SCHEMA, str(file)):
        backend = use()
        assert sgl("generate", "x", "--json-schema", schema).exit_code == 0
        assert backend.calls[0].params.json_schema == SCHEMA


def test_a_grammar_is_a_file(sgl, use, tmp_path: Path) -> None:
    file = tmp_path / "answer.lark"
    file.write_text(GRAMMAR, "utf-8")
    backend = use()
    assert sgl("generate", "x", "--grammar", str(file)).exit_code == 0
    assert backend.calls[0].params.grammar == GRAMMAR


@pytest.mark.parametrize(
    ("option", "content", "message"),
    [
        ("--json-schema", None, "cannot read"),
        ("--grammar", None, "cannot read"),
        ("--grammar", b"\xff", "not valid UTF-8"),
        ("--json-schema", b"{type: integer}", "is not JSON: Expecting property name"),
        ("--json-schema", b"[1]", "is not a JSON schema"),
    ],
)
def test_a_file_that_will_not_do_is_refused_by_name(
    sgl, tmp_path: Path, option: str, content: bytes | None, message: str
) -> None:
    file = tmp_path / "given"
    if content is not None:
        file.write_bytes(content)
    result = sgl("generate", "x", option, str(file))
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.stderr
    assert "given" in result.stderr
    assert message in result.stderr


@pytest.mark.parametrize(
    ("given", "both"),
    [
        (["--regex", "a", "--choices", "a,b"], "--regex and --choices"),
        (["--json-schema", SCHEMA, "--regex", "a"], "--regex and --json-schema"),
    ],
)
def test_constraints_exclude_each_other(sgl, given: list[str], both: str) -> None:
    result = sgl("generate", "x", *given)
    assert result.exit_code == 2
    assert f"{both} exclude each other" in result.stderr


@pytest.mark.parametrize(
    ("options", "heals"), [([], True), (["--no-token-healing"], False), (["--chat"], False)]
)
def test_the_prompt_heals_unless_it_is_a_chat_or_one_says_no(
    sgl, use, options: list[str], heals: bool
) -> None:
    backend = use()
    sgl("generate", "http:", *options)
    assert backend.calls[0].params.token_healing is heals


# -- choices --------------------------------------------------------------------------------------


def test_the_likeliest_choice_is_printed(sgl, use) -> None:
    backend = use(logprobs={" good": -1.0, " b, c": -0.5})
    result = sgl("generate", "It is", "--choices", 'bad, good," b, c"')
    assert result.output == " b, c\n"
    assert backend.calls[0].choices == ("bad", " good", " b, c")


def test_choices_show_their_scores(sgl, use) -> None:
    use(logprobs={"good": -1.0, "not bad": [-2.0, -4.0]})
    result = sgl("generate", "It is", "--choices", "good,not bad", "--logprobs")
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["good"],
        ["-1.000", "'good'", "'good'", "-1.000"],
        ["-3.000", "'not", "bad'", "'not'", "-2.000", "'", "bad'", "-4.000"],
    ]


def test_choices_as_json_hold_their_scores_when_asked_for(sgl, use) -> None:
    arguments = ["generate", "It is", "--choices", "good,bad", "--json"]
    use(logprobs={"good": -1.0})
    document = json.loads(sgl(*arguments, "--logprobs").stdout)
    assert document["text"] == "good"
    assert document["logprobs"]["choices"] == ["good", "bad"]
    assert document["logprobs"]["normalized_prompt_logprobs"] == [-1.0, -10.0]
    use()
    assert "logprobs" not in json.loads(sgl(*arguments).stdout)


@pytest.mark.parametrize("choices", ["", "a,,b", ",", '"a'])
def test_choices_that_are_empty_or_no_list_are_refused(sgl, choices: str) -> None:
    result = sgl("generate", "x", "--choices", choices)
    assert result.exit_code == 2
    assert "Invalid value for '--choices'" in result.stderr


def test_choices_leave_no_room_for_sampling(sgl) -> None:
    result = sgl("generate", "x", "--choices", "a,b", "--max-tokens", "4")
    assert result.exit_code == 2
    assert "--max-tokens has no effect with --choices" in result.stderr


# -- log-probabilities ----------------------------------------------------------------------------


def scored(call: Prompt, params: SamplingParams) -> Completion:
    likely, rare = TokenLogprob(-0.5, 1, " a"), TokenLogprob(-2.25, 2, "[b]")
    forced = TokenLogprob(None, 3, "c")
    top = ((likely, rare)[: params.top_logprobs_num], ()) if params.top_logprobs_num else ()
    logprobs = Logprobs(output=(likely, forced), output_top=top)
    return Completion(" ac", (1, 3), FinishReason("stop"), 1, 0, logprobs=logprobs)


@pytest.fixture
def with_logprobs(use, monkeypatch: pytest.MonkeyPatch) -> Any:
    backend = use()
    complete = "_complete"
    monkeypatch.setattr(
        backend, complete, lambda call, params, on_event: (scored(call.prompt, params),)
    )
    return backend


def test_logprobs_are_printed_a_line_a_token(sgl, with_logprobs) -> None:
    plain = sgl("generate", "x", "--logprobs").stdout.splitlines()
    assert [line.split() for line in plain[1:]] == [["-0.500", "'", "a'"], ["forced", "'c'"]]
    params = with_logprobs.calls[0].params
    assert (params.return_logprob, params.top_logprobs_num) == (True, 0)


def test_logprobs_come_with_so_many_alternatives(sgl, with_logprobs) -> None:
    line = sgl("generate", "x", "--logprobs", "2").stdout.splitlines()[1]
    assert line.split("' a'", 1)[1].split() == ["'", "a'", "-0.500", "'[b]'", "-2.250"]
    assert with_logprobs.calls[0].params.return_text_in_logprobs


def test_logprobs_are_in_the_json_document_when_asked_for(sgl, use, with_logprobs) -> None:
    document = json.loads(sgl("generate", "x", "--json", "--logprobs=1").stdout)
    assert document["logprobs"]["output_token_logprobs"] == [[-0.5, 1, " a"], [None, 3, "c"]]
    use()
    assert "logprobs" not in json.loads(sgl("generate", "x", "--json").stdout)


def test_logprobs_before_the_prompt_say_what_to_write(sgl) -> None:
    result = sgl("generate", "--logprobs", "The sea")
    assert result.exit_code == 2
    assert "put PROMPT before --logprobs" in result.stderr


# -- pictures -------------------------------------------------------------------------------------


def test_pictures_stand_before_the_prompt_in_the_users_turn(sgl, use, photo: str) -> None:
    backend = use(" A cat.")
    result = sgl("generate", "--image", photo, "--image", photo, "What are these?")
    assert result.output == " A cat.\n"
    assert backend.calls[0].prompt == (
        Text("<user>"),
        Image(photo),
        Text("\n"),
        Image(photo),
        Text("\nWhat are these?</user>\n<assistant>"),
    )
    assert backend.calls[0].params.token_healing is False


def test_a_prompt_that_says_where_pictures_stand_is_taken_as_it_is(sgl, use, photo: str) -> None:
    backend = use(" A cat.")
    sgl("generate", "--image", photo, "USER: <image> What is it? ASSISTANT:")
    before, after = Text("USER: "), Text(" What is it? ASSISTANT:")
    assert backend.calls[0].prompt == (before, Image(photo), after)


def test_so_is_one_for_the_chat_template(sgl, use, photo: str) -> None:
    backend = use(" Two cats.")
    sgl("generate", "--chat", "--image", photo, "--image", photo, "Is <image> like <image>?")
    before, after = Text("<user>Is "), Text("?</user>\n<assistant>")
    like = (Image(photo), Text(" like "), Image(photo))
    assert backend.calls[0].prompt == (before, *like, after)


def test_as_many_pictures_as_places_are_asked_for(sgl, use, photo: str) -> None:
    use()
    result = sgl("generate", "--image", photo, "<image> and <image>?")
    assert result.exit_code == 1
    assert "says <image> 2 times, and there are 1 pictures" in result.stderr
    assert sgl("generate", "What is <image> in HTML?").exit_code == 0


def test_choices_are_made_about_a_picture(sgl, use, photo: str) -> None:
    backend = use(logprobs={"cat": -0.1})
    options = ["--image", photo, "--choices", "cat,dog"]
    assert sgl("generate", *options, "What is it? ").output == "cat\n"
    assert Image(photo) in backend.calls[0].prompt


def test_a_wrong_picture_is_refused_before_a_model_is_loaded(sgl, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    (tmp_path / "bomb.png").write_bytes(png_header(12_000, 12_000))
    for path in (tmp_path / "nowhere.png", tmp_path / "notes.png", tmp_path / "bomb.png"):
        result = sgl("generate", "--image", str(path), "--model", "nowhere", "What is it?")
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: ")
        assert path.name in result.stderr


def test_a_template_that_loses_the_picture_is_an_error(sgl, use, photo: str) -> None:
    backend = use()
    backend._render_chat = lambda messages, add_generation_prompt: "Hello."
    result = sgl("generate", "--image", photo, "What is it?")
    assert result.exit_code == 1
    assert "wrote places for 0 pictures, and 1 are given" in result.stderr
