"""Each rule of the GPU that a kernel can break, and the trap that says so."""

from __future__ import annotations

import mlx.core as mx
import pytest

from tests.metal_kernels.emulator import SCHEDULES, CompileError, Emulator, Trap, needs_compiler
from tests.metal_kernels.one_kernel import run

pytestmark = needs_compiler
HERE = "uint i = thread_position_in_threadgroup.x;\n"
SHARED = HERE + "threadgroup float s[64];\n"
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);\n"
FILLED = SHARED + "s[i] = 0;\n" + BARRIER


@pytest.mark.parametrize(
    ("source", "kind", "words"),
    [
        pytest.param(HERE + "out[i] = x[i + 1];", "out of bounds", "buffer x", id="read-past"),
        pytest.param(HERE + "out[i + 1] = x[i];", "out of bounds", "buffer out", id="write-past"),
        pytest.param(HERE + "out[i] = x[int(i) - 1];", "out of bounds", "byte -4", id="before"),
        pytest.param(HERE + "out[i] = x[i << 20];", "out of bounds", "buffer x", id="far-away"),
        pytest.param(
            SHARED + "s[i] = 0; thread float* p = s; out[i] = p[i + 64];",
            "out of bounds",
            "threadgroup memory s",
            id="threadgroup-past",
        ),
        pytest.param(
            HERE + "((device float*)x)[i] = 1; out[i] = 0;",
            "write to an input",
            "x",
            id="write-input",
        ),
        pytest.param(
            FILLED + "s[i] = x[i]; out[i] = s[31 - i];", "data race", "no barrier", id="no-barrier"
        ),
        pytest.param(
            SHARED + "s[i] = x[i];\n" + BARRIER + "float v = s[31 - i]; s[i] = v; out[i] = v;",
            "data race",
            "s, which thread",
            id="write-after-read",
        ),
        pytest.param(
            FILLED + "s[i] = x[i]; threadgroup_barrier(mem_flags::mem_device); out[i] = s[31 - i];",
            "data race",
            "wrote",
            id="wrong-memory",
        ),
        pytest.param(
            SHARED + "if (i < 9) s[i] = x[i];\n" + BARRIER + "out[i] = s[i];",
            "uninitialised read",
            "s before any write",
            id="uninitialised",
        ),
        pytest.param(HERE + "out[0] = x[i];", "data race", "out", id="same-output"),
        pytest.param(
            HERE + "float v = 0; if (i < 16) v = simd_sum(x[i]); out[i] = v;",
            "divergent simd operation",
            "has returned",
            id="half-a-simdgroup",
        ),
        pytest.param(
            HERE + "if (i < 16) out[i] = simd_sum(x[i]);\nelse out[i] = simd_sum(x[i]);",
            "divergent simd operation",
            "simd_sum",
            id="two-places",
        ),
        pytest.param(
            HERE + "if (i == 3) return;\n" + BARRIER + "out[i] = 0;",
            "divergent barrier",
            "thread 3 has returned",
            id="returned-early",
        ),
        pytest.param(
            HERE + "if (i < 8) {\n" + BARRIER + "} else {\n" + BARRIER + "} out[i] = 0;",
            "divergent barrier",
            "threadgroup_barrier",
            id="two-barriers",
        ),
        pytest.param(
            HERE + "out[i] = simd_shuffle(x[i], i + 1);", "inactive lane", "lane 32", id="lane-32"
        ),
        pytest.param(
            HERE + "float r[4] = {}; r[i] = 1; out[i] = r[i / 16];",
            "undefined behaviour",
            "index is outside",
            id="register-array",
        ),
        pytest.param(
            HERE + "out[i] = (*(const device float4*)(x + i)).x;",
            "undefined behaviour",
            "misaligned",
            id="misaligned",
        ),
        pytest.param(
            HERE + "int n = 1 << 30; out[i] = n * (int(x[i]) + 2);",
            "undefined behaviour",
            "overflows",
            id="overflow",
        ),
        pytest.param(
            HERE + "out[i] = int(x[i]) / int(x[i]);", "undefined behaviour", "zero", id="by-zero"
        ),
    ],
)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_broken_rule_is_trapped(source: str, kind: str, words: str, schedule: str) -> None:
    with pytest.raises(Trap, match=words) as caught:
        run(source, emulator=Emulator(schedules=[schedule]))
    assert caught.value.kind == kind


def test_a_shuffle_from_a_lane_that_the_grid_does_not_have_is_trapped() -> None:
    with pytest.raises(Trap, match="inactive lane: lane 0 reads from lane 16"):
        run(HERE + "out[i] = simd_shuffle_xor(x[i], 16);", grid=16)


def test_a_simdgroup_barrier_orders_its_own_simdgroup_only() -> None:
    source = (
        SHARED
        + """
      s[i] = 1;
      threadgroup_barrier(mem_flags::mem_threadgroup);
      s[i] = 2;
      simdgroup_barrier(mem_flags::mem_threadgroup);
      out[i] = s[{}];
    """
    )
    run(source.replace("{}", "i ^ 1"), threads=64, shape=(64,))
    with pytest.raises(Trap, match="data race"):
        run(source.replace("{}", "i ^ 32"), threads=64, shape=(64,))


def test_two_threadgroups_may_not_write_one_place() -> None:
    with pytest.raises(Trap, match="another threadgroup wrote"):
        run(HERE + "out[i] = x[i];", grid=64)


def test_results_that_depend_on_the_schedule_are_trapped() -> None:
    source = (
        "out[thread_position_in_grid.x] = 0; if (simd_is_first()) { "
        "atomic_fetch_max_explicit((device atomic<int>*)out + 31, "
        "atomic_fetch_add_explicit((device atomic<int>*)out + 30, 1, memory_order_relaxed) "
        "* int(threadgroup_position_in_grid.x), memory_order_relaxed); }"
    )
    kernel_out = {"shape": (64,), "grid": 64, "dtype": mx.int32}
    with pytest.raises(Trap, match="schedule matters: out under"):
        run(source, **kernel_out)  # type: ignore[arg-type]


def test_a_loop_without_end_is_cut_off() -> None:
    with pytest.raises(Trap, match="endless loop"):
        run(
            HERE + "while (x[0] == 0) { out[i] = i; }",
            emulator=Emulator(seconds=0.2),
        )


def test_a_trap_names_the_line_of_the_generated_text() -> None:
    emulator = Emulator()
    with pytest.raises(Trap) as caught:
        run(HERE + "\n\nfloat v = x[i + 4];\nout[i] = v;", emulator=emulator)
    trap = caught.value
    with pytest.raises(Trap, match=f"line {trap.line}"):
        raise trap
    assert trap.line is not None
    assert trap.line > 5


def test_the_emulator_works_on_after_a_trap() -> None:
    with pytest.raises(Trap):
        run(HERE + "out[i] = x[i + 1];")
    assert run(HERE + "out[i] = x[i];").tolist() == list(range(32))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        pytest.param("bfloat b = 1.0f; out[0] = b;", "no viable conversion", id="bfloat"),
        pytest.param("out[0] = max(x[0], half(1));", "ambiguous", id="half-float"),
        pytest.param("out[0] = max(int(x[0]), 1u);", "ambiguous", id="int-uint"),
        pytest.param("x[0] = 1;", "read-only", id="const-input"),
        pytest.param("uint n = uint(x[0]); threadgroup float s[n];", "variable length", id="vla"),
    ],
)
def test_what_apples_compiler_refuses_does_not_compile(source: str, words: str) -> None:
    with pytest.raises(CompileError, match=words):
        run(source)
