"""SGLang's `BaseBackend`: the base class of backends that a program defines itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any, NoReturn

from sgl_mlx.core import ChoiceScores, Completion, FinishReason, Prompt, SamplingParams, StreamEvent
from sgl_mlx.errors import TokenizerError
from sgl_mlx.lang.choices import ChoicesDecision, ChoicesSamplingMethod, LateDecision
from sgl_mlx.lang.pictures import MARK, around, data_urls, flat_text
from sgl_mlx.lang.templates.chat_template import ChatTemplate, get_chat_template

_THREADS = 64
_NUMBERS = itertools.count()


@dataclass(eq=False)
class PromptView:
    """A prompt with the attributes and methods that backends written for SGLang expect of `s`.

    Attributes:
        text_: the text of the prompt.
        messages_: the complete turns; empty for a prompt without turns.
        images_: (data URL, base64) of each picture.
        backend: the backend that gets the prompt.
        sid: a name for the stream, unique in this process.
    """

    text_: str
    messages_: list[dict[str, Any]]
    images_: list[tuple[str, str]]
    backend: Any
    sid: str = field(default_factory=lambda: f"stream-{next(_NUMBERS)}")

    @property
    def cur_images(self) -> list[tuple[str, str]]:
        return self.images_

    def text(self) -> str:
        return self.text_

    def messages(self) -> list[dict[str, Any]]:
        return self.messages_


class SglSamplingParams(SamplingParams):
    """Sampling parameters with SGLang's conversions to the arguments of other APIs."""

    def to_openai_kwargs(self) -> dict[str, Any]:
        limit = self.max_new_tokens
        penalties = self._given("frequency_penalty", "presence_penalty")
        return {
            **self.to_litellm_kwargs(),
            **penalties,
            "max_completion_tokens": limit,
            "n": self.n,
        }

    def to_litellm_kwargs(self) -> dict[str, Any]:
        kept = self._given("temperature", "top_p", "frequency_penalty", "presence_penalty")
        return {"max_tokens": self.max_new_tokens, "stop": list(self.stop) or None, **kept}

    def to_anthropic_kwargs(self) -> dict[str, Any]:
        kept = self._given("temperature", "top_p", "top_k")
        return {"max_tokens": self.max_new_tokens, "stop_sequences": list(self.stop), **kept}

    def to_vertexai_kwargs(self) -> dict[str, Any]:
        return {
            "candidate_count": 1,
            "max_output_tokens": self.max_new_tokens,
            "stop_sequences": list(self.stop),
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k if self.top_k > 0 else None,
        }

    def to_srt_kwargs(self) -> dict[str, Any]:
        return asdict(self)

    def clone(self) -> SglSamplingParams:
        return self

    def _given(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names}


