"""Ranks on two hosts: two network namespaces with a cable between them, which can be cut."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import pytest

from sgl_mlx import machine
from tests.runtime.ranks.launcher import Launched, lines
from tests.runtime.ranks.test_faults import WAITING, check_all_ended
from tests.runtime.ranks.toys import write_toy
from tests.runtime.ranks.work import run

ADDRESSES = "10.199.7.1", "10.199.7.2"


@dataclass(frozen=True)
class Hosts:
    """Two hosts: the names of their namespaces."""

    names: tuple[str, str]

    @property
    def inside(self) -> list[list[str]]:
        return [["ip", "netns", "exec", name] for name in self.names]

    def cut(self) -> None:
        """Pull the cable; nothing arrives from now on, and no connection is closed."""
        ip("-n", self.names[0], "link", "set", "cable", "down")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def why_not() -> str | None:
    """The reason for which there can be no namespaces here."""
    if machine.system() != "linux":
        return "needs Linux: network namespaces"
    if shutil.which("ip") is None or os.geteuid() != 0:
        return "needs root and iproute2, for network namespaces"
    tried = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False)
    return None if tried.returncode == 0 else "needs a system that allows network namespaces"


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Two hosts, taken down in the end."""
    if reason := why_not():
        pytest.skip(reason)
    names = f"sgl-{os.getpid()}-a", f"sgl-{os.getpid()}-b"
    try:
        for name in names:
            ip("netns", "add", name)
        cable = ["link", "add", "cable", "netns", names[0], "type", "veth"]
        ip(*cable, "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield Hosts(names)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def test_two_hosts_answer_as_one_process_until_the_cable_is_cut(
    hosts: Hosts, tmp_path: Path
) -> None:
    model, file = write_toy(tmp_path / "llama", "llama"), tmp_path / "answers"
    command = [*WAITING, str(model), str(file)]
    with Launched(tmp_path / "run", command, 2, ADDRESSES, hosts.inside) as ranks:
        ranks.wait_for("running")
        hosts.cut()
        check_all_ended(ranks, "rank 1 on ")
    mx.disable_compile()
    try:
        alone = json.loads(json.dumps(run(str(model))))
    finally:
        mx.enable_compile()
    [found] = lines(file.read_text())
    assert found["tokens"] == alone["tokens"]
    assert found["ranks"] == 2
