"""SGLang's clients of other services: Anthropic, LiteLLM and VertexAI. Each needs its package."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

from sgl_mlx.compat.base_backend import BaseBackend, SglSamplingParams
from sgl_mlx.errors import BackendError
from sgl_mlx.lang.templates.chat_template import (
    ChatTemplate,
    get_chat_template,
    get_chat_template_by_model_path,
)


class _Client(BaseBackend):
    """A backend for a service that takes a conversation as a list of turns."""

    is_chat_model = True

    def __init__(self, model_name: str, chat_template: ChatTemplate) -> None:
        self.model_name = model_name
        self.chat_template = chat_template


class Anthropic(_Client):
    """A backend for Anthropic's messages API.

    Args:
        model_name: the name of the model in the API.
        client: an `anthropic.Anthropic` object to use; None makes one.
        args, kwargs: arguments for the new `anthropic.Anthropic`; ignored if a `client` is given.

    Raises:
        BackendError: the package `anthropic` is missing.
    """

    def __init__(self, model_name: str, *args: Any, client: Any = None, **kwargs: Any) -> None:
        super().__init__(model_name, get_chat_template("claude"))
        self.client = client or _package("anthropic").Anthropic(*args, **kwargs)

    def generate(self, s: Any, sampling_params: Any) -> tuple[str, dict[str, Any]]:
        create = self.client.messages.create
        answer = create(**_accepted(create, self._request(s, sampling_params)))
        return answer.content[0].text, _usage(answer)

    def generate_stream(self, s: Any, sampling_params: Any) -> Iterator[tuple[str, Any]]:
        stream = self.client.messages.stream
        with stream(**_accepted(stream, self._request(s, sampling_params))) as opened:
            for text in opened.text_stream:
                yield text, {}

    def _request(self, s: Any, sampling_params: Any) -> dict[str, Any]:
        turns = _turns(s)
        system = [turn["content"] for turn in turns if turn["role"] == "system"]
        usual = SglSamplingParams().to_anthropic_kwargs()
        given = sampling_params.to_anthropic_kwargs()
        request = {
            "model": self.model_name,
            "messages": [turn for turn in turns if turn["role"] != "system"],
            "max_tokens": given.pop("max_tokens"),
            **{name: value for name, value in given.items() if value != usual[name]},
        }
        return {**request, "system": "\n".join(system)} if system else request


class LiteLLM(_Client):
    """A backend for all services that the package `litellm` supports.

    Args:
        model_name: the name of the model, as `litellm` expects it.
        chat_template: how turns become the text of the prompt; None chooses by the model's name.
        client: an object to use in place of the module `litellm`.
        options: further arguments of `litellm.completion`, sent with every request.

    Raises:
        BackendError: the package `litellm` is missing.
    """

    def __init__(
        self,
        model_name: str,
        chat_template: ChatTemplate | None = None,
        *,
        client: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(model_name, chat_template or get_chat_template_by_model_path(model_name))
        self.client = client or _package("litellm")
        self.client_params = options

    def generate(self, s: Any, sampling_params: Any) -> tuple[str, dict[str, Any]]:
        answer = self.client.completion(**self._request(s, sampling_params))
        return answer.choices[0].message.content or "", _usage(answer)

    def generate_stream(self, s: Any, sampling_params: Any) -> Iterator[tuple[str, Any]]:
        for event in self.client.completion(stream=True, **self._request(s, sampling_params)):
            for choice in event.choices[:1]:
                yield choice.delta.content or "", {}

    def _request(self, s: Any, sampling_params: Any) -> dict[str, Any]:
        return {
            "model": self.model_name,
            "messages": _turns(s),
            **self.client_params,
            **sampling_params.to_litellm_kwargs(),
        }


class VertexAI(_Client):
    """A backend for Google's Vertex AI.

    The environment variables `GCP_PROJECT_ID` and `GCP_LOCATION` name the project and its location.

    Args:
        model_name: the name of the model in Vertex AI.
        safety_settings: passed to Vertex AI with every request; None leaves Vertex AI's own.
        client: a model object of the package `vertexai` to use; None makes one.

    Raises:
        BackendError: the package `vertexai` is missing, or `GCP_PROJECT_ID` is not set.
    """

    def __init__(self, model_name: str, safety_settings: Any = None, *, client: Any = None) -> None:
        super().__init__(model_name, get_chat_template("default"))
        self.safety_settings = safety_settings
        self.client = client or _vertex(model_name)

    def generate(self, s: Any, sampling_params: Any) -> tuple[str, dict[str, Any]]:
        return self.client.generate_content(
            *self._request(s), **self._how(sampling_params)
        ).text, {}

    def generate_stream(self, s: Any, sampling_params: Any) -> Iterator[tuple[str, Any]]:
        how = self._how(sampling_params)
        for answer in self.client.generate_content(*self._request(s), stream=True, **how):
            yield answer.text, {}

    def _request(self, s: Any) -> tuple[Any]:
        return ([_content(turn) for turn in _turns(s)],)

    def _how(self, sampling_params: Any) -> dict[str, Any]:
        given = sampling_params.to_vertexai_kwargs()
        config = {key: value for key, value in given.items() if value is not None}
        return {"generation_config": config, "safety_settings": self.safety_settings}


def _accepted(method: Callable[..., Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request as keyword arguments for `method`.

    Fields for which `method` has no parameter are moved into the field `extra_body`.
    """
    parameters = inspect.signature(method).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return dict(request)
    named = {name: value for name, value in request.items() if name in parameters}
    others = {name: value for name, value in request.items() if name not in parameters}
    return {**named, "extra_body": others} if others else named


