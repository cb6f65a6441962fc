"""SGLang's `Engine`: the engine of this package with SGLang's further attributes and arguments."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Mapping
from functools import cached_property
from types import SimpleNamespace
from typing import Any

from sgl_mlx.compat.tokenizer import TransformersTokenizer
from sgl_mlx.errors import NotYetError, UnsupportedModelError
from sgl_mlx.lang.templates.chat_template import ChatTemplate, get_chat_template_by_model_path
from sgl_mlx.models.hidden import last_hidden_state
from sgl_mlx.runtime.engine import Engine as OwnEngine
from sgl_mlx.runtime.request.embedding import scaled
from sgl_mlx.runtime.request.prepare import Prepared

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
_SILENT = {"max_new_tokens": 0}


class Engine(OwnEngine):
    """An `sgl_mlx.Engine` that takes arguments in SGLang's order and under SGLang's names.

    An argument of SGLang that this runtime does not support is named in a warning, unless its value
    is None or False.
    """

    _chosen_template: ChatTemplate | None = None

    @property
    def server_args(self) -> SimpleNamespace:
        """The options of the engine, and `tokenizer_path`."""
        return SimpleNamespace(**{**vars(self.config), "tokenizer_path": self.model_name})

    @cached_property
    def tokenizer_manager(self) -> SimpleNamespace:
        """SGLang's tokenizer process; here an object with `tokenizer` and `server_args`."""
        return SimpleNamespace(tokenizer=self.get_tokenizer(), server_args=self.server_args)

    @property
    def model_info(self) -> dict[str, Any]:
        return {"model_path": self.model_name, "is_generation": True}

    def get_model_name(self) -> str:
        return self.model_name

    @property
    def chat_template(self) -> ChatTemplate:
        """The chat template set by the program, else SGLang's template for this model's name."""
        return self._chosen_template or get_chat_template_by_model_path(self.model_name)

    @chat_template.setter
    def chat_template(self, template: ChatTemplate | None) -> None:
        self._chosen_template = template

    def get_chat_template(self) -> ChatTemplate | None:
        """Return the chat template set by the program; None means the model's own template."""
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
        """Continue one or more prompts: see `sgl_mlx.Engine.generate`."""
        return super().generate(prompt, sampling_params, input_ids, **_known(options))

    async def async_generate(  # type: ignore[override]
        self,
        prompt: Any = None,
        sampling_params: Any = None,
        input_ids: Any = None,
        **options: Any,
    ) -> Any:
        """Continue one or more prompts: see `sgl_mlx.Engine.async_generate`."""
        return await super().async_generate(prompt, sampling_params, input_ids, **_known(options))

    def cache_prefix(self, prefix: str) -> None:
        """Prefill a text, so that its KV cache is ready for prompts that begin with the text."""
        super().generate(prefix, _SILENT)

    def encode(
        self, prompt: Any = None, image_data: Any = None, input_ids: Any = None, **options: Any
    ) -> Any:
        """Embed one or more prompts: the last token's hidden state, scaled to length 1.

        Args:
            prompt: a text or a list of texts; give either this or `input_ids`.
            image_data: must be None.
            input_ids: the token ids of one prompt, or a list of such lists.
            options: SGLang's further arguments; those that are set are named in a warning.

        Returns:
            A dictionary with `embedding`, a list of floats, and `meta_info`; for a list of prompts,
            a list of such dictionaries.

        Raises:
            NotYetError: `image_data` is given.
            InvalidParamsError, PromptError: for a wrong argument.
            UnsupportedModelError: the model's architecture gives no hidden states.
        """
        if image_data is not None:
            raise NotYetError("encode() embeds text alone; give no image_data")
        inputs = self._ask(prompt, _SILENT, input_ids, None, _known(options))
        rows = zip(inputs.prepare(self._preparer), inputs.options, strict=True)
        answers = [self._embed(prepared, options.rid) for prepared, options in rows]
        return answers[0] if inputs.single else answers

    def _embed(self, prepared: Prepared, rid: str | None) -> dict[str, Any]:
        if self._model.ranks is not None:  # rank 0 alone would wait for the others for ever
            raise UnsupportedModelError("encode() needs one process; several ranks run the model")
        state = last_hidden_state(self.run_on_model, prepared.prompt.tokens)
        meta = {
            "id": rid,
            "finish_reason": {"type": "length", "length": 0},
            "prompt_tokens": prepared.prompt_tokens,
        }
        return {"embedding": scaled(state), "meta_info": meta}

    async def async_encode(self, *args: Any, **options: Any) -> Any:
        """Embed one or more prompts as `encode` does, without blocking the event loop."""
        return await asyncio.to_thread(self.encode, *args, **options)

    def start_profile(self, *_: Any, **__: Any) -> None:
        """Do nothing: the counters in `get_server_info()["stats"]` are always on."""

    stop_profile = start_profile


def _known(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that the engine supports; warn of the others that are set."""
    foreign = [k for k in _UNKNOWN_HERE if options.get(k) not in (None, False)]
    if foreign:
        warnings.warn(f"no effect on this runtime: {', '.join(foreign)}", stacklevel=3)
    return {k: v for k, v in options.items() if k not in _UNKNOWN_HERE}
