"""SECURITY.md: every sentence has a test."""

from __future__ import annotations

import ast
import hmac
import json
import pickle
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from sgl_mlx.cli.serve import serve
from sgl_mlx.errors import ModelError
from sgl_mlx.models.loader import load
from sgl_mlx.server import app
from tests.runtime.conftest import write_toy
from tests.server.scripted import ScriptedEngine

ROOT = Path(__file__).parent.parent
HERE = "tests/test_security.py"
PROOFS = {
    "A model folder runs no code": f"{HERE}::test_python_in_a_model_folder_is_not_run",
    "Pickles are refused": f"{HERE}::test_a_pickle_is_not_read",
    "A chat template runs in Jinja's sandbox": "tests/tokenizer/test_template_sandbox.py::"
    "test_a_template_does_not_see_the_insides_of_python",
    "A chat template is stopped": "tests/tokenizer/test_template_sandbox.py::"
    "test_an_adversarial_template_ends_in_little_memory",
    "A damaged model file": "tests/fuzz/test_targets.py::"
    "test_a_target_reads_well_formed_and_damaged_files",
    "A compiled program's file": f"{HERE}::test_a_compiled_program_is_no_pickle",
    "The server listens on this machine": f"{HERE}::test_the_server_listens_on_localhost",
    "With `--api-key`": f"{HERE}::test_without_a_key_only_three_paths_are_open",
    "A web page of another origin": "tests/server/test_origins.py::"
    "test_pages_of_other_origins_get_no_answer",
    "Keys are compared": f"{HERE}::test_each_key_is_compared_in_constant_time",
    "Clients with different keys": "tests/server/test_namespaces.py::"
    "test_owners_share_nothing_and_find_their_own",
    "A client sees its own contexts": "tests/server/contexts/test_contexts.py::"
    "test_contexts_belong_to_their_key",
    "Pictures are `data:` URLs": "tests/server/openai/test_chat.py::"
    "test_only_data_urls_are_pictures",
    "Picture formats": f"{HERE}::test_no_format_that_starts_programs_is_opened",
    "Every size and count": "tests/test_limits.py::test_a_limit_refuses_exactly_what_is_over_it",
    "A grammar that explodes": "tests/runtime/constraints/test_adversarial.py::"
    "test_requests_go_on_while_grammars_are_compiled",
    "A broken body": "tests/server/test_hardening.py::"
    "test_a_broken_body_is_a_client_error_with_a_message",
    "A client that leaves": "tests/server/test_hardening.py::"
    "test_a_client_that_leaves_in_the_middle_frees_its_slots",
    "Cached prompts on disk": "tests/runtime/disk/test_block_folder.py::"
    "test_others_cannot_read_a_block_in_a_folder_of_theirs",
    "A cache file of another model": "tests/runtime/disk/test_copy.py::"
    "test_only_arrays_of_the_pools_own_form_fit",
    "With `offline=True`": "tests/models/test_resolve.py::test_offline_the_cache_alone_is_asked",
}
"""The beginning of each sentence, and the test that holds it."""


def sentences() -> list[str]:
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    return [" ".join(found.split()) for found in re.findall(r"^- (.*?)$", text, re.M)]


def test_every_sentence_has_one_test_and_every_test_a_sentence() -> None:
    found = {s: [start for start in PROOFS if s.startswith(start)] for s in sentences()}
    assert [s for s, starts in found.items() if len(starts) != 1] == []
    assert {start for starts in found.values() for start in starts} == set(PROOFS)


@pytest.mark.parametrize("proof", PROOFS.values())
def test_the_test_of_a_sentence_exists(proof: str) -> None:
    file, _, name = proof.partition("::")
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_python_in_a_model_folder_is_not_run(tmp_path: Path) -> None:
    folder, sign = write_toy(tmp_path / "model"), tmp_path / "was here"
    for name in ("modeling_toy.py", "configuration_toy.py", "tokenization_toy.py", "__init__.py"):
        (folder / name).write_text(f"open({str(sign)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config["model_file"] = "modeling_toy.py"
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_toy.Toy", "AutoConfig": "a.C"}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = {"auto_map": {"AutoTokenizer": ["tokenization_toy.T", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    with suppress(ModelError):
        load(str(folder))
    assert not sign.exists()


class Bomb:
    """An object whose pickle writes a file when it is loaded."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> Any:
        return open, (str(self.sign), "w")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.safetensors", "x.gguf"])
def test_a_pickle_is_not_read(tmp_path: Path, name: str) -> None:
    folder, sign = write_toy(tmp_path / "model"), tmp_path / "was here"
    for file in folder.glob("*.safetensors"):
        file.unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(sign)))
    with pytest.raises(ModelError):
        load(str(folder / name if name.endswith("gguf") else folder))
    assert not sign.exists()


def test_a_compiled_program_is_no_pickle() -> None:
    sources = [*(ROOT / "sgl_mlx").rglob("*.py"), *(ROOT / "models").rglob("*.py")]
    used = re.compile(r"^\s*(?:import|from) (?:pickle|marshal|shelve|dill|joblib)\b", re.M)
    assert [str(file) for file in sources if used.search(file.read_text("utf-8"))] == []


def test_the_server_listens_on_localhost() -> None:
    assert {p.name: p.default for p in serve.params}["host"] == "127.0.0.1"


def test_without_a_key_only_three_paths_are_open() -> None:
    served = app(ScriptedEngine("x"), api_keys=["secret"])
    client = TestClient(served)
    paths = [route.path for route in served.routes if hasattr(route, "path")]
    answers = {path: client.get(re.sub(r"\{.*?\}", "x", path)).status_code for path in paths}
    assert {path for path, status in answers.items() if status != 401} == {"/", "/health", "/ready"}


def test_each_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def counted(given: bytes, key: bytes) -> bool:
        compared.append(key)
        return compare(given, key)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    client = TestClient(app(ScriptedEngine("x"), api_keys=["first", "second"]))
    answer: httpx.Response = client.get("/v1/models", headers={"authorization": "Bearer first"})
    assert answer.status_code == 200
    assert compared == [b"first", b"second"]


def test_no_format_that_starts_programs_is_opened() -> None:
    from sgl_mlx.models.vision import image  # Pillow

    assert {"EPS", "PDF", "WMF", "XPM", "MSP", "FPX", "MIC"}.isdisjoint(image._FORMATS)
