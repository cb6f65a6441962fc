from __future__ import annotations

import json

import pytest


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
    assert result.stderr == "Error: top_p must be in (0, 1], got 1.5\n"


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
