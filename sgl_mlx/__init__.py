"""LLM programs on Apple silicon: a language embedded in Python, and a runtime on MLX.

The runtime keeps the KV of earlier prompts in a radix tree, so that common prefixes are computed
only once.

    import sgl_mlx as sgl

    @sgl.function
    def answer(s, question):
        s += sgl.user(question) + sgl.assistant(sgl.gen("answer"))

Importing this package loads neither mlx nor transformers. Parts that need mlx or transformers are
imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sgl_mlx.blas import load_fast_blas_before_mlx
from sgl_mlx.compat.sglang import install_as_sglang
from sgl_mlx.core import SamplingParams
from sgl_mlx.errors import (
    BackendError,
    BatchError,
    CorruptModelError,
    EngineStoppedError,
    GraphError,
    InvalidParamsError,
    MemoryLimitError,
    ModelError,
    ModelNotFoundError,
    NotYetError,
    ProgramCancelled,
    ProgramError,
    ProgramTimeout,
    PromptError,
    RegexError,
    RequestAborted,
    RequestError,
    SglError,
    TokenizerError,
    UnknownVariableError,
    UnsupportedModelError,
)
from sgl_mlx.lang.choices import (
    greedy_token_selection,
    token_length_normalized,
    unconditional_likelihood_normalized,
)
from sgl_mlx.lang.config import flush_cache, get_server_info, global_config, set_default_backend
from sgl_mlx.lang.scoring import score
from sgl_mlx.lang.state import ProgramState
from sgl_mlx.lang.words import (
    assistant,
    assistant_begin,
    assistant_end,
    gen,
    gen_int,
    gen_string,
    image,
    select,
    separate_reasoning,
    system,
    system_begin,
    system_end,
    user,
    user_begin,
    user_end,
    video,
)
from sgl_mlx.program import SglFunction, function

if TYPE_CHECKING:
    from sgl_mlx.compat.runtime import Runtime
    from sgl_mlx.lang.backends.openai import OpenAI
    from sgl_mlx.lang.backends.runtime_endpoint import RuntimeEndpoint
    from sgl_mlx.runtime.engine import Engine

    __version__: str

__all__ = [
    "BackendError",
    "BatchError",
    "CorruptModelError",
    "Engine",
    "EngineStoppedError",
    "GraphError",
    "InvalidParamsError",
    "MemoryLimitError",
    "ModelError",
    "ModelNotFoundError",
    "NotYetError",
    "OpenAI",
    "ProgramCancelled",
    "ProgramError",
    "ProgramState",
    "ProgramTimeout",
    "PromptError",
    "RegexError",
    "RequestAborted",
    "RequestError",
    "Runtime",
    "RuntimeEndpoint",
    "SamplingParams",
    "SglError",
    "SglFunction",
    "TokenizerError",
    "UnknownVariableError",
    "UnsupportedModelError",
    "__version__",
    "assistant",
    "assistant_begin",
    "assistant_end",
    "flush_cache",
    "function",
    "gen",
    "gen_int",
    "gen_string",
    "get_server_info",
    "global_config",
    "greedy_token_selection",
    "image",
    "install_as_sglang",
    "score",
    "select",
    "separate_reasoning",
    "set_default_backend",
    "system",
    "system_begin",
    "system_end",
    "token_length_normalized",
    "unconditional_likelihood_normalized",
    "user",
    "user_begin",
    "user_end",
    "video",
]

load_fast_blas_before_mlx()

_LAZY = {
    "Engine": "sgl_mlx.runtime.engine",
    "OpenAI": "sgl_mlx.lang.backends.openai",
    "Runtime": "sgl_mlx.compat.runtime",
    "RuntimeEndpoint": "sgl_mlx.lang.backends.runtime_endpoint",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        # Imported only here: reading the metadata takes longer than the rest of the import.
        from importlib.metadata import version

        value: Any = version("sgl-mlx")
    elif name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
    else:
        raise AttributeError(f"module 'sgl_mlx' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
