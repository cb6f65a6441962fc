"""SGLang's `Engine`: ours, with the further attributes and arguments that its programs use."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cached_property
from types import SimpleNamespace
from typing import Any

from sgl_mlx.compat.tokenizer import TransformersTokenizer
from sgl_mlx.errors import NotYetError
from sgl_mlx.lang.templates.chat_template import ChatTemplate, get_chat_template_by_model_path
from sgl_mlx.runtime.engine import Engine as OwnEngine

_UNKNOWN_HERE = (
    "audio_data",
    "video_data",
    "custom_logit_processor",
    "data_parallel_rank",
    "lora_path",
    "return_hidden_states",
    "session_params",
    "token_ids_logprob",
)


class Engine(OwnEngine):
    """An `sgl_mlx.Engine` that takes SGLang's positional order and names.

    Arguments that SGLang has and this runtime has not are named in a warning, unless they are
    None or False.
    """

    _chosen_template: ChatTemplate | None = None

    @property
    def server_args(self) -> SimpleNamespace:
        """The options, `tokenizer_path` included."""
        return SimpleNamespace(**{**vars(self.config), "tokenizer_path": self.model_name})

    @cached_property
    def tokenizer_manager(self) -> SimpleNamespace:
        """An object with the tokenizer and the options; there is no such process here."""
        return SimpleNamespace(tokenizer=self.get_tokenizer(), server_args=self.server_args)

    @property
    def model_info(self) -> dict[str, Any]:
        return {"model_path": self.model_name, "is_generation": True}

    def get_model_name(self) -> str:
        return self.model_name

    @property
    def chat_template(self) -> ChatTemplate:
        """The template set by the program, else SGLang's for a model of this name."""
        return self._chosen_template or get_chat_template_by_model_path(self.model_name)

    @chat_template.setter
    def chat_template(self, template: ChatTemplate | None) -> None:
        self._chosen_template = template

    def get_chat_template(self) -> ChatTemplate | None:
        """The template set by the program; None lets the model's own write turns."""
        return self._chosen_template

    def get_tokenizer(self) -> Any:
        return TransformersTokenizer(self.tokenizer)

    def generate(  # type: ignore[override]  # takes more names, and no more positions
        self,
        prompt: Any = None,
        sampling_params: Any = None,
        input_ids: Any = None,
        **options: Any,
    ) -> Any:
        """As `sgl_mlx.Engine.generate`."""
        return super().generate(prompt, sampling_params, input_ids, **_known(options))

    async def async_generate(  # type: ignore[override]
        self,
        prompt: Any = None,
        sampling_params: Any = None,
        input_ids: Any = None,
        **options: Any,
    ) -> Any:
        """As `sgl_mlx.Engine.async_generate`."""
        return await super().async_generate(prompt, sampling_params, input_ids, **_known(options))

    def cache_prefix(self, prefix: str) -> None:
        """Compute a text ahead of the programs that begin with it."""
        super().generate(prefix, {"max_new_tokens": 0})

    def encode(self, *_: Any, **__: Any) -> Any:
        """Raises `NotYetError`: there are no embeddings."""
        raise NotYetError("encode() makes embeddings, for which this runtime has no models")

    def start_profile(self, *_: Any, **__: Any) -> None:
        """Do nothing: `get_server_info()["stats"]` counts at all times."""

    stop_profile = start_profile


def _known(options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that our engine has; one warning names the others that were set."""
    foreign = [k for k in _UNKNOWN_HERE if options.get(k) not in (None, False)]
    if foreign:
        warnings.warn(f"no effect on this runtime: {', '.join(foreign)}", stacklevel=3)
    return {k: v for k, v in options.items() if k not in _UNKNOWN_HERE}
