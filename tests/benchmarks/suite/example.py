"""A document such as `sgl-mlx bench suite` ends with, built from a few figures a workload."""

from __future__ import annotations

from typing import Any

OURS, LLAMA, MLX = "ours", "llama.cpp", "mlx-lm"

CRASH = (
    "llama-server ended with status -11 while 8 calls were open; it last said:\n"
    "srv  update_slots: all slots are idle\nSegmentation fault"
)
NO_GRAMMAR = "mlx-lm has no grammar"

# name, about, concurrency, calls, prompt tokens, unique, output tokens, our seconds, ratios
SHAPES: list[tuple[str, str, int, int, int, int | None, int, float, float, float]] = [
    ("mmlu", "five examples, then a letter", 16, 130, 118_820, 15_930, 130, 14.2, 2.91, 6.84),
    ("hellaswag", "20 examples, four endings", 16, 80, 121_300, 3_980, 0, 4.31, 8.02, 31.6),
    ("gsm8k", "five examples, then reasoning", 16, 20, 14_020, 1_630, 2_560, 11.9, 1.72, 4.9),
    (
        "react",
        "thoughts and actions over a growing text",
        16,
        50,
        71_150,
        5_570,
        3_150,
        24.8,
        3.3,
        9,
    ),
    (
        "generative_agents",
        "small questions, one after another",
        1,
        100,
        31_020,
        9_410,
        860,
        21,
        1.9,
        4,
    ),
    (
        "tree_of_thought",
        "four levels of two branches",
        3,
        90,
        42_140,
        7_280,
        7_290,
        31.5,
        2.44,
        5.12,
    ),
    ("multi_doc_qa", "ten documents read side by side", 1, 11, 3_470, None, 16, 3.07, 0.93, 2.31),
    ("json_decode", "a record of twelve fields by grammar", 2, 2, 1_880, 1_530, 420, 5.4, 2.6, 0),
    ("multi_turn_chat_long", "chats of four turns", 2, 8, 5_210, 1_270, 980, 9.07, 1.06, 2.2),
]


def document(
    *names: str, crashed: bool = False, repeats: int = 2, latencies: bool = True
) -> dict[str, Any]:
    """The whole example, or these workloads of it.

    Args:
        crashed: llama-server died on each workload.
        latencies: False for null, as where no call had a first token.
    """
    workloads = [
        _workload(shape, crashed, repeats, latencies)
        for shape in SHAPES
        if not names or shape[0] in names
    ]
    return {
        "workloads": workloads,
        "geomean": {MLX: 5.41} if crashed else {LLAMA: 2.313, MLX: 5.41},
        "scale": 0.1,
        "repeats": repeats,
        "command": "sgl-mlx bench suite --peer llama.cpp --peer mlx-lm --scale 0.1",
        "commit": "42b7c6a0d1",
        "machine": {
            "system": "Linux",
            "machine": "x86_64",
            "processor": "Intel(R) Xeon(R) Processor @ 2.70GHz",
            "cores": 2,
            "memory_gb": 15.6,
        },
        "versions": {
            "sgl-mlx": "0.1.0",
            "mlx": "0.32.1",
            "mlx-lm": "0.32.0",
            "python": "3.12.4",
            "llama.cpp": "b6451",
        },
    }


def _workload(shape: Any, crashed: bool, repeats: int, latencies: bool) -> dict[str, Any]:
    name, about, concurrency, calls, prompt, unique, output, seconds, llama, mlx = shape
    work = {"calls": calls, "prompt_tokens": prompt, "output_tokens": output}
    ratios, reasons = {LLAMA: llama, MLX: mlx}, {}
    if crashed:
        reasons[LLAMA] = CRASH
    if not mlx:
        reasons[MLX] = NO_GRAMMAR
    ratios = {peer: ratio for peer, ratio in ratios.items() if peer not in reasons}
    ran = {OURS: 1.0, **ratios}
    runs = [
        _run(system, times * seconds * (1 + repeat / 20), work, latencies)
        for system, times in ran.items()
        for repeat in range(repeats)
    ]
    for run in runs[:repeats]:
        run |= _counts(run["seconds"], calls, prompt, unique, output)
    return {
        "name": name,
        "about": about,
        "concurrency": concurrency,
        "ratio": ratios,
        "not_compared": reasons,
        "tokens": dict.fromkeys(ran, work),
        "runs": runs,
    }


def _run(system: str, seconds: float, work: dict[str, int], latencies: bool) -> dict[str, Any]:
    programs = max(1, work["calls"] // 5)
    timed = {"latency_p50": 0.3, "latency_p95": 0.62, "ttft_p50": 0.011, "ttft_p95": 0.043}
    return {
        "system": system,
        "seconds": round(seconds, 3),
        "programs": programs,
        "programs_per_second": round(programs / seconds, 3),
        **{name: round(share * seconds, 4) if latencies else None for name, share in timed.items()},
        **work,
        "cached_tokens": work["prompt_tokens"] // 2,
    }


def _counts(
    seconds: float, calls: int, prompt: int, unique: int | None, output: int
) -> dict[str, Any]:
    computed = prompt // 2 if unique is None else unique + (prompt - unique) // 250
    return {
        "computed_tokens": computed,
        "total_tokens": prompt,
        "unique_tokens": unique,
        "forward_passes": 40 + output // 6,
        "decode_tokens": output,
        "decode_passes": output // 7,
        "decode_rows": output // 7 * 6,
        "pool_tokens_read": 3 * prompt,
        "longest_step": 512,
        "peak_slots": computed + output,
        "tree_and_scheduler_seconds": round(seconds * 0.0031, 4),
        "model_seconds": round(seconds * 0.94, 3),
    }
