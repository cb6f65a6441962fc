"""The table of architectures is what the checks say, and what users are told."""

from __future__ import annotations

import importlib
import inspect
import sys

import pytest

from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.models.architectures import adapter_for, check_runs, path_of, supported, table
from tests.models.conformance import check, verdict
from tests.models.toy import architectures, toy_config, toy_model
from tests.models.toy_configs import LAYERS, STATE, WITHOUT_TOY


def test_the_table_lists_every_architecture_of_the_installed_mlx_lm() -> None:
    assert list(table()) == architectures()


@pytest.mark.parametrize("architecture", table())
def test_an_architecture_runs_as_the_table_says(architecture: str) -> None:
    entry = table()[architecture]
    assert verdict(architecture) == {"path": entry.path} | (
        {"reason": entry.note} if entry.note else {}
    )


@pytest.mark.parametrize("architecture", [n for n, why in WITHOUT_TOY.items() if why == STATE])
def test_an_architecture_said_to_keep_recurrent_state_does(architecture: str) -> None:
    module = importlib.import_module(f"mlx_lm.models.{architecture}")
    owners = {getattr(value, "__module__", None) for value in vars(module).values()}
    owners |= {value.__name__ for value in vars(module).values() if inspect.ismodule(value)}
    modules = [module, *(sys.modules[n] for n in owners if n and n.startswith("mlx_lm.models."))]
    makers = [m for m in modules if not m.__name__.endswith(".cache")]
    assert any("ArraysCache(" in inspect.getsource(m) for m in makers)


def test_whatever_is_not_ragged_says_why() -> None:
    assert all(bool(entry.note) == (entry.path != "ragged") for entry in table().values())


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
    names += ["glm4_moe"]
    assert {name: path_of(name) for name in names} == dict.fromkeys(names, "ragged")


def test_what_is_supported_leaves_out_the_rest() -> None:
    names = {entry.name for entry in supported()}
    assert {"llama", "gemma2"} <= names < set(table())
    assert "mamba" not in names


def test_an_architecture_that_cannot_run_is_refused_by_name_and_reason() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'mamba2' does not run here: .* recurrent"):
        path_of("mamba2")


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


def test_a_recurrent_model_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match="'mamba' does not run"):
        adapter_for(toy_model("mamba", toy_config("mamba")))


def test_a_configuration_with_layers_of_state_is_refused_where_others_of_its_kind_run() -> None:
    plain = toy_config("granitemoehybrid")
    check_runs(plain)
    mamba = {f"mamba_{name}": 8 for name in ("n_heads", "d_head", "d_state", "d_conv")}
    hybrid = plain | mamba | {"mamba_n_groups": 1, "layer_types": ["mamba", "attention"] * 2}
    assert len(hybrid["layer_types"]) == LAYERS
    with pytest.raises(UnsupportedModelError, match=r"in this configuration: .*ArraysCache") as e:
        check_runs(hybrid)
    assert "mlx_lm.generate" in str(e.value)
