"""Parts of the self-check on their own: source, unrolled forks, shrinking and near-ties."""

from __future__ import annotations

from pathlib import Path

import pytest

from sgl_mlx.core import SamplingParams, Text
from sgl_mlx.selfcheck.draw import Abilities, draw
from sgl_mlx.selfcheck.recording import Request
from sgl_mlx.selfcheck.shrink import Case, shrink
from sgl_mlx.selfcheck.source import source_of
from sgl_mlx.selfcheck.statements import BY_KV, Ask, Fork, Program, Say, lanes
from sgl_mlx.selfcheck.ties import Ties
from sgl_mlx.selfcheck.ways import WAYS
from tests.selfcheck.models import engines_on

ABLE = Abilities(chat=True, pictures=True)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_the_source_of_any_program_is_python(way) -> None:
    for seed in range(100):
        program = draw(seed, ABLE)
        assert program == draw(seed, ABLE)
        compile(source_of([program], way, "model", [[0]], {"kv_bits": 8}), "source", "exec")


def test_forks_are_unrolled_but_those_joined_by_keys_and_values() -> None:
    a, b, c = (Say(text) for text in "abc")
    joined = Fork(((a,), (b,)), BY_KV)
    assert list(lanes((a, Fork(((b,), (c, Fork(((a,),)))))))) == [(a,), (a, b), (a, c), (a, c, a)]
    assert list(lanes((a, joined, Fork(((c,),)), b))) == [(a, joined, b), (a, joined, c)]


def test_a_case_is_shrunk_to_what_fails() -> None:
    def fails(case: Case) -> bool:
        return any("max_tokens" in repr(p.body) and "Q" in repr(p.body) for p in case.programs)

    body = (Say("some text with a Q"), Ask("v", {"max_tokens": 8, "top_p": 0.8}), Say("more"))
    case = Case.of([[Program((Say("a"),)), Program(body, {"seed": 3})]] * 2)
    least = shrink(case, fails)
    assert least.programs == (Program((Say("Q"), Ask("v", {"max_tokens": 1})), {"seed": 0}),)
    assert least.rounds == ((0,),)


def test_two_tokens_are_a_tie_only_within_the_tolerance(tmp_path: Path) -> None:
    params = SamplingParams(
        max_new_tokens=1, temperature=0, return_logprob=True, top_logprobs_num=2
    )
    with engines_on("plain", tmp_path) as engines:
        [found] = engines.alone().submit((Text("abc"),), params).result()
        assert found.logprobs is not None
        first, second = found.logprobs.output_top[0]
        rivals = {first.token_id, second.token_id}
        apart = (first.logprob or 0) - (second.logprob or 0)
        ties = Ties(engines.alone())
        for tolerance, tie in ((0.4 * apart, False), (0.6 * apart, True)):
            ties.tolerance = tolerance
            assert ties.is_tie(Request((Text("abc"),), params), 0, (), rivals) is tie