def _turns(s: Any) -> list[dict[str, Any]]:
    """Return the turns of a prompt; a prompt without turns becomes one user turn."""
    return list(s.messages_) or [{"role": "user", "content": s.text_}]


def _content(turn: dict[str, Any]) -> dict[str, Any]:
    """Convert a turn to the format of Vertex AI; a system turn becomes a user turn."""
    content = turn["content"]
    items = [{"type": "text", "text": content}] if isinstance(content, str) else content
    parts = [_part(item) for item in items]
    return {"role": "model" if turn["role"] == "assistant" else "user", "parts": parts}


def _part(item: dict[str, Any]) -> dict[str, Any]:
    if item["type"] == "text":
        return {"text": item["text"]}
    kind, _, data = item["image_url"]["url"].partition(";base64,")
    return {"inline_data": {"mime_type": kind.removeprefix("data:"), "data": data}}


def _usage(answer: Any) -> dict[str, Any]:
    """Return the token counts of an answer: "prompt_tokens" and "completion_tokens", if known."""
    usage = getattr(answer, "usage", None)
    names = {
        "prompt_tokens": ("prompt_tokens", "input_tokens"),
        "completion_tokens": ("completion_tokens", "output_tokens"),
    }
    return {
        name: getattr(usage, theirs)
        for name, spellings in names.items()
        for theirs in spellings
        if hasattr(usage, theirs)
    }


def _vertex(model_name: str) -> Any:
    vertexai = _package("vertexai")
    if "GCP_PROJECT_ID" not in os.environ:
        raise BackendError("VertexAI needs the project's name in the variable GCP_PROJECT_ID")
    vertexai.init(project=os.environ["GCP_PROJECT_ID"], location=os.environ.get("GCP_LOCATION"))
    return _package("vertexai.preview.generative_models").GenerativeModel(model_name)


def _package(name: str) -> Any:
    extra = name.partition(".")[0]
    try:
        return import_module(name)
    except ImportError as error:
        cause = "" if (error.name or extra).partition(".")[0] == extra else f" ({error})"
        raise BackendError(
            f"this backend needs the package {extra}{cause}: pip install 'sgl-mlx[{extra}]'"
        ) from error
