"""`token_ids_logprob` gives the logprobs that the model's own alternatives have."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

TEXTS: Any = ["xyz xyz", "ba, ab cd", "aaab 123"]
GREEDY = {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True}


def asked(url: str, client: httpx.Client, **body: Any) -> Any:
    given = {"sampling_params": GREEDY, "return_logprob": True, **body}
    answer = client.post(f"{url}/generate", json=given)
    assert answer.status_code == 200, answer.text
    return answer.json()


def likeliest(rows: list[Any]) -> dict[tuple[int, int], float]:
    """The logprob of each alternative by its position and token."""
    return {(i, token): value for i, row in enumerate(rows) for value, token, _ in row or ()}


@pytest.mark.parametrize("start", [0, 2, -1])
def test_scores_are_those_of_the_alternatives(
    toy_url: str, client: httpx.Client, start: int
) -> None:
    """The alternatives that the engine lists are asked for by their ids."""
    body = {"logprob_start_len": start, "top_logprobs_num": 3}
    for text in TEXTS:
        told = asked(toy_url, client, text=text, **body)["meta_info"]
        kinds = ("input", "output")
        tops = {kind: likeliest(told[f"{kind}_top_logprobs"]) for kind in kinds}
        ids = sorted({token for top in tops.values() for _, token in top})
        scored = asked(toy_url, client, text=text, token_ids_logprob=ids, **body)["meta_info"]
        compared = 0
        for kind in kinds if start >= 0 else ("output",):
            rows = scored[f"{kind}_token_ids_logprobs"]
            assert len(rows) == len(told[f"{kind}_token_logprobs"])
            found = likeliest(rows)
            for place, value in tops[kind].items():
                assert found[place] == pytest.approx(value, abs=2e-4)
                compared += 1
        assert compared >= 3 * 4


def test_each_prompt_has_its_own_ids_and_each_sample_its_own_scores(
    toy_url: str, client: httpx.Client
) -> None:
    sampling = {"max_new_tokens": 2, "n": 2, "ignore_eos": True}
    answers = asked(
        toy_url,
        client,
        text=TEXTS[:2],
        token_ids_logprob=[[40, 41], [50]],
        sampling_params=sampling,
    )
    ids = [[[t for _, t, _ in row] for row in rows(answer)] for answer in answers]
    assert ids == [[[40, 41]] * 2, [[40, 41]] * 2, [[50]] * 2, [[50]] * 2]


def rows(answer: Any) -> list[Any]:
    return list(answer["meta_info"]["output_token_ids_logprobs"])


def test_the_first_token_of_a_prompt_of_ids_has_no_score(
    toy_url: str, client: httpx.Client
) -> None:
    told = asked(
        toy_url, client, input_ids=[1, 40, 41], token_ids_logprob=[7], logprob_start_len=0
    )["meta_info"]
    first, *others = told["input_token_ids_logprobs"]
    assert first is None
    assert [row[0][1] for row in others] == [7, 7]


def test_more_scores_than_a_request_may_have_prompts_are_refused(
    toy_url: str, client: httpx.Client
) -> None:
    body = {"text": "a" * 300, "token_ids_logprob": [1, 2, 3, 4, 5], "logprob_start_len": 0}
    answer = client.post(f"{toy_url}/generate", json={**body, "sampling_params": GREEDY})
    assert answer.status_code == 400
    assert "at most 1024" in answer.json()["error"]["message"]
