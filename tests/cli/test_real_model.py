"""The installed command on the embedded model, as a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from tests.patience import PATIENCE

SGL_MLX = Path(sys.executable).with_name("sgl-mlx")
EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def command(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SGL_MLX, *args, "--model", "smollm2"],
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_generate_says_paris() -> None:
    done = command("generate", "The capital of France is", "--max-tokens", "2", "--temperature=0")
    assert (done.returncode, done.stdout) == (0, " Paris.\n")


def test_the_demo_shares_more_than_it_computes() -> None:
    done = command("demo")
    assert done.returncode == 0
    sums = next(line.split() for line in done.stdout.splitlines() if "together" in line)
    prompt, cached, computed = map(int, sums[1:4])
    assert cached > computed > 0
    assert cached + computed == prompt
    assert "good: The best pasta" in done.stdout


def test_an_empty_prompt_is_refused_with_code_1() -> None:
    done = command("generate", "")
    assert done.returncode == 1
    assert "empty" in done.stderr


def test_the_judge_shares_its_article_between_branches() -> None:
    done = command("run", str(EXAMPLES / "llm_judge.py"), "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 0
    assert document["variables"]["grade"] in "ABCD"
    assert len(document["variables"]["verdict"]) == 4
    stats = document["stats"]
    assert stats["computed_tokens"] < 0.3 * stats["prompt_tokens"]


def test_ctrl_c_while_generating_ends_with_130() -> None:
    arguments = ["generate", "Once upon", "--stream", "--ignore-eos", "--max-tokens", "4000"]
    process = subprocess.Popen(
        [SGL_MLX, *arguments, "--model", "smollm2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # a shell starts background jobs with SIGINT ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    process.stdout.read(1)  # the first piece: generation is under way
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert err.decode().endswith("interrupted\n")


def test_generate_sees_what_is_on_a_picture() -> None:
    checkpoint, scan = EXAMPLES / "train_tiny_llava" / "checkpoint", EXAMPLES / "scans" / "1.png"
    shown = ["--mmproj", str(checkpoint), "--image", str(scan)]
    done = command("generate", *shown, "--choices", "0,1,2,3,4,5,6,7,8,9", "Which digit is this?")
    assert (done.returncode, done.stdout) == (0, "2\n")


def test_the_bench_over_pictures_encodes_each_once() -> None:
    shape = ["--tower", "toy", "--images", "2", "--new-tokens", "2"]
    done = command("bench", "llava", *shape, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["with"]["encoded"] == 2
    assert document["with"]["computed_tokens"] == document["with"]["fewest"]
    assert document["with"]["hit_rate"] == document["with"]["best_hit_rate"] > 0.4
    assert document["without"]["hit_rate"] == 0
    spent = document["without"]["phases"]
    assert all(spent[phase] > 0 for phase in ("open", "process", "encode", "prefill", "decode"))
    assert document["peak_memory_mb"] > 0
