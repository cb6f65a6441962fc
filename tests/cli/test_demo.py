from __future__ import annotations

from sgl_mlx.cli import demo_programs


def test_shows_the_text_then_what_each_program_cost(sgl, use) -> None:
    use("walk by the river", logprobs={"evening": -0.1, "bad": -0.1})
    result = sgl("demo")
    assert result.exit_code == 0
    text, table = result.stdout.split("tokens of")
    assert text.count("In the evening, walk by the river.") == len(demo_programs.CITIES)
    assert "Best: the evening." in text
    assert text.count("bad: ") == len(demo_programs.REVIEWS)
    assert "a day in Kyoto" in table
    assert "4 reviews" in table


def test_the_table_shows_what_happened_since_the_row_before(sgl, use, monkeypatch) -> None:
    backend = use("walk", logprobs={"evening": -0.1})
    totals = iter([10, 25, 25])
    monkeypatch.setattr(
        backend, "get_server_info", lambda: {"stats": {"prompt_tokens": next(totals)}}
    )
    table = sgl("demo").stdout.split("tokens of")[1]
    lines = [line.split() for line in table.splitlines()]
    figures = {" ".join(words[:-5]): words[-5] for words in lines if len(words) > 5}
    assert figures["a day in Lisbon"] == "10"
    assert figures["a day in Kyoto"] == "15"
    assert figures["4 reviews"] == "0"
    assert figures["together"] == "25"
