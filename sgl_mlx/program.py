"""The decorator `@function`, which turns a Python function into a program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

from sgl_mlx import bounds
from sgl_mlx.errors import ProgramError
from sgl_mlx.lang.program import Program

if TYPE_CHECKING:
    from sgl_mlx.compiler.graph.graph import (
        Graph,
    )
    from sgl_mlx.compiler.program import CompiledProgram
    from sgl_mlx.compiler.sglang_names import Trace


class SglFunction(Program):
    """A program made by `@function`: it can be run directly, traced, or compiled."""

    def trace(self, *, backend: Any = None, **kwargs: Any) -> Trace:
        """Trace the program and return its graph (`sgl_mlx.compiler.graph.graph`), as in SGLang.

        Args:
            backend: ignored; SGLang has this parameter.
            kwargs: arguments of the program. Texts and lists of texts become placeholders: the
                graph does not depend on the content of a text. An argument that is left out and
                has no default counts as a text.
        """
        # Imported only here, so that programs that are never traced do not load the compiler.
        from sgl_mlx.compiler.sglang_names import Trace

        return Trace.of(self.compile().graph(**kwargs))

    def compile(
        self,
        *,
        backend: Any = None,
        reorder: Literal["rules"] | None = None,
        passes: Sequence[Callable[[Graph], Graph]] | None = None,
    ) -> CompiledProgram:
        """Return a program that runs from a graph, with the same results (but see `reorder`).

        Args:
            backend: ignored; SGLang has this parameter.
            reorder: "rules" moves constant instructions ahead of arguments, so that prompts share
                longer prefixes. Prompts then differ from those of the uncompiled program, and so
                may the results. Moves that might change the meaning are left out.
            passes: functions that rewrite a graph, applied in order in place of the standard ones.

        Raises:
            ProgramError: for an unknown `reorder`, or `passes` that are no functions.
        """
        # Imported only here, so that programs that are never compiled do not load the compiler.
        from sgl_mlx.compiler.pipeline import standard_passes
        from sgl_mlx.compiler.program import CompiledProgram

        if passes is None:
            passes = standard_passes(reorder)
        listed = bounds.listed(passes)
        if listed is None or not all(map(callable, listed)):
            bounds.refuse("passes", passes, "a list of functions", ProgramError)
        return CompiledProgram.of(self, passes)


@overload
def function(func: Callable[..., Any], num_api_spec_tokens: int | None = None) -> SglFunction: ...
@overload
def function(
    func: None = None, num_api_spec_tokens: int | None = None
) -> Callable[[Callable[..., Any]], SglFunction]: ...
def function(
    func: Callable[..., Any] | None = None, num_api_spec_tokens: int | None = None
) -> SglFunction | Callable[[Callable[..., Any]], SglFunction]:
    """Turn a Python function into a program: `@function` or `@function(num_api_spec_tokens=...)`.

    Args:
        func: the function; its first parameter, `s`, is the state that it appends to.
        num_api_spec_tokens: on the backend of an API such as `OpenAI`, the fewest tokens that each
            call asks for. Text beyond a `gen`'s answer may answer the next `gen`, which saves its
            call. By default each `gen` makes a call of its own. Other backends ignore this.

    Raises:
        ProgramError: when the first parameter is not named `s`.
    """
    if func is None:
        return partial(SglFunction, num_api_spec_tokens=num_api_spec_tokens)
    return SglFunction(func, num_api_spec_tokens)
