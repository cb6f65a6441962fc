"""Names become local paths; the hub is asked only for what is a hub id, and only if allowed."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2 as httpx
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from sgl_mlx.errors import ModelNotFoundError
from sgl_mlx.models import resolve as module
from sgl_mlx.models.download import Download
from sgl_mlx.models.resolve import embedded_gguf, is_offline, list_local, resolve


class Hub:
    """Stands in for `snapshot_download`: remembers what was asked and answers as told."""

    def __init__(self, answer: Path | Exception) -> None:
        self.answer = answer
        self.asked: list[tuple[str, bool]] = []

    def __call__(
        self, repo: str, *, allow_patterns: list[str], local_files_only: bool, tqdm_class: type
    ) -> str:
        self.asked.append((repo, local_files_only))
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


def unreachable(repo: str) -> Download:
    raise ConnectionError("unreachable")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    hub = Hub(tmp_path)
    monkeypatch.setattr(module.huggingface_hub, "snapshot_download", hub)
    monkeypatch.setattr(module, "plan_download", unreachable)
    for name in ("SGL_MLX_MODEL", "SGL_MLX_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return hub


def package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with a GGUF file in it, which breaks when it is imported."""
    (folder / "wheel_x").mkdir()
    (folder / "wheel_x" / "__init__.py").write_text("raise ImportError('imported')")
    (folder / "wheel_x" / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(folder)
    return folder / "wheel_x" / "x.gguf"


def test_a_package_is_searched_without_being_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = package(tmp_path, monkeypatch)
    assert embedded_gguf("wheel_x") == path
    assert embedded_gguf("no_such_package_at_all") is None


@pytest.mark.parametrize("name", [None, "smollm2", "SmolLM2"])
def test_the_default_is_the_model_inside_the_wheel(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    monkeypatch.setitem(module._WHEELS, "smollm2", "wheel_x")
    path = package(tmp_path, monkeypatch)
    assert resolve(name) == ("smollm2", path)
    assert hub.asked == []


def test_without_the_wheel_the_alias_is_the_same_model_on_the_hub(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module._WHEELS, "smollm2", "no_such_package_at_all")
    resolve("smollm2")
    assert hub.asked == [("HuggingFaceTB/SmolLM2-135M-Instruct", False)]


@pytest.mark.parametrize(
    ("name", "repo"),
    [
        ("org/model", "org/model"),
        ("Llama-3.2-1B-Instruct-4bit", "mlx-community/Llama-3.2-1B-Instruct-4bit"),
        ("Qwen3-0.6B-bf16", "mlx-community/Qwen3-0.6B-bf16"),
    ],
)
def test_ids_and_names_of_conversions_go_to_the_hub(hub: Hub, name: str, repo: str) -> None:
    assert resolve(name) == (name, hub.answer)
    assert hub.asked == [(repo, False)]


@pytest.mark.parametrize(
    "start", ["https://huggingface.co/", "hf.co/", "http://www.huggingface.co/"]
)
@pytest.mark.parametrize("end", ["", "/", "/tree/main", "?library=mlx", "#files"])
def test_an_address_of_the_hub_is_the_id_in_it(hub: Hub, start: str, end: str) -> None:
    assert resolve(f"{start}org/model{end}") == ("org/model", hub.answer)
    assert hub.asked == [("org/model", False)]


def test_a_link_to_nothing_says_so(hub: Hub, tmp_path: Path) -> None:
    link = tmp_path / "model.gguf"
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(ModelNotFoundError, match=r"is a link to .*gone, which does not exist"):
        resolve(link)
    assert hub.asked == []
    assert [model.path for model in list_local(tmp_path) if model.path == link] == []


def test_what_exists_is_a_path_even_if_it_looks_like_an_id(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("org/model") == ("model", Path("org/model"))
    assert hub.asked == []


@pytest.mark.parametrize("name", ["nonsense", "dir/missing.gguf", "/no/such/file.gguf", "a/b/c"])
def test_what_nothing_is_called_is_refused_with_the_possibilities(hub: Hub, name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no file or folder, no alias \(smollm2\)"):
        resolve(name)
    assert hub.asked == []


@pytest.mark.parametrize("variable", ["SGL_MLX_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_the_cache_alone_is_asked(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    assert is_offline()
    resolve("org/model")
    resolve("org/model", offline=False)
    assert hub.asked == [("org/model", True), ("org/model", False)]


def response(status: int) -> Any:
    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/x"))


@pytest.mark.parametrize(
    ("error", "offline", "message"),
    [
        (LocalEntryNotFoundError("no"), True, r"offline mode is on; .*models pull org/model"),
        (LocalEntryNotFoundError("no"), False, r"hub cannot be reached; .*models pull org/model"),
        (GatedRepoError("no", response=response(403)), False, r"accept its terms .*auth login"),
        (RepositoryNotFoundError("no", response=response(404)), False, "has no repository org/mod"),
        (HfHubHTTPError("boom", response=response(500)), False, "could not be fetched .*boom"),
        (ConnectionError("unreachable"), False, "could not be fetched .*unreachable"),
    ],
)
def test_every_failure_of_the_hub_says_what_to_do(
    hub: Hub, error: Exception, offline: bool, message: str
) -> None:
    hub.answer = error
    with pytest.raises(ModelNotFoundError, match=message):
        resolve("org/model", offline=offline)


def test_an_empty_cache_offline_gives_our_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_constants(), "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFoundError, match="not in the local cache and offline"):
        resolve("org/model-never-fetched", offline=True)


def huggingface_constants() -> ModuleType:
    from huggingface_hub import constants

    return constants


def test_local_models_are_listed_from_wheel_cache_and_folder(
    gguf_path: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "hub" / "models--org--cached" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "hub" / "models--org--cached" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    monkeypatch.setitem(module._WHEELS, "smollm2", "wheel_x")
    (tmp_path / "lib").mkdir()
    wheel = package(tmp_path / "lib", monkeypatch)
    found = {model.name: model for model in list_local(gguf_path.parent, tmp_path / "hub")}
    assert found["smollm2"].path == wheel
    assert found["org/cached"].path == snapshot
    assert found[str(gguf_path)].size == gguf_path.stat().st_size
    assert found[str(folder)].size == (folder / "model.safetensors").stat().st_size


def test_no_cache_at_all_lists_nothing_from_it(tmp_path: Path) -> None:
    names = {model.name for model in list_local(hub_cache=tmp_path / "none")}
    assert names <= {"smollm2"}
