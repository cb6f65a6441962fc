"""Pictures in prompts for Qwen's models answer as transformers answers, however they are run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sgl_mlx.core import Generated, Image, Parallel, SamplingParams, Shift, Text
from sgl_mlx.errors import ImageError, PromptError
from sgl_mlx.models.loader import load
from sgl_mlx.runtime import assembly
from sgl_mlx.runtime.speculation import drafting
from tests.models.conftest import random_weights
from tests.models.mtp_toys import published, random_head
from tests.models.vision.conftest import read_golden, write_golden
from tests.models.vision.pictures import pictures
from tests.runtime.qwen import (
    CASES,
    NAMES,
    NEW,
    PARAMS,
    Open,
    ask,
    expected,
    expected_logprobs,
    opened,
    prompt,
    said,
    stats,
    tokens,
)
from tests.runtime.speculation.costs import CHEAP, FREE

DENSE = [name for name in NAMES if name != "qwen3_5"]
"""Models without recurrent layers."""
each_name = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("qwen")
    return {name: write_golden(parent / name, read_golden(name)) for name in NAMES}


@pytest.fixture
def open_qwen(folders: dict[str, Path]) -> Iterator[Open]:
    """`open_qwen(name, **options)`; shut down in the end."""
    yield from opened(folders)


@each_name
def test_a_batch_of_all_cases_is_answered_as_by_transformers(open_qwen: Open, name: str) -> None:
    engine = open_qwen(name)
    answers = ask(engine, *(prompt(engine, name, case) for case in CASES))
    assert [tokens(found) for found in answers] == [expected(name, case) for case in CASES]


@each_name
@pytest.mark.parametrize("case", CASES)
def test_so_is_each_alone_and_its_prompt_is_as_likely(
    open_qwen: Open, name: str, case: str
) -> None:
    engine = open_qwen(name)
    params = PARAMS.override(logprob_start_len=1)
    (found,) = ask(engine, prompt(engine, name, case), params=params)
    assert tokens(found) == expected(name, case)
    assert found.logprobs is not None
    scores = [score.logprob for score in found.logprobs.input]
    assert scores == pytest.approx(expected_logprobs(name, case), abs=2e-4)  # of a spread of 10


@each_name
@pytest.mark.parametrize("chunk", [1, 5, 16])
def test_chunks_that_cut_a_picture_change_nothing(open_qwen: Open, name: str, chunk: int) -> None:
    engine = open_qwen(name, chunked_prefill_size=chunk)
    answers = ask(engine, *(prompt(engine, name, case) for case in ("several", "20x100")))
    assert [tokens(found) for found in answers] == [
        expected(name, c) for c in ("several", "20x100")
    ]
    assert stats(engine)["encoded_images"] == 4


@each_name
def test_a_preempted_request_answers_the_same(open_qwen: Open, name: str) -> None:
    engine = open_qwen(name, max_total_tokens=110, chunked_prefill_size=7)
    cases = ["several", "40x60", "60x40", "20x100"]
    answers = ask(engine, *(prompt(engine, name, case) for case in cases))
    assert [tokens(found) for found in answers] == [expected(name, case) for case in cases]


@each_name
def test_a_second_turn_reuses_the_prefix_with_its_picture(open_qwen: Open, name: str) -> None:
    engine = open_qwen(name)
    first = prompt(engine, name, "several")
    (found,) = ask(engine, first, params=PARAMS.override(max_new_tokens=5))
    said_before = said(engine, tokens(found))
    (found,) = ask(engine, (*first, said_before), params=PARAMS.override(max_new_tokens=NEW - 5))
    assert tokens(found) == expected(name, "several")[5:]
    assert found.cached_tokens >= len(read_golden(name).cases["several"]["tokens"])
    assert stats(engine)["encoded_images"] == 3


@each_name
def test_forks_after_a_picture_share_it(open_qwen: Open, name: str) -> None:
    engine = open_qwen(name)
    first, expects = prompt(engine, name, "40x60"), expected(name, "40x60")
    forks = [(*first, said(engine, expects[:n])) for n in (1, 2, 5)]
    answers = ask(engine, *forks, params=PARAMS.override(max_new_tokens=NEW - 5))
    assert [tokens(found) for found in answers] == [expects[n : n + NEW - 5] for n in (1, 2, 5)]
    assert stats(engine)["encoded_images"] == 1


@each_name
def test_an_equal_picture_is_encoded_once(open_qwen: Open, name: str) -> None:
    engine = open_qwen(name, disable_radix_cache=True)
    for _ in range(2):
        (found,) = ask(engine, prompt(engine, name, "40x60"))
        assert tokens(found) == expected(name, "40x60")
    assert stats(engine)["encoded_images"] == stats(engine)["prepared_images"] == 1


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl"])
def test_a_picture_comes_back_from_disk(open_qwen: Open, tmp_path: Path, name: str) -> None:
    options = {"disk_cache_dir": str(tmp_path / "kv")}
    first = open_qwen(name, **options)
    long = (*prompt(first, name, "40x60"), said(first, [3, 7, 5, 9] * 25))
    (expects,) = ask(first, long)
    first.shutdown()
    second = open_qwen(name, **options)
    (found,) = ask(second, long)
    assert found.token_ids == expects.token_ids
    assert found.cached_tokens >= 64
    assert stats(second)["encoded_images"] == 0


@each_name
def test_text_alone_is_answered_in_a_batch_with_pictures(open_qwen: Open, name: str) -> None:
    engine = open_qwen(name)
    (alone,) = ask(engine, (said(engine, [3, 5, 9, 7]),))
    engine.flush_cache()
    text, picture = ask(engine, (said(engine, [3, 5, 9, 7]),), prompt(engine, name, "40x60"))
    assert tokens(text) == tokens(alone)
    assert tokens(picture) == expected(name, "40x60")


@each_name
def test_drafts_after_a_picture_are_verified_at_its_positions(
    open_qwen: Open, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(drafting, "kept_costs", lambda *_: FREE)
    monkeypatch.setattr(drafting, "Pace", lambda: None)  # drafts pay, whatever this machine does
    engine = open_qwen(name, speculate="tree")
    for _ in range(2):  # the second time the first answer is the draft
        (found,) = ask(engine, prompt(engine, name, "several"))
        assert tokens(found) == expected(name, "several")
    assert stats(engine)["accepted_tokens"] > 0


def test_a_prediction_head_guesses_after_pictures(
    open_qwen: Open, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafting, "kept_costs", lambda *_: FREE)
    monkeypatch.setattr(assembly, "measure_head", lambda *_: CHEAP)
    monkeypatch.setattr(drafting, "Pace", lambda: None)
    toy = read_golden("qwen3_5")
    text = toy.config["text_config"] | {"mtp_num_hidden_layers": 1}
    config = toy.config | {"text_config": text}
    head = published("qwen3_5", config, random_head("qwen3_5", load(folders["qwen3_5"]).model))
    weights = toy.weights | head
    folders["heads"] = write_golden(tmp_path / "heads", toy, weights=weights, config=config)
    engine = open_qwen("heads", speculate="mtp")
    answers = ask(engine, *(prompt(engine, "qwen3_5", case) for case in CASES))
    assert [tokens(found) for found in answers] == [expected("qwen3_5", case) for case in CASES]
    assert stats(engine)["drafted_tokens"] > 0


def test_marks_around_a_picture_count_once(open_qwen: Open) -> None:
    engine = open_qwen("qwen3_vl")
    (image,) = pictures("40x60")
    mark = "<|vision_start|><|image_pad|><|vision_end|>"
    params = SamplingParams(max_new_tokens=1)
    marked = engine.generate(f"t5{mark}t7", params, image_data=image)
    plain = engine.generate("t5<image>t7", params, image_data=image)
    wrapped = (Text("t5<|vision_start|>"), Image(image), Text("<|vision_end|>t7"))
    (found,) = ask(engine, wrapped, params=params)
    counts = marked["meta_info"]["prompt_tokens"], plain["meta_info"]["prompt_tokens"]
    assert counts == (found.prompt_tokens,) * 2


@pytest.mark.parametrize("name", DENSE)
def test_a_branch_or_no_gap_after_pictures_is_as_no_cut(open_qwen: Open, name: str) -> None:
    """A single branch, and a gap of nothing, leave every token at its position."""
    engine = open_qwen(name)
    *before, last = prompt(engine, name, "several")
    assert isinstance(last, Generated)
    begin, rest = said(engine, last.token_ids[:1]), said(engine, last.token_ids[1:])
    branch = (*before, Parallel(((begin,),)), rest)
    shown = (*before[:3], Parallel(((*before[3:], begin),)), rest)
    shifted = (*before, begin, Shift(0), rest)
    answers = ask(engine, branch, shown, shifted)
    assert [tokens(found) for found in answers] == [expected(name, "several")] * 3


def test_recurrent_layers_still_refuse_branches_and_gaps(open_qwen: Open) -> None:
    engine = open_qwen("qwen3_5")
    (image,) = pictures("40x60")
    for cut in (Parallel(((Text("t5"),), (Image(image), Text("t6")))), Shift(4)):
        with pytest.raises(PromptError, match="recurrent layers"):
            engine.submit((Image(image), Text("t3"), cut, Text("t7")), PARAMS).result()


def test_a_picture_that_is_too_thin_is_refused(open_qwen: Open) -> None:
    engine = open_qwen("qwen3_vl")
    (thin,) = pictures("1x300")
    with pytest.raises(ImageError, match="200 times"):
        engine.submit((Image(thin), Text("t3")), PARAMS).result()


EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "rope_theta": 1000.0,
}


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_vl"])
def test_models_of_experts_take_pictures(
    open_qwen: Open, folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    toy = read_golden(name)
    text = toy.config["text_config"] | EXPERTS | {"model_type": f"{name}_moe_text"}
    config = toy.config | {"text_config": text, "model_type": f"{name}_moe"}
    eyes = {key: values for key, values in toy.weights.items() if "visual" in key}
    weights = random_weights(config | {"tie_word_embeddings": False}) | eyes
    folders["experts"] = write_golden(tmp_path / "experts", toy, weights=weights, config=config)
    engine = open_qwen("experts")
    prompts = [prompt(engine, name, case) for case in ("40x60", "60x40", "several")]
    together = ask(engine, *prompts)
    engine.flush_cache()
    assert [tokens(ask(engine, one)[0]) for one in prompts] == [tokens(x) for x in together]
    likely = [found.logprobs.output[0].logprob for found in together if found.logprobs]
    assert len(set(likely)) == 3  # each picture is seen
