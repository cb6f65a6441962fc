"""`@function` makes a program of a Python function whose first argument is the state `s`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

from sgl_mlx.lang.program import Program

if TYPE_CHECKING:
    from sgl_mlx.compiler.graph.graph import (
        Graph,
    )
    from sgl_mlx.compiler.program import CompiledProgram
    from sgl_mlx.compiler.sglang_names import Trace


class SglFunction(Program):
    """A program that can be interpreted, and traced and compiled as well."""

    def trace(self, *, backend: Any = None, **kwargs: Any) -> Trace:
        """Trace the program into a graph (`sgl_mlx.compiler.graph.graph`).

        Args:
            backend: accepted for SGLang's sake: a graph has roles, not their text.
            kwargs: arguments; of texts, and lists of them, only that they are texts counts.
                Those that are left out and have no default are taken for texts.
        """
        # Only here, as in `compile`.
        from sgl_mlx.compiler.sglang_names import Trace

        return Trace.of(self.compile().graph(**kwargs))

    def compile(
        self,
        *,
        backend: Any = None,
        reorder: Literal["rules"] | None = None,
        passes: Sequence[Callable[[Graph], Graph]] | None = None,
    ) -> CompiledProgram:
        """Compile the program: it then runs from its graph, with the same results.

        Args:
            backend: accepted for SGLang's sake: no backend is asked.
            reorder: "rules" moves instructions ahead of arguments, so that more of every prompt
                is shared. Prompts then differ from the interpreter's; a move that might change
                the meaning is refused.
            passes: rewrite each graph by these, in order, instead of by the standard ones.

        Raises:
            ProgramError: for an unknown `reorder`.
        """
        # Only here, so that programs that are never compiled start without loading the compiler.
        from sgl_mlx.compiler.pipeline import standard_passes
        from sgl_mlx.compiler.program import CompiledProgram

        if passes is None:
            passes = standard_passes(reorder)
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
    """Make a program: `@function` or `@function(num_api_spec_tokens=...)`.

    Raises:
        ProgramError: when the first parameter is not named `s`.
    """
    if func is None:
        return partial(SglFunction, num_api_spec_tokens=num_api_spec_tokens)
    return SglFunction(func, num_api_spec_tokens)
