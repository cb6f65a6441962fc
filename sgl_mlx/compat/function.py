"""SGLang's `function`: programs whose tracing is as strict as SGLang's."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from functools import partial
from typing import Any

from sgl_mlx.program import SglFunction as OwnFunction


class SglFunction(OwnFunction):
    """A program; its `trace` refuses to format an argument without a value in an f-string."""

    def trace(self, *, backend: Any = None, **kwargs: Any) -> Any:
        """Trace the program into a graph: see `sgl_mlx.program.SglFunction.trace`.

        Raises:
            TypeError: an f-string formats an argument without a value; SGLang refuses this too.
        """
        free = set(self.arg_names) - {*kwargs, *self.bind_arguments}
        formatted = sorted(free & _formatted_names(self.func))
        if formatted:
            raise TypeError(
                f"{self.name}() formats its argument {formatted[0]!r} in an f-string; give "
                f"trace() a value for it, or write + {formatted[0]} +"
            )
        return super().trace(backend=backend, **kwargs)


def function(func: Callable[..., Any] | None = None, num_api_spec_tokens: int | None = None) -> Any:
    """Make a program of a Python function, directly or as a decorator with options.

    Args:
        func, num_api_spec_tokens: see `sgl_mlx.function`.
    """
    if func is None:
        return partial(SglFunction, num_api_spec_tokens=num_api_spec_tokens)
    return SglFunction(func, num_api_spec_tokens)


def _formatted_names(func: Callable[..., Any]) -> set[str]:
    """Return the names that a function's f-strings format; empty if its source is not available."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(func)))
    except (OSError, TypeError, SyntaxError):
        return set()
    values = [node.value for node in ast.walk(tree) if isinstance(node, ast.FormattedValue)]
    return {value.id for value in values if isinstance(value, ast.Name)}
