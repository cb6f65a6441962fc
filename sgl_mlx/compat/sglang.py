"""The alias `import sglang` for programs written for SGLang: its names resolve to this package."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType, TracebackType
from typing import Any

_ALIAS = "sglang"

_ENDPOINT = ("sgl_mlx.lang.backends.runtime_endpoint", "sgl_mlx.compat.runtime")
_BACKENDS = {
    "": (
        "sgl_mlx.compat.base_backend",
        "sgl_mlx.compat.clients",
        "sgl_mlx.lang.backends.openai",
        *_ENDPOINT,
    ),
    ".anthropic": ("sgl_mlx.compat.clients",),
    ".base_backend": ("sgl_mlx.compat.base_backend",),
    ".litellm": ("sgl_mlx.compat.clients",),
    ".openai": ("sgl_mlx.lang.backends.openai",),
    ".runtime_endpoint": _ENDPOINT,
    ".vertexai": ("sgl_mlx.compat.clients",),
}
_OWN = ("sgl_mlx.compat.engine", "sgl_mlx.compat.function")
_TOP = (*_OWN, "sgl_mlx", "sgl_mlx.compat.clients", "sgl_mlx.compat.srt")
_WORDS = (*_OWN, "sgl_mlx", "sgl_mlx.lang.words")
_SRT = ("sgl_mlx.compat.srt", "sgl_mlx.compat.utils")
_LATE = {
    "sgl_mlx.compat.engine": frozenset({"Engine"}),
    "sgl_mlx.compat.function": frozenset({"function"}),
}
"""Modules that are imported only when one of the listed names is used; the first one loads mlx."""

# For each module of SGLang, the modules of this package to search for its names, in order.
_MODULES: dict[str, tuple[str, ...]] = {
    "sglang": _TOP,
    "sglang.api": _WORDS,
    "sglang.global_config": ("sgl_mlx.lang.config",),
    "sglang.utils": ("sgl_mlx.compat.utils",),
    "sglang.version": ("sgl_mlx",),
    "sglang.lang": (),
    "sglang.lang.api": _WORDS,
    "sglang.lang.ir": ("sgl_mlx.lang.ir", "sgl_mlx.program", "sgl_mlx.compat.names"),
    "sglang.lang.choices": ("sgl_mlx.lang.choices",),
    "sglang.lang.chat_template": ("sgl_mlx.lang.templates.chat_template",),
    "sglang.lang.compiler": ("sgl_mlx.compat.names",),
    "sglang.lang.tracer": ("sgl_mlx.compat.names",),
    "sglang.lang.interpreter": (
        "sgl_mlx.lang.state",
        "sgl_mlx.lang.group",
        "sgl_mlx.compat.names",
    ),
    **{f"sglang.lang.backend{name}": modules for name, modules in _BACKENDS.items()},
    **{f"sglang.backend{name}": modules for name, modules in _BACKENDS.items()},
    "sglang.srt": (),
    "sglang.srt.constrained": _SRT,
    "sglang.srt.constrained.outlines_backend": _SRT,
    "sglang.srt.entrypoints": (),
    "sglang.srt.entrypoints.engine": ("sgl_mlx.compat.engine",),
    "sglang.srt.hf_transformers_utils": _SRT,
    "sglang.srt.parser": (),
    "sglang.srt.parser.reasoning_parser": _SRT,
    "sglang.srt.reasoning_parser": _SRT,
    "sglang.srt.server": ("sgl_mlx.compat.runtime", "sgl_mlx.compat.engine"),
    "sglang.srt.server_args": _SRT,
    "sglang.srt.utils": _SRT,
    "sglang.srt.utils.hf_transformers_utils": _SRT,
    "sglang.test": (),
    "sglang.test.test_programs": ("sgl_mlx.compat.test_programs",),
    "sglang.test.test_utils": ("sgl_mlx.compat.test_utils",),
}


class _AliasModule(ModuleType):
    """A module whose names are looked up in modules of this package on first use."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)
        for source in _MODULES[self.__name__]:
            if name not in _LATE.get(source, {name}):
                continue  # a late module is not imported for other names
            module = import_module(source)
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"sgl_mlx has no counterpart of {self.__name__}.{name}")


class AliasFinder(MetaPathFinder, Loader):
    """An import finder for `sglang` and its submodules.

    `uninstall`, or the end of a `with` block, removes the finder.
    """

    def __init__(self) -> None:
        self._hidden = _taken_modules()
        sys.meta_path.insert(0, self)

    def uninstall(self) -> None:
        """Remove the alias, and restore the `sglang` modules that it replaced."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            _taken_modules()
            sys.modules.update(self._hidden)

    def __enter__(self) -> AliasFinder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.uninstall()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module of SGLang; None for any other module.

        Raises:
            ModuleNotFoundError: this package has no counterpart of the module.
        """
        if fullname != _ALIAS and not fullname.startswith(f"{_ALIAS}."):
            return None
        if fullname not in _MODULES:
            raise ModuleNotFoundError(
                f"sgl_mlx has no counterpart of the module {fullname}; "
                f"it has {', '.join(_MODULES)}",
                name=fullname,
            )
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _AliasModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Set the module's `__all__`, so that `from sglang import *` imports the public names."""
        sources = [s for s in _MODULES[module.__name__] if s not in _LATE][:1]
        for source in sources:
            names = getattr(import_module(source), "__all__", None)
            if names is not None:
                module.__dict__["__all__"] = list(names)


def _taken_modules() -> dict[str, ModuleType]:
    """Remove every `sglang` module from `sys.modules`, and return the removed ones by name."""
    names = [name for name in sys.modules if name == _ALIAS or name.startswith(f"{_ALIAS}.")]
    return {name: sys.modules.pop(name) for name in names}


def install_as_sglang() -> AliasFinder:
    """Make `import sglang` and its submodules mean this package; return the finder that does so.

    Importing a name or module without a counterpart raises ImportError. The finder's `uninstall()`,
    or the end of a `with` block over it, removes the alias. While the alias is installed, another
    call returns the same finder.
    """
    for finder in sys.meta_path:
        if isinstance(finder, AliasFinder):
            return finder
    return AliasFinder()
