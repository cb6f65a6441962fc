"""Replacement of a global function in the modules of mlx-lm that define a model.

mlx-lm's architectures call `scaled_dot_product_attention` and `swiglu` as globals of their module,
so replacing the global replaces the implementation. A global is replaced once in a process, however
many models are loaded. At each call the replacement decides whether to run or to call the original.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import mlx.nn as nn

Function = Callable[..., Any]


def redirect(model: nn.Module, name: str, wrap: Callable[[Function], Function]) -> None:
    """Replace the function `name` by `wrap(original)` in mlx-lm's modules of the model's classes.

    A module whose function was replaced before stays as it is.
    """
    modules = {cls.__module__ for layer in model.modules() for cls in type(layer).__mro__}
    for module in (sys.modules[m] for m in modules if m.startswith("mlx_lm.models.")):
        original = getattr(module, name, None)
        if original is not None and not hasattr(original, "redirected_from"):
            replacement = wrap(original)
            replacement.redirected_from = original  # type: ignore[attr-defined]
            setattr(module, name, replacement)
