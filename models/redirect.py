"""Replacement of a global function in the modules of mlx-lm that define a model.

mlx-lm's architectures call `scaled_dot_product_attention` and `swiglu` as globals of their module,
so replacing the global replaces the implementation. A global is replaced once in a process, however
many models are loaded. At each call the replacement decides whether to run or to call the original.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import mlx.nn as nn
from mlx_lm.models import activations

Function = Callable[..., Any]


def redirect(model: nn.Module, name: str, wrap: Callable[[Function], Function]) -> None:
    """Replace the function `name` by `wrap(original)` in mlx-lm's modules of the model's classes.

    A module whose function is replaced already stays as it is. So does mlx-lm's module
    `activations`: its functions are compiled, and a replacement would become part of their graphs.
    """
    modules = {cls.__module__ for layer in model.modules() for cls in type(layer).__mro__}
    for module in modules - {activations.__name__}:
        if module.startswith("mlx_lm.models."):
            redirect_in(sys.modules[module], name, wrap)


def redirect_in(module: ModuleType, name: str, wrap: Callable[[Function], Function]) -> None:
    """Replace the global `name` of a module by `wrap(original)`, unless it is replaced already.

    A module without this global stays as it is.
    """
    original = getattr(module, name, None)
    if original is not None and not hasattr(original, "redirected_from"):
        replacement = wrap(original)
        replacement.redirected_from = original  # type: ignore[attr-defined]
        setattr(module, name, replacement)
