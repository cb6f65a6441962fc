"""The launch of a process, read from its environment without importing MLX."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sgl_mlx.errors import BackendError
from sgl_mlx.runtime.ranks.launch import Launch, launched


@pytest.fixture
def hostfile(tmp_path: Path) -> str:
    file = tmp_path / "hosts.json"
    file.write_text(json.dumps([["10.0.0.1:32323"], ["10.0.0.2:32324"]]))
    return str(file)


def test_a_process_started_alone_has_no_ranks() -> None:
    assert launched({}) is None


def test_one_rank_is_no_ranks(tmp_path: Path) -> None:
    empty = tmp_path / "hosts.json"
    empty.write_text("\n")
    assert launched({"MLX_RANK": "0", "MLX_HOSTFILE": str(empty)}) is None


def test_the_first_host_is_where_rank_0_listens(hostfile: str) -> None:
    found = launched({"MLX_RANK": "1", "MLX_HOSTFILE": hostfile})
    assert found == Launch(1, 2, "ring", "10.0.0.1", 33323)


def test_the_address_of_rank_0_can_be_given(hostfile: str) -> None:
    given = {"MLX_RANK": "0", "MLX_HOSTFILE": hostfile, "SGL_MLX_RANKS_ADDRESS": "mac.local:99"}
    assert launched(given) == Launch(0, 2, "ring", "mac.local", 99)


def test_rdma_devices_mean_jaccl(tmp_path: Path) -> None:
    devices = tmp_path / "devices.json"
    devices.write_text('[[null, "rdma_en2"], ["rdma_en2", null]]')
    given = {"MLX_RANK": "1", "MLX_IBV_DEVICES": str(devices)}
    found = launched(given | {"MLX_JACCL_COORDINATOR": "10.0.0.1:65000"})
    assert found == Launch(1, 2, "jaccl", "10.0.0.1", 64000)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"MLX_RANK": "0"}, "mlx.launch --backend ring"),
        ({"MLX_RANK": "2", "MLX_HOSTFILE": "{hostfile}"}, "there are 2 ranks, counted from 0"),
        ({"MLX_RANK": "-1", "MLX_HOSTFILE": "{hostfile}"}, "MLX_RANK=-1"),
        ({"MLX_RANK": "0", "MLX_HOSTFILE": "/no/such"}, "cannot be read"),
        (
            {"MLX_RANK": "0", "MLX_HOSTFILE": "{hostfile}", "SGL_MLX_RANKS_ADDRESS": "here"},
            "SGL_MLX_RANKS_ADDRESS=here is not of the form host:port",
        ),
    ],
)
def test_an_incomplete_launch_is_told(given: dict[str, str], told: str, hostfile: str) -> None:
    with pytest.raises(BackendError, match=told):
        launched({name: value.format(hostfile=hostfile) for name, value in given.items()})


@pytest.mark.parametrize("text", ["{", '{"a": 1}', "[1, 2]", "[[]]"])
def test_a_host_file_of_another_kind_is_told(text: str, tmp_path: Path) -> None:
    file = tmp_path / "hosts.json"
    file.write_text(text)
    with pytest.raises(BackendError, match="host file"):
        launched({"MLX_RANK": "0", "MLX_HOSTFILE": str(file)})


def test_a_process_started_alone_imports_nothing_of_the_ranks(toy_folder: Path) -> None:
    script = f"""
import sys
from sgl_mlx.runtime.engine import Engine
with Engine({str(toy_folder)!r}, max_total_tokens=100, speculate="off") as engine:
    engine.generate(input_ids=[5, 6], sampling_params={{"max_new_tokens": 2}})
    assert engine.get_server_info()["ranks"] == 1
print(sorted(name for name in sys.modules if name.startswith("sgl_mlx.runtime.ranks")))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    alone = ["sgl_mlx.runtime.ranks", "sgl_mlx.runtime.ranks.launch", "sgl_mlx.runtime.ranks.start"]
    assert done.stdout.strip() == str(alone)
