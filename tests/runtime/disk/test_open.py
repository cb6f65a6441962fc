"""Engines with a second tier on disk: what was evicted is not computed again, and is the same."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from sgl_mlx.core import Parallel, SamplingParams, Text
from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.runtime.engine import Engine
from tests.embedded import open_embedded
from tests.patience import PATIENCE
from tests.runtime.conftest import MakeEngine

GREEDY = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}
STORY = [3 + i * 7 % 200 for i in range(300)]
NOISE = [4 + i * 11 % 200 for i in range(350)]


def ask(engine: Engine, tokens: list[int]) -> tuple[list[int], int]:
    answer = engine.generate(input_ids=tokens, sampling_params=GREEDY)
    return answer["output_ids"], answer["meta_info"]["cached_tokens"]


def stats(engine: Engine) -> dict[str, int]:
    found: dict[str, int] = engine.get_server_info()["stats"]
    return found


@pytest.mark.parametrize("kv_bits", [None, 8])
def test_what_was_evicted_comes_back_and_gives_the_same_answer(
    make_engine: MakeEngine, tmp_path: Path, kv_bits: int | None
) -> None:
    engine = make_engine(max_total_tokens=512, disk_cache_dir=str(tmp_path), kv_bits=kv_bits)
    answer, _ = ask(engine, STORY)
    ask(engine, NOISE)
    assert ask(engine, STORY) == (answer, 256)
    told = stats(engine)
    assert told["restored_tokens"] == told["disk_read_tokens"] == 256
    assert told["disk_hits"] == 1
    assert told["disk_dropped_tokens"] == told["disk_failed_tokens"] == 0


def test_a_restart_of_the_same_model_reuses_what_was_cached(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    first = make_engine(disk_cache_dir=str(tmp_path))
    answer, _ = ask(first, STORY)
    first.shutdown()
    again = make_engine(disk_cache_dir=str(tmp_path))
    assert ask(again, STORY) == (answer, 256)


def test_another_process_reuses_what_is_cached_and_refuses_that_of_other_weights(
    make_engine: MakeEngine, toy_folder: Path, tmp_path: Path
) -> None:
    """Between models that differ in one number of one weight."""
    cache, other = tmp_path / "cache", tmp_path / "other"
    engine = make_engine(disk_cache_dir=str(cache))
    answer, _ = ask(engine, STORY)
    engine.shutdown()
    shutil.copytree(toy_folder, other)
    (file,) = other.glob("*.safetensors")
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("v_proj.weight"))
    weights[name].flat[0] += 0.5
    save_file(weights, file, {"format": "mlx"})
    assert _asked_elsewhere(toy_folder, cache) == [answer, 256]
    assert _asked_elsewhere(other, cache)[1] == 0


def _asked_elsewhere(model: Path, cache: Path) -> Any:
    """Run `ask` in a fresh process."""
    program = (
        "import json, sys\n"
        "from sgl_mlx.runtime.engine import Engine\n"
        "from tests.runtime.disk.test_open import STORY, ask\n"
        "with Engine(sys.argv[1], max_total_tokens=2000, disk_cache_dir=sys.argv[2]) as engine:\n"
        "    print(json.dumps(ask(engine, STORY)))\n"
    )
    command = [sys.executable, "-c", program, str(model), str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("other", [{"kv_bits": 8}, {"dtype": "float16"}], ids=["bits", "dtype"])
def test_an_engine_of_another_kind_finds_nothing(
    make_engine: MakeEngine, tmp_path: Path, other: dict[str, object]
) -> None:
    first = make_engine(disk_cache_dir=str(tmp_path))
    ask(first, STORY)
    first.shutdown()
    assert list(tmp_path.glob("*.safetensors"))
    second = make_engine(disk_cache_dir=str(tmp_path), **other)
    assert ask(second, STORY)[1] == 0


def test_damaged_files_are_computed_again(make_engine: MakeEngine, tmp_path: Path) -> None:
    first = make_engine(disk_cache_dir=str(tmp_path))
    answer, _ = ask(first, STORY)
    first.shutdown()
    noise = random.Random(0)
    for file in tmp_path.glob("*.safetensors"):
        data = bytearray(file.read_bytes())
        data[noise.randrange(2000, len(data))] ^= 1 << noise.randrange(8)
        file.write_bytes(data)
    again = make_engine(disk_cache_dir=str(tmp_path))
    assert ask(again, STORY) == (answer, 0)
    assert stats(again)["disk_broken_files"] == 1


def test_the_disk_is_bounded(make_engine: MakeEngine, tmp_path: Path) -> None:
    limit = 600_000
    engine = make_engine(max_total_tokens=400, disk_cache_dir=str(tmp_path), disk_cache_bytes=limit)
    for i in range(12):
        ask(engine, [3 + (j * 7 + i) % 200 for j in range(300)])
        assert stats(engine)["disk_bytes"] <= limit
    engine.shutdown()
    assert 0 < sum(f.stat().st_size for f in tmp_path.glob("*.*")) <= limit


def test_branches_side_by_side_come_back_too(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine(max_total_tokens=512, disk_cache_dir=str(tmp_path))
    branches = ((Text("0123456789" * 20),), (Text("9876543210" * 20),))
    prompt = (Text("x"), Parallel(branches), Text("y"))
    params = SamplingParams(temperature=0, max_new_tokens=4, ignore_eos=True)
    first = engine.submit(prompt, params).result(PATIENCE)[0]
    ask(engine, [*NOISE, *STORY[:140]])
    again = engine.submit(prompt, params).result(PATIENCE)[0]
    assert again.token_ids == first.token_ids
    assert again.cached_tokens >= 256


def test_without_a_folder_there_is_no_second_tier(toy: Engine) -> None:
    assert not any(name.startswith("disk") for name in stats(toy))


def test_a_folder_that_cannot_be_used_is_refused(make_engine: MakeEngine, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    with pytest.raises(InvalidParamsError, match="disk_cache_dir must be a folder"):
        make_engine(disk_cache_dir=str(file))


def test_nothing_is_kept_without_a_radix_cache() -> None:
    with pytest.raises(InvalidParamsError, match="do not disable_radix_cache"):
        Engine("toy", disk_cache_dir="x", disable_radix_cache=True)


# -- prefetch -----------------------------------------------------------------------------------

TALE = (Text("abcdefghij" * 30),)


def test_a_prefetch_makes_a_prompt_resident(make_engine: MakeEngine) -> None:
    engine = make_engine()
    tokens = engine.prefetch(TALE).result(PATIENCE)
    assert tokens >= 256
    answer = engine.submit(TALE, SamplingParams(max_new_tokens=2)).result(PATIENCE)[0]
    assert answer.cached_tokens == answer.prompt_tokens - 1
    passes = stats(engine)["forward_passes"]
    assert engine.prefetch(TALE).result(PATIENCE) == tokens
    assert stats(engine)["forward_passes"] == passes


def test_a_prefetch_restores_while_another_request_decodes(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine(max_total_tokens=1000, disk_cache_dir=str(tmp_path))
    engine.prefetch(TALE).result(PATIENCE)
    for i in range(3):
        ask(engine, [3 + (j * 7 + i) % 200 for j in range(300)])
    decoding = threading.Event()
    params = SamplingParams(temperature=0, max_new_tokens=400, ignore_eos=True)
    live = engine.submit((Text("ab"),), params, lambda _: decoding.set())
    assert decoding.wait(PATIENCE)
    resident = engine.prefetch(TALE).result(PATIENCE)
    assert not live.done()
    assert resident >= 256
    live.cancel()
    answer = engine.submit(TALE, SamplingParams(max_new_tokens=2)).result(PATIENCE)[0]
    assert answer.cached_tokens >= 256
    assert stats(engine)["restored_tokens"] >= 256


def test_a_request_that_comes_during_its_prefetch_shares_the_work(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    first = make_engine(disk_cache_dir=str(tmp_path))
    params = SamplingParams(temperature=0, max_new_tokens=4)
    answer = first.submit(TALE, params).result(PATIENCE)[0]
    first.shutdown()
    engine = make_engine(disk_cache_dir=str(tmp_path))
    early = engine.prefetch(TALE)
    late = engine.submit(TALE, params).result(PATIENCE)[0]
    assert late.token_ids == answer.token_ids
    assert early.result(PATIENCE) >= 256
    assert stats(engine)["disk_read_tokens"] == 256


def test_a_prefetch_never_fails(make_engine: MakeEngine) -> None:
    engine = make_engine(max_total_tokens=100)
    assert engine.prefetch(TALE).result(PATIENCE) == 0  # longer than the pool
    assert engine.prefetch(()).result(PATIENCE) == 0
    assert engine.prefetch((Text("ab"),)).result(PATIENCE) > 0
    engine.shutdown()
    assert engine.prefetch((Text("ab"),)).result(PATIENCE) == 0


def test_a_cancelled_prefetch_is_given_up(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.run_on_model(lambda _: engine.prefetch(TALE).cancel())
    assert engine.generate("ab", sampling_params=GREEDY)["output_ids"]
    assert engine.flush_cache()


# -- the embedded model ---------------------------------------------------------------------------


def test_restored_prefixes_give_the_embedded_model_s_own_greedy_text(tmp_path: Path) -> None:
    article = "The old lighthouse keeper counted ships, storms and stars in one long book. " * 16
    questions = [article + end for end in ("\nHe wrote:", "\nOne night")]
    params = {"temperature": 0, "max_new_tokens": 6}
    with open_embedded(max_total_tokens=400, disk_cache_dir=str(tmp_path)) as engine:
        computed = [engine.generate(q, sampling_params=params)["text"] for q in questions]
        engine.generate("Rain fell on every road of the valley. " * 24, sampling_params=params)
        answers = [engine.generate(q, sampling_params=params) for q in questions]
    assert [answer["text"] for answer in answers] == computed
    assert answers[0]["meta_info"]["cached_tokens"] >= 192
