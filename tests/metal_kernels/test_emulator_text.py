"""From MLX's text to the compiler: tracing, rewriting, the static check and the lints."""

from __future__ import annotations

import mlx.core as mx
import pytest

from tests.metal_kernels.emulator import (
    CompileError,
    Emulator,
    Msl,
    Trap,
    Unsupported,
    check_types,
    lint,
    needs_compiler,
    toolchain,
    traced_msl,
)
from tests.metal_kernels.emulator.rewrite import rewrite
from tests.metal_kernels.emulator.trace import trace
from tests.metal_kernels.one_kernel import run

CALL = {
    "template": [("T", mx.float16), ("N", 3), ("FLAG", True)],
    "grid": (32, 1, 1),
    "threadgroup": (32, 1, 1),
    "output_shapes": [(32,)],
    "output_dtypes": [mx.float16],
}
SOURCE = "out[thread_position_in_grid.x] = T(x[0] * few[0] + one + N + x_shape[0]);"
INPUTS = {"x": mx.zeros((4, 8)), "few": mx.zeros(3), "one": mx.array(1)}


def kernel_call(source: str, header: str = "", inputs: dict[str, mx.array] = INPUTS) -> Msl:
    kernel = mx.fast.metal_kernel("small", list(inputs), ["out"], source, header)
    return trace(lambda *xs: kernel(inputs=list(xs), **CALL), list(inputs.values()))


@needs_compiler
def test_what_is_compiled_is_what_mlx_prints(capfd: pytest.CaptureFixture[str]) -> None:
    emulator = Emulator()
    emulator.metal_kernel("small", list(INPUTS), ["out"], SOURCE)(
        inputs=list(INPUTS.values()), **CALL
    )
    kernel = mx.fast.metal_kernel("small", list(INPUTS), ["out"], SOURCE)
    capfd.readouterr()
    text = traced_msl(lambda *xs: kernel(inputs=list(xs), verbose=True, **CALL), [*INPUTS.values()])
    assert f"```\n{text}\n```" in capfd.readouterr().out
    assert emulator.launches[-1].msl.text == text


def test_the_signature_is_read_from_the_text() -> None:
    msl = kernel_call(SOURCE)
    assert [(b.name, b.kind, b.space) for b in msl.buffers] == [
        ("x", "*", "device"),
        ("x_shape", "*", "constant"),
        ("few", "*", "constant"),
        ("one", "&", "constant"),
        ("out", "*", "device"),
    ]
    assert msl.positions == ("thread_position_in_grid",)
    assert msl.call.endswith("<float16_t, 3, 1>")


@pytest.mark.parametrize(
    ("metal", "cpp"),
    [
        ("device const float* p = 0;", " const float* p = 0;"),
        ("constant float a = 1.5, b = .5, c = 1e3, d = 2.f;",
         "const float a = 1.5f, b = .5f, c = 1e3f, d = 2.f;"),
        ("int a = 0x1e5, b = 1u, c = 'e';", "int a = 0x1e5, b = 1u, c = 'e';"),
        ("half h = 2.5h;", "half h = half(2.5f);"),
        ("/* threadgroup float s[2]; 1.5 */ f(\"1.5\"); // 2.5",
         "/* threadgroup float s[2]; 1.5 */ f(\"1.5\"); // 2.5"),
        ("uint i [[thread_index]];", "uint i ;"),
        ("a[b[0]] = 1.0;", "a[b[0]] = 1.0f;"),
        ("#include <metal_stdlib>\nint i;", "\nint i;"),
        ("f((threadgroup T*)p);", "f(( T*)p);"),
        ("void f(const threadgroup vec<T, 4>* p);", "void f(const  vec<T, 4>* p);"),
    ],
)  # fmt: skip
def test_tokens_are_rewritten(metal: str, cpp: str) -> None:
    assert rewrite(metal) == cpp


def test_a_threadgroup_variable_becomes_a_reference_to_shared_memory() -> None:
    text = rewrite("{ threadgroup array<T, 2> a[N][2 * N],\n b; }\n int after;")
    assert 'emu_threadgroup_variable(0, "a", sizeof(emu_type_a))' in text
    assert 'emu_threadgroup_variable(1, "b", sizeof(emu_type_b))' in text
    assert "threadgroup " not in text
    assert text.splitlines()[2] == " int after;"


@pytest.mark.parametrize(
    "text",
    [
        "void f(threadgroup float x[4]);",
        "threadgroup float x = 1;",
        "if (a) threadgroup float x[4];",
        "threadgroup float x[4]",
        '#include "mine.h"',
    ],
)
def test_what_cannot_be_placed_is_refused(text: str) -> None:
    with pytest.raises(Unsupported, match="line 1"):
        rewrite(text)


@needs_compiler
@pytest.mark.parametrize("few", [mx.zeros(3), mx.zeros(8)], ids=["constant", "device"])
def test_a_pointer_to_an_input_fits_one_address_space_only(few: mx.array) -> None:
    inputs = {"few": few}
    body = " float* p = few; out[0] = T(p[0]);"
    right, wrong = ("constant", "device") if few.size < 8 else ("device", "constant")
    check_types(kernel_call(f"const {right}{body}", inputs=inputs))
    with pytest.raises(CompileError, match="cannot initialize"):
        check_types(kernel_call(f"const {wrong}{body}", inputs=inputs))


@needs_compiler
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("threadgroup float s[4]; device float* p = s;", "cannot initialize"),
        ("threadgroup float s[4]; device float* p = (device float*)s;", "address space"),
        ("if (N > 2) { threadgroup float s[4]; }", "local address space"),
        ("x[0] = 1;", "read-only"),
        ("out[0] = T(max(x[0], half(1)));", "ambiguous"),
        ("bfloat b = 1.0f;", "no viable conversion"),
        ("out[0] = undeclared;", "undeclared"),
        ("simdgroup_barrier(3);", "no known conversion|no matching function"),
    ],
)
def test_the_static_check_refuses(source: str, words: str) -> None:
    check_types(kernel_call(SOURCE))
    with pytest.raises(CompileError, match=words):
        check_types(kernel_call(source + SOURCE))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("const float* p = x;", "line 9: a pointer or reference without"),
        ("float v; float& r = v;", "line 9: a pointer or reference without"),
        ("// caf\N{LATIN SMALL LETTER E WITH ACUTE}\n", "line 9: not ASCII"),
    ],
)
def test_the_lints_find(source: str, words: str) -> None:
    assert lint(kernel_call(SOURCE)) == []
    assert [words in finding for finding in lint(kernel_call(source + SOURCE))] == [True]


def test_the_lints_count_buffers() -> None:
    names = [f"x{i}" for i in range(31)]
    inputs = {name: mx.zeros(8) for name in names}
    msl = kernel_call("out[0] = T(x0[0]);", inputs=inputs)
    assert lint(msl) == ["32 buffers: Metal has 31"]


def test_without_a_compiler_the_error_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(toolchain, "compiler", lambda: None)
    with pytest.raises(CompileError, match="of version 16 or later; tried clang"):
        check_types(kernel_call(SOURCE))


@needs_compiler
def test_threadgroup_memory_ends_at_32_kb() -> None:
    source = "threadgroup float s[SIZE]; s[0] = 1; out[thread_position_in_grid.x] = x[0];"
    run(source, template=[("SIZE", 8192)], threads=1, shape=(1,))
    with pytest.raises(Trap, match="32784 of 32768 bytes"):
        run(source, template=[("SIZE", 8193)], threads=1, shape=(1,))
