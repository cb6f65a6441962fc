"""Videos in prompts for Qwen's models answer as transformers answers, however they are run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sgl_mlx as sgl
from sgl_mlx.core import Completion, Image, Parallel, Prompt, Text, Video
from sgl_mlx.errors import ContextLengthError, ImageError, LimitError
from sgl_mlx.limits import Limits
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.speculation import drafting
from tests.models.conftest import random_weights
from tests.models.vision.clips import write_film, write_watching
from tests.models.vision.conftest import GOLDENS, read_golden
from tests.models.vision.pictures import film, picture
from tests.models.vision.qwen.films import FILMS
from tests.runtime.qwen import NAMES, PARAMS, Open, ask, opened, said, stats, tokens
from tests.runtime.speculation.costs import FREE
from tests.runtime.vision.test_qwen import EXPERTS

NEW = 6
FEW = PARAMS.override(max_new_tokens=NEW)
STAMPED = [name for name in NAMES if not name.startswith("qwen2")]
each_name = pytest.mark.parametrize("name", NAMES)
Films = dict[str, Path]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("watching")
    return {name: write_watching(parent / name, name) for name in NAMES}


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Films:
    parent = tmp_path_factory.mktemp("films")
    return {
        case: write_film(parent / case, shown.frames(), shown.milliseconds)
        for case, shown in FILMS.items()
    }


@pytest.fixture
def open_qwen(folders: dict[str, Path]) -> Iterator[Open]:
    """`open_qwen(name, **options)`; shut down in the end."""
    yield from opened(folders)


def golden(name: str, case: str, what: str) -> NDArray[Any]:
    with np.load(GOLDENS / "qwen_videos.npz") as file:
        return file[f"{name}/{case}/{what}"]


def prompt(engine: Engine, films: Films, name: str, case: str) -> Prompt:
    """The prompt of a golden: three tokens, the video, and three tokens."""
    ids = golden(name, case, "tokens").tolist()
    shown = Video(str(films[case]), FILMS[case].count)
    return said(engine, ids[:3]), shown, said(engine, ids[-3:])


def expected(name: str, case: str) -> list[int]:
    found: list[int] = golden(name, case, "continued").tolist()
    return found


def patches(name: str, case: str) -> int:
    """How many pictures are encoded for a video: one, or one for each pair of frames."""
    return int(golden(name, case, "grid")[0]) if name in STAMPED else 1


def asked(engine: Engine, *prompts: Prompt, new: int = NEW) -> list[Completion]:
    return ask(engine, *prompts, params=FEW.override(max_new_tokens=new))


@each_name
def test_videos_alone_are_answered_as_by_transformers(
    open_qwen: Open, films: Films, name: str
) -> None:
    engine = open_qwen(name)
    for case in FILMS:
        params = FEW.override(logprob_start_len=1)
        (found,) = ask(engine, prompt(engine, films, name, case), params=params)
        assert tokens(found) == expected(name, case)
        ids = golden(name, case, "tokens")
        assert found.prompt_tokens == len(ids)
        assert found.logprobs is not None
        logits = golden(name, case, "logits").astype(np.float64)
        every = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        likely = [every[i, token] for i, token in enumerate(ids[1:])]
        assert [s.logprob for s in found.logprobs.input] == pytest.approx(likely, abs=2e-4)


@each_name
@pytest.mark.parametrize("chunk", [5, 1000])
def test_so_are_they_in_a_batch_in_chunks_and_once_more_from_the_cache(
    open_qwen: Open, films: Films, name: str, chunk: int
) -> None:
    engine = open_qwen(name, chunked_prefill_size=chunk)
    prompts = [prompt(engine, films, name, case) for case in FILMS]
    answers = [expected(name, case) for case in FILMS]
    assert [tokens(found) for found in asked(engine, *prompts)] == answers
    encoded = stats(engine)["encoded_images"]
    assert encoded == sum(patches(name, case) for case in FILMS)
    again = asked(engine, *prompts)
    assert [tokens(found) for found in again] == answers
    assert stats(engine)["encoded_images"] == encoded
    assert stats(engine)["prepared_images"] == len(FILMS)


@each_name
def test_a_second_question_finds_the_video_in_the_cache(
    open_qwen: Open, films: Films, name: str
) -> None:
    engine = open_qwen(name)
    first, case = prompt(engine, films, name, "long"), "long"
    (found,) = asked(engine, first, new=3)
    turn = (*first, said(engine, tokens(found)))
    (found,) = asked(engine, turn, new=NEW - 3)
    assert tokens(found) == expected(name, case)[3:]
    assert found.cached_tokens >= len(golden(name, case, "tokens"))
    assert stats(engine)["encoded_images"] == patches(name, case)


@each_name
def test_a_preempted_request_answers_the_same(open_qwen: Open, films: Films, name: str) -> None:
    engine = open_qwen(name, max_total_tokens=230, chunked_prefill_size=7)
    cases = ["odd", "pairs", "odd", "long"]
    answers = asked(engine, *(prompt(engine, films, name, case) for case in cases))
    assert [tokens(found) for found in answers] == [expected(name, case) for case in cases]


@each_name
def test_drafts_after_a_video_are_verified_at_its_positions(
    open_qwen: Open, films: Films, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(drafting, "kept_costs", lambda *_: FREE)
    monkeypatch.setattr(drafting, "Pace", lambda: None)  # drafts pay, whatever this machine does
    engine = open_qwen(name, speculate="tree")
    for _ in range(2):  # the second time the first answer is the draft
        (found,) = asked(engine, prompt(engine, films, name, "long"))
        assert tokens(found) == expected(name, "long")
    assert stats(engine)["accepted_tokens"] > 0


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl"])
def test_a_video_comes_back_from_disk(
    open_qwen: Open, films: Films, tmp_path: Path, name: str
) -> None:
    options = {"disk_cache_dir": str(tmp_path / "kv")}
    first = open_qwen(name, **options)
    long = (*prompt(first, films, name, "long"), said(first, [3, 7, 5, 9] * 25))
    (expects,) = asked(first, long)
    first.shutdown()
    second = open_qwen(name, **options)
    (found,) = asked(second, long)
    assert tokens(found) == tokens(expects)
    assert found.cached_tokens >= 64
    assert stats(second)["encoded_images"] == 0


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl"])
def test_a_branch_after_a_video_is_as_no_cut(open_qwen: Open, films: Films, name: str) -> None:
    engine = open_qwen(name)
    begin, shown, end = prompt(engine, films, name, "long")
    (found,) = asked(engine, (begin, Parallel(((shown,),)), end))
    assert tokens(found) == expected(name, "long")


@each_name
def test_a_picture_beside_a_video_keeps_its_own_marks(
    open_qwen: Open, films: Films, name: str
) -> None:
    engine = open_qwen(name)
    begin, shown, end = prompt(engine, films, name, "odd")
    picked = Image(picture(40, 60))
    both, other = asked(engine, (begin, picked, shown, end), (begin, shown, picked, end))
    assert both.prompt_tokens == other.prompt_tokens
    alone = asked(engine, (begin, picked, end), (begin, shown, end))
    assert both.prompt_tokens == sum(x.prompt_tokens for x in alone) - 6


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_vl"])
def test_marks_around_a_video_count_once(open_qwen: Open, films: Films, name: str) -> None:
    engine = open_qwen(name)
    shown = Video(str(films["odd"]), 3)
    marked = (Text("t5<|vision_start|>"), shown, Text("<|vision_end|>t7"))
    plain, wrapped = asked(engine, (Text("t5"), shown, Text("t7")), marked)
    assert tokens(plain) == tokens(wrapped)
    assert plain.prompt_tokens == wrapped.prompt_tokens


@each_name
def test_a_program_shows_a_video(open_qwen: Open, films: Films, name: str) -> None:
    @sgl.function
    def watch(s: Any, path: str) -> None:
        s += "t5" + sgl.video(path, 3) + "t7"
        s += sgl.gen("answer", max_tokens=NEW, temperature=0, ignore_eos=True, token_healing=False)

    engine = open_qwen(name)
    (found,) = asked(engine, (Text("t5"), Video(str(films["odd"]), 3), Text("t7")))
    state = watch.run(path=str(films["odd"]), backend=engine)
    assert state["answer"] == found.text


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_vl"])
def test_models_of_experts_take_videos(
    open_qwen: Open, folders: dict[str, Path], films: Films, tmp_path: Path, name: str
) -> None:
    toy = read_golden(name)
    text = toy.config["text_config"] | EXPERTS | {"model_type": f"{name}_moe_text"}
    config = toy.config | {"text_config": text, "model_type": f"{name}_moe"}
    eyes = {key: values for key, values in toy.weights.items() if "visual" in key}
    weights = random_weights(config | {"tie_word_embeddings": False}) | eyes
    folders["experts"] = write_watching(tmp_path / "experts", name, weights=weights, config=config)
    engine = open_qwen("experts")
    prompts = [prompt(engine, films, name, case) for case in FILMS]
    together = asked(engine, *prompts)
    engine.flush_cache()
    assert [tokens(asked(engine, one)[0]) for one in prompts] == [tokens(x) for x in together]
    likely = [found.logprobs.output[0].logprob for found in together if found.logprobs]
    assert len(set(likely)) == len(FILMS)  # each video is seen


@each_name
def test_the_limits_of_videos_hold(
    open_qwen: Open, films: Films, tmp_path: Path, name: str
) -> None:
    engine = open_qwen(name, limits=Limits(max_frames=4, max_image_pixels=3000))
    end = Text("t7")
    with pytest.raises(LimitError, match="max_frames is 4"):
        asked(engine, (Video(str(films["long"]), 5), end))
    with pytest.raises(LimitError, match="max_image_pixels is 3,000"):
        asked(engine, (Video(str(films["large"]), 2), end))
    with pytest.raises(ImageError, match="does not exist"):
        asked(engine, (Video(str(tmp_path / "none.gif"), 2), end))
    many = write_film(tmp_path / "many.png", film(40, 60, 4), 100)
    with pytest.raises(ContextLengthError):
        asked(engine, (*[Video(str(many), 4)] * 40, end))
    (found,) = asked(engine, prompt(engine, films, name, "pairs"))
    assert tokens(found) == expected(name, "pairs")
