"""The workflows, the Makefile's targets and the formula agree with the package and each other."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.darwin import MACS
from tests.gpu import COMPUTING

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
Job = dict[str, Any]


def jobs(name: str) -> dict[str, Job]:
    found: dict[str, Job] = workflow(ROOT / f".github/workflows/{name}.yml")["jobs"]
    return found


def workflow(file: Path) -> dict[Any, Any]:
    loaded: dict[Any, Any] = yaml.safe_load(file.read_text("utf-8"))
    return loaded


def runs(job: Job) -> Iterator[str]:
    """The shell text of a job's steps."""
    return (step["run"] for step in job["steps"] if "run" in step)


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_has_the_least_rights_and_an_end(file: Path) -> None:
    found = workflow(file)
    assert found[True]  # YAML reads the key `on` as a truth value
    assert found["permissions"] == {"contents": "read"}
    for job in found["jobs"].values():
        assert job["timeout-minutes"] <= 90
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])
        assert set(job.get("needs") or ()) <= {*found["jobs"], *str(job.get("needs"))}


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_every_target_and_matrix_value_that_a_workflow_names_exists(file: Path) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for job in workflow(file)["jobs"].values():
        matrix = job.get("strategy", {}).get("matrix", {})
        named = set(re.findall(r"matrix\.([\w-]+)", yaml.safe_dump(job)))
        assert named <= set(matrix)
        for target in re.findall(r"make (?:--\S+ )*([a-z-]+)", "\n".join(runs(job))):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_the_shell_of_every_step_parses(file: Path) -> None:
    for job in workflow(file)["jobs"].values():
        for text in runs(job):
            plain = re.sub(r"\$\{\{.*?\}\}", "value", text)
            done = subprocess.run(["bash", "-n"], input=plain, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr


def against_githubs_schema(*files: Path) -> subprocess.CompletedProcess[str]:
    """Check workflows against the schema that check-jsonschema carries; no network is needed."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    return subprocess.run(
        [*command, "vendor.github-workflows", *files],
        env={"PATH": os.environ["PATH"], "HTTPS_PROXY": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
    )


def test_workflows_follow_githubs_schema(tmp_path: Path) -> None:
    done = against_githubs_schema(*WORKFLOWS)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOWS[0].read_text("utf-8").replace("runs-on:", "run-on:"), "utf-8")
    assert against_githubs_schema(wrong).returncode == 1


def test_on_a_mac_the_selftest_stands_alone_and_the_whole_suite_only_informs() -> None:
    metal = jobs("ci")["metal"]
    assert metal["strategy"]["fail-fast"] is False
    assert metal["strategy"]["matrix"]["os"] == ["macos-15", "macos-26"]
    versions = metal["strategy"]["matrix"]["python-version"]
    assert versions == ["3.11", "3.14"]
    assert PROJECT["requires-python"] == f">={versions[0]}"
    steps = metal["steps"]
    at = {
        key: next(i for i, step in enumerate(steps) if key in str(step))
        for key in ("kernels selftest", "upload-artifact", "make test-gpu", "'run': 'make test'")
    }
    assert sorted(at.values()) == list(at.values())
    selftest, upload, gpu, whole = (steps[i] for i in at.values())
    assert "if" not in selftest
    assert upload["if"] == gpu["if"] == whole["if"] == "always()"
    written = set(re.findall(r"tee (\S+)", selftest["run"]))
    assert set(upload["with"]["path"].split()) == written != set()
    assert "pipefail" in selftest["run"]  # or tee's success would hide a failure
    assert whole["continue-on-error"] is True
    assert not any(step.get("continue-on-error") for step in (selftest, gpu))


def test_every_simulated_mac_is_run_every_night_and_by_one_command() -> None:
    assert sorted(jobs("ci")["simulated-mac"]["strategy"]["matrix"]["mac"]) == sorted(MACS)
    (night,) = workflow(ROOT / ".github/workflows/ci.yml")[True]["schedule"]
    assert re.fullmatch(r"\d+ \d+ \* \* \*", night["cron"])
    makefile = (ROOT / "Makefile").read_text("utf-8")
    (default,) = re.findall(r"^MAC +\?= (.*)$", makefile, re.MULTILINE)
    assert sorted(default.split()) == sorted(MACS)


def test_the_gpu_subset_names_tests_that_exist() -> None:
    assert [name for name in COMPUTING if not (ROOT / name).exists()] == []
    makefile = (ROOT / "Makefile").read_text("utf-8")
    recipe = re.findall(r"^test-gpu:.*\n\t(.*)", makefile, re.MULTILINE)[0]
    assert "--numprocesses" not in recipe
    assert "$(PYTEST)" not in recipe
    assert '-m "gpu and not whole_grid"' in recipe


def test_a_release_is_built_checked_tried_published_and_attached() -> None:
    release = jobs("release")
    assert workflow(ROOT / ".github/workflows/release.yml")[True] == {"push": {"tags": ["v*"]}}
    assert "make check" in set(runs(release["build"]))
    order = {name: job.get("needs", []) for name, job in release.items()}
    assert order == {
        "build": [],
        "try-on-a-mac": "build",
        "publish": ["build", "try-on-a-mac"],
        "attach": "publish",
    }
    publish = release["publish"]
    assert publish["permissions"] == {"id-token": "write"}  # the one right it needs to sign
    assert publish["environment"] == "pypi"
    assert "password" not in str(publish)
    assert release["attach"]["permissions"] == {"contents": "write"}
    assert all(kind in next(runs(release["attach"])) for kind in ("*.whl", "*.tar.gz", "*.rb"))


def test_the_version_that_the_tag_must_name_is_the_packages() -> None:
    made = subprocess.run(["make", "--silent", "version"], cwd=ROOT, capture_output=True, text=True)
    assert made.stdout.strip() == PROJECT["version"]


# -- the formula ----------------------------------------------------------------------------------


@pytest.fixture
def formula(tmp_path: Path) -> Path:
    """The formula of a source distribution of this version."""
    sdist = tmp_path / f"sgl_mlx-{PROJECT['version']}.tar.gz"
    sdist.write_bytes(b"sources")
    command = [sys.executable, ROOT / "packaging/homebrew/formula.py", sdist]
    subprocess.run(command, check=True)
    return tmp_path / "sgl-mlx.rb"


def test_the_formula_is_of_this_version_and_licence(formula: Path) -> None:
    text = formula.read_text("utf-8")
    assert f'sha256 "{hashlib.sha256(b"sources").hexdigest()}"' in text
    assert "@" not in text.replace("python@3.13", "")
    (url,) = re.findall(r'^  url "(.*)"$', text, re.MULTILINE)
    assert url.endswith(f"/sgl_mlx-{PROJECT['version']}.tar.gz")
    assert re.findall(r'^  license "(.*)"$', text, re.MULTILINE) == [PROJECT["license"]]
    assert re.findall(r'^  depends_on "python@(.*)"$', text, re.MULTILINE)[0] >= "3.11"
    assert "depends_on arch: :arm64" in text
    assert "depends_on macos: :sonoma" in text


def test_the_formula_is_ruby_with_every_block_closed(formula: Path) -> None:
    text = formula.read_text("utf-8")
    code = [line.strip() for line in text.splitlines() if not line.strip().startswith("#")]
    opened = sum(bool(re.match(r"(class|def|test|head)\b.*", line)) for line in code)
    opened += sum(line.endswith(" do") and not line.startswith("test") for line in code)
    assert opened == code.count("end") > 0
    if shutil.which("ruby"):
        done = subprocess.run(["ruby", "-c", formula], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


# -- the Makefile where Python is too old ---------------------------------------------------------


@pytest.mark.parametrize(("system", "told"), [("Darwin", True), ("Linux", False)])
def test_an_old_python_is_refused_with_ways_to_a_new_one(
    tmp_path: Path, system: str, told: bool
) -> None:
    for name, script in {"uname": f"echo {system}", "python3": "exit 1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["make", "setup", f"VENV={tmp_path}/venv", f"PYTHON={tmp_path}/python3"],
        cwd=ROOT,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
    assert ("brew install python, or uv python install 3.13" in done.stderr) is told
    assert ('PYTHON="$(uv python find 3.13)"' in done.stderr) is told