class BaseBackend:
    """The base class of backends that are written for SGLang, with SGLang's methods.

    A subclass has to implement `generate`; SGLang's other methods are optional. The class is also a
    `sgl_mlx.lang.backend.Backend`: it passes each request to SGLang's methods, in threads of its
    own. The argument `s` of SGLang's methods is a `PromptView`.
    """

    support_concate_and_append = False
    supports_parallel = False
    is_chat_model = False
    model_name = ""
    chat_template: ChatTemplate | None = None

    def __init__(self) -> None:
        self.chat_template = get_chat_template("default")

    # -- SGLang's methods, for subclasses -------------------------------------------------------

    def get_model_name(self) -> str:
        return self.model_name

    def get_chat_template(self) -> ChatTemplate | None:
        return self.chat_template

    def generate(self, s: Any, sampling_params: Any) -> tuple[Any, Any]:
        """Continue `s.text_`; return `(text, meta info)`, or for `n` samples `(texts, meta infos)`.

        Args:
            s: the prompt, a `PromptView`.
            sampling_params: an `SglSamplingParams`.

        Raises:
            NotImplementedError: the subclass has no such method.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement generate()")

    def generate_stream(self, s: Any, sampling_params: Any) -> Any:
        """Yield (piece of text, meta info); unless overridden, yield what `generate` returns.

        The arguments are those of `generate`.
        """
        text, meta = self.generate(s, sampling_params)
        yield (text[0] if isinstance(text, list) else text), meta

    def select(
        self,
        s: Any,
        choices: list[str],
        temperature: float,
        choices_method: ChoicesSamplingMethod | None = None,
    ) -> ChoicesDecision:
        """Decide which of the choices continues `s.text_` best.

        Args:
            s: the prompt, a `PromptView`.
            temperature: always 0.0, since `select` makes no random choice.
            choices_method: the method of `select`, which the backend may use or ignore.

        Raises:
            NotImplementedError: the subclass has no such method.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement select()")

    def cache_prefix(self, prefix_str: str) -> None: ...

    def uncache_prefix(self, rid: str) -> None: ...

    def begin_program(self, s: Any) -> None: ...

    def end_program(self, s: Any) -> None: ...

    def end_request(self, rid: Any) -> None: ...

    def commit_lazy_operations(self, s: Any) -> None: ...

    def fork_program(self, src: Any, dst: Any, position_ids_offset: Any = None) -> None: ...

    def fill_image(self, s: Any) -> None: ...

    def concatenate_and_append(self, src_rids: list[str], dst_rid: str) -> None: ...

    def flush_cache(self) -> Any:
        return False

    def get_server_info(self) -> Any:
        return {"model_path": self.model_name}

    def shutdown(self) -> None: ...

    # -- lang.backend.Backend -------------------------------------------------------------------

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False
    ) -> NoReturn:
        raise TokenizerError(f"{type(self).__name__} has no model with a chat template of its own")

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        on_event: Callable[[StreamEvent], None] | None = None,
    ) -> Future[tuple[Completion, ...]]:
        asked = SglSamplingParams(**vars(params))
        if on_event is None:
            return self._pool.submit(self._generated, prompt, asked)
        return self._pool.submit(self._streamed, prompt, asked, on_event)

    def score(
        self, prompt: Prompt, choices: Sequence[str], unconditional: bool = False
    ) -> Future[ChoiceScores]:
        decide = partial(self.select, self._view(prompt), list(choices), 0.0)
        late = partial(LateDecision, choices=(), prompt_tokens=0, cached_tokens=0, decide=decide)
        return self._pool.submit(late)  # so callbacks decide on a pool thread

    def prefill(self, prompt: Prompt) -> Future[int]:
        self.commit_lazy_operations(self._view(prompt))
        return self.prefetch(prompt)

    def prefetch(self, prompt: Prompt) -> Future[int]:
        """Do nothing, and return a future of 0 tokens: SGLang's backends cannot prefetch."""
        done: Future[int] = Future()
        done.set_result(0)
        return done

    # -- inside ---------------------------------------------------------------------------------

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_THREADS, thread_name_prefix="sgl-backend")

    def _generated(self, prompt: Prompt, params: SglSamplingParams) -> tuple[Completion, ...]:
        text, meta = self.generate(self._view(prompt), params)
        texts = text if isinstance(text, list) else [text]
        metas = meta if isinstance(meta, list) else [meta] * len(texts)
        return tuple(map(_completion, texts, metas))

    def _streamed(
        self, prompt: Prompt, params: SglSamplingParams, on_event: Callable[[StreamEvent], None]
    ) -> tuple[Completion, ...]:
        pieces, meta = [], None
        for piece, told in self.generate_stream(self._view(prompt), params):
            pieces.append(piece)
            meta = told
            if piece:
                on_event(StreamEvent(0, piece, extra=dict(told or {})))
        completion = _completion("".join(pieces), meta)
        on_event(StreamEvent(0, "", finish_reason=completion.finish_reason, extra=completion.extra))
        return (completion,)

    def _view(self, prompt: Prompt) -> PromptView:
        template = self.get_chat_template()
        token = around(template.image_token)[1] if template is not None else MARK
        text = flat_text(prompt, token)
        urls = data_urls(prompt)
        messages = template.messages_of(text) if template is not None else None
        turns = _with_pictures(messages or [], urls, token)
        images = [(url, url.partition("base64,")[2]) for url in urls]
        view = PromptView(text, turns, images, self)
        if images:
            self.fill_image(view)
        return view


def _with_pictures(
    messages: Sequence[Mapping[str, str]], urls: Sequence[str], token: str
) -> list[dict[str, Any]]:
    """Return the turns in OpenAI's form, with the URLs of a turn's pictures after its text.

    Each occurrence of `token` in a turn's text takes the next of `urls`.
    """
    left, turns = list(urls), []
    for message in messages:
        count = message["content"].count(token) if left else 0
        pictures = [{"type": "image_url", "image_url": {"url": url}} for url in left[:count]]
        left = left[count:]
        text = {"type": "text", "text": message["content"]}
        content: Any = [text, *pictures] if pictures else message["content"]
        turns.append({"role": message["role"], "content": content})
    return turns


def _completion(text: str, meta: Any) -> Completion:
    extra = dict(meta) if isinstance(meta, Mapping) else {}
    return Completion(text, (), FinishReason("stop"), 0, 0, extra=extra)
