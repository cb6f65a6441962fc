"""The table of architectures is what the checks say, and what users are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlx_lm.models.cache import _BaseCache
from mlx_lm.models.llama import Model as LlamaModel

from sgl_mlx import machine
from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.models.architectures import adapter_for, check_runs, counts, path_of, supported, table
from sgl_mlx.models.state_cache import StateCache
from tests.models import conformance
from tests.models.conformance import Verdict, check, verdict
from tests.models.toy import architectures, toy_config, toy_configs, toy_model

ROOT = Path(__file__).parents[2]
TABLE = json.loads((ROOT / "models" / "architectures.json").read_text("utf-8"))


def test_the_table_lists_every_architecture_of_the_installed_mlx_lm() -> None:
    assert list(table()) == architectures()


@pytest.mark.parametrize("architecture", table())
def test_an_architecture_runs_as_the_table_says(architecture: str) -> None:
    assert verdict(architecture) == TABLE[architecture]


def test_whatever_is_not_ragged_says_why() -> None:
    assert all(entry.note for entry in table().values() if entry.path != "ragged")


def test_the_names_people_load_are_ragged() -> None:
    names = [
        "llama",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "phi3",
        "gemma",
        "gemma2",
    ]
    names += ["gemma2", "gemma3", "gemma3_text", "gemma3n", "gpt_oss", "cohere2", "olmo2"]
    names += ["glm4_moe", "deepseek_v3", "llama4", "kimi_k25", "granitemoehybrid"]
    names += ["qwen3_next", "qwen3_5", "qwen3_5_moe", "lfm2", "lfm2_moe", "nemotron_h", "falcon_h1"]
    names += ["kimi_linear", "jamba", "mamba2"]
    assert {name: path_of(name) for name in names} == dict.fromkeys(names, "ragged")


def test_what_is_supported_leaves_out_the_rest() -> None:
    names = {entry.name for entry in supported()}
    assert {"llama", "gemma2"} <= names < set(table())
    assert "deepseek_v41" not in names


def test_the_readme_counts_them_as_the_table_does() -> None:
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    found = counts()
    assert f"of mlx-lm's {sum(found.values())} architectures {found['ragged']} run in" in readme
    assert f"and {found['dense']} one request at a time" in readme


def test_more_than_six_in_seven_architectures_are_ragged() -> None:
    paths = [entry.path for entry in table().values()]
    assert paths.count("ragged") / len(paths) > 6 / 7


def test_an_architecture_that_cannot_run_is_refused_by_name_and_reason() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'deepseek_v41' does not run here: a layer"):
        path_of("deepseek_v41")


def test_an_architecture_that_needs_a_gpu_is_refused_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "on_gpu", lambda: False)
    with pytest.raises(UnsupportedModelError, match="'bitnet' needs a GPU"):
        path_of("bitnet")
    monkeypatch.setattr(machine, "on_gpu", lambda: True)
    assert path_of("bitnet") == "ragged"


def test_an_architecture_that_was_never_checked_is_refused_with_near_names() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'qwen33' was not checked .*near.* qwen3"):
        path_of("qwen33")


def test_a_model_gets_the_path_of_its_architecture() -> None:
    paths = {}
    dense = next(name for name, entry in table().items() if entry.path == "dense")
    for name in ("llama", "gemma2", dense):
        paths[name] = adapter_for(toy_model(name, toy_config(name))).ragged
    assert paths == {"llama": True, "gemma2": True, dense: False}


def test_a_configuration_that_cannot_be_ragged_runs_dense() -> None:
    config = toy_config("llama") | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
    adapter = adapter_for(toy_model("llama", config))
    assert not adapter.ragged
    check(adapter)


def test_a_configuration_that_cannot_run_is_refused_where_others_of_its_kind_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = toy_config("llama")
    check_runs(config)
    monkeypatch.setattr(LlamaModel, "make_cache", lambda self: [OtherCache()], raising=False)
    with pytest.raises(UnsupportedModelError, match=r"in this configuration: .*OtherCache") as e:
        check_runs(config)
    assert "mlx_lm.generate" in str(e.value)


class OtherCache(_BaseCache):  # type: ignore[misc]
    """A cache that nobody knows."""


@pytest.mark.parametrize("architecture", ["granitemoehybrid", "qwen3_5", "mamba", "kimi_linear"])
def test_configurations_with_recurrent_layers_run(architecture: str) -> None:
    for config in toy_configs(architecture):
        check_runs(config)


def test_recurrent_layers_that_the_adapter_refuses_are_refused_before_loading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(StateCache, "keep", lambda self, caches: None)
    with pytest.raises(UnsupportedModelError, match=r"configuration: .*all of its state.*mlx_lm"):
        check_runs(toy_config("nemotron_h"))


def test_a_verdict_is_the_worst_over_the_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = iter([Verdict("ragged"), Verdict("dense", "wrong"), Verdict("ragged")])
    monkeypatch.setattr(conformance, "verdict_on", lambda model: next(verdicts))
    monkeypatch.setattr(conformance, "toy_configs", lambda name: [toy_config("llama")] * 3)
    assert verdict("llama") == {"path": "dense", "reason": "wrong"}


def test_a_configuration_that_the_adapter_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = iter([Verdict("ragged"), Verdict("dense", "its positions", refused=True)])
    monkeypatch.setattr(conformance, "verdict_on", lambda model: next(verdicts))
    monkeypatch.setattr(conformance, "toy_configs", lambda name: [toy_config("llama")] * 2)
    reason = "dense in some configurations: its positions"
    assert verdict("llama") == {"path": "ragged", "reason": reason}
