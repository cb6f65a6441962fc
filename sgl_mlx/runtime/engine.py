"""The runtime as a library: prompts in, completions out, one thread that runs the model.

`Engine` has SGLang's call shapes for people (`generate`, `async_generate`) and satisfies
`lang.backend.Backend` for programs (`submit`, `score`, `prefill` …). All of MLX happens on its
engine thread: a turn there is `plan = scheduler.next()`, `result = runner.run(plan)`,
`scheduler.commit(plan, result)`. Answers leave through a second thread, so that a caller's
callback never holds up the model.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, replace
from functools import partial
from typing import Any, TypeVar

from sgl_mlx.core import ChoiceScores, Completion, Prompt, SamplingParams, Text
from sgl_mlx.errors import InvalidParamsError, PromptError, SglError
from sgl_mlx.runtime.config import EngineConfig
from sgl_mlx.runtime.loop import EngineLoop
from sgl_mlx.runtime.request.encode import Encoded, encode
from sgl_mlx.runtime.request.futures import gather, iterate, iterate_async, then, wait_all
from sgl_mlx.runtime.request.prefetch import nothing, prefetch
from sgl_mlx.runtime.request.request import Completions, Request
from sgl_mlx.runtime.request.scoring import choice_scores, continue_with
from sgl_mlx.tokenizer import Tokenizer

T = TypeVar("T")
PromptInput = str | Sequence[str] | None
TokenInput = Sequence[int] | Sequence[Sequence[int]] | None
Params = SamplingParams | Mapping[str, Any] | None


class Engine:
    """A model with its KV cache, running in this process.

    Args:
        model_path: a Hugging Face id, an MLX folder, a GGUF file or an alias; see `models.load`.
        options: see `EngineConfig`.

    Raises:
        ModelError: when the model cannot be found, read or run.
        MemoryLimitError: when model or pool do not fit, before anything is allocated.
    """

    def __init__(self, model_path: str | None = None, **options: Any) -> None:
        self.config = EngineConfig.of({"model_path": model_path, **options})
        self._loop = EngineLoop(self.config)
        self._loop.start()
        self._model = self._loop.model
        self._seeds = random.Random(self.config.random_seed)

    # -- people -------------------------------------------------------------------------------

    def generate(
        self,
        prompt: PromptInput = None,
        sampling_params: Params | Sequence[Params] = None,
        input_ids: TokenInput = None,
        return_logprob: bool | None = None,
        logprob_start_len: int | None = None,
        top_logprobs_num: int | None = None,
        stream: bool = False,
        image_data: Any = None,
        **changes: Any,
    ) -> Any:
        """Continue one prompt or a list of them, given as text or as token ids.

        Args:
            sampling_params: one for all, or a list with one for each prompt.
            stream: yield the growing answer of one prompt instead of returning it.
            image_data: what `<image>` stands for in the prompt: a picture (`core.Image`) or a list
                of them; for a list of prompts, such a thing for each.
            changes: single sampling parameters by name, on top of `sampling_params`.

        Returns:
            `{"text", "output_ids", "meta_info"}`, a list of them for a list of prompts or for
            `n > 1`, or with `stream` an iterator over such dictionaries, each with all the text
            so far. Closing that iterator aborts the request.

        Raises:
            InvalidParamsError, PromptError, ImageError: saying which value is wrong and what would
                be right.
        """
        changes.update(
            return_logprob=return_logprob,
            logprob_start_len=logprob_start_len,
            top_logprobs_num=top_logprobs_num,
        )
        prompts, single = self._inputs(prompt, input_ids, image_data)
        params = _params_for(sampling_params, len(prompts), changes)
        if stream:
            return self._stream(_only(prompts), params[0])
        futures = self._start_all(prompts, params)
        return _shape([_as_dicts(c) for c in wait_all(futures)], single)

    async def async_generate(
        self,
        prompt: PromptInput = None,
        sampling_params: Params | Sequence[Params] = None,
        input_ids: TokenInput = None,
        stream: bool = False,
        image_data: Any = None,
        **changes: Any,
    ) -> Any:
        """`generate` for asyncio; with `stream`, awaiting it gives an asynchronous iterator."""
        prompts, single = self._inputs(prompt, input_ids, image_data)
        params = _params_for(sampling_params, len(prompts), changes)
        if stream:
            return self._stream_async(_only(prompts), params[0])
        futures = self._start_all(prompts, params)
        done = await asyncio.gather(*map(asyncio.wrap_future, futures))
        return _shape([_as_dicts(completions) for completions in done], single)

    # -- programs: lang.backend.Backend -------------------------------------------------------

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        on_text: Callable[[str], None] | None = None,
    ) -> Future[tuple[Completion, ...]]:
        """See `lang.backend.Backend.submit`."""
        return self._start(self._encode(prompt), params, on_text)

    def prefill(self, prompt: Prompt) -> Future[int]:
        """See `lang.backend.Backend.prefill`."""
        encoded = self._encode(prompt)
        future = self._start(encoded, SamplingParams(max_new_tokens=0))
        return then(future, lambda completions: completions[0].cached_tokens)

    def prefetch(self, prompt: Prompt) -> Future[int]:
        """See `lang.backend.Backend.prefetch`."""
        try:
            encoded = self._encode(prompt)
            self._check(encoded, SamplingParams(max_new_tokens=0))
        except SglError:  # the request for it will say what is wrong
            return nothing()
        return prefetch(encoded, self._loop)

    def score(
        self, prompt: Prompt, choices: Sequence[str], unconditional: bool = False
    ) -> Future[ChoiceScores]:
        """See `lang.backend.Backend.score`; one prefill of the prompt, then each choice alone.

        Raises:
            InvalidParamsError: for no choices, or one that is empty.
        """
        if not choices or not all(choices):
            raise InvalidParamsError(f"choices must be non-empty strings, got {list(choices)!r}")
        encoded = self._encode(prompt)
        whole = [continue_with(encoded, choice, self.tokenizer) for choice in choices]
        asked = [self._score(e, start) for e, start in whole]
        if unconditional:
            asked += [self._score(Encoded(e.tokens[start:]), 0) for e, start in whole]
        return gather(asked, partial(choice_scores, choices, encoded.total))

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False
    ) -> str:
        """See `lang.backend.Backend.render_chat`."""
        return self.tokenizer.render_chat(messages, add_generation_prompt)

    @property
    def supports_parallel(self) -> bool:
        return True

    @property
    def model_name(self) -> str:
        return self._model.name

    # -- the house ----------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Tokenizer:
        return self._model.tokenizer

    def get_tokenizer(self) -> Tokenizer:
        return self.tokenizer

    def flush_cache(self) -> bool:
        """Forget all cached prefixes; False, and nothing done, while requests are running."""
        return bool(self._loop.call(self._loop.flush_cache).result())

    def get_server_info(self) -> dict[str, Any]:
        """Model, limits and, under `"stats"`, exact counts and seconds since the start."""
        stats = self._loop.call(self._loop.stats).result().to_dict()
        return {
            **asdict(self.config),
            "model_path": self.model_name,
            "tokenizer_path": self.model_name,
            "context_length": self._model.context_length,
            "max_total_num_tokens": self._model.slots,
            "stats": stats,
        }

    def run_on_model(self, function: Callable[[Any], T]) -> T:
        """Call `function(model)` with mlx-lm's module, between turns, on the engine's thread."""
        return self._loop.call(lambda: function(self._model.module)).result()

    def shutdown(self) -> None:
        """End the threads; unfinished requests fail with `EngineStoppedError`."""
        self._loop.stop()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    # -- inside -------------------------------------------------------------------------------

    def _inputs(
        self, prompt: PromptInput, input_ids: TokenInput, image_data: Any
    ) -> tuple[list[Encoded], bool]:
        if (prompt is None) == (input_ids is None):
            raise PromptError("give either prompt or input_ids")
        if image_data is not None and prompt is None:
            raise PromptError("image_data needs a prompt of text, which says where pictures stand")
        if isinstance(prompt, str):
            return [self._with_images(prompt, image_data)], True
        if prompt is not None:
            rows = [None] * len(prompt) if image_data is None else image_data
            if not isinstance(rows, (list, tuple)) or len(rows) != len(prompt):
                raise PromptError(
                    f"image_data must be a list with one entry for each of {len(prompt)} prompts"
                )
            return [self._with_images(t, row) for t, row in zip(prompt, rows, strict=True)], False
        assert input_ids is not None
        single = not input_ids or isinstance(input_ids[0], int)
        given: Any = [input_ids] if single else input_ids
        return [self._from_ids(row) for row in given], single

    def _with_images(self, text: str, image_data: Any) -> Encoded:
        given = image_data if isinstance(image_data, (list, tuple)) else [image_data]
        images = [image for image in given if image is not None]
        if not images:
            return self._encode((Text(text),))
        return self._encode(self._model.pictures.prompt(text, images))

    def _encode(self, prompt: Prompt) -> Encoded:
        return encode(prompt, self.tokenizer, self._model.pictures)

    def _from_ids(self, ids: Sequence[int]) -> Encoded:
        if not ids:
            raise PromptError("the prompt is empty: it needs at least one token")
        size = self._model.vocabulary
        wrong = next((t for t in ids if not isinstance(t, int) or not 0 <= t < size), None)
        if wrong is not None:
            raise PromptError(f"token id {wrong!r} is not in the vocabulary (0 to {size - 1})")
        return Encoded(tuple(ids))

    def _score(self, encoded: Encoded, start: int) -> Future[Completion]:
        params = SamplingParams(
            max_new_tokens=0,
            return_logprob=True,
            logprob_start_len=start,
            return_text_in_logprobs=True,
        )
        return then(self._start(encoded, params), lambda completions: completions[0])

    def _start_all(
        self, prompts: Sequence[Encoded], params: Sequence[SamplingParams]
    ) -> list[Future[Completions]]:
        """Start every request, or none when one of them is wrong."""
        checked = [(p, self._check(p, q)) for p, q in zip(prompts, params, strict=True)]
        return [self._start(p, q) for p, q in checked]

    def _start(
        self,
        prompt: Encoded,
        params: SamplingParams,
        on_text: Callable[[str], None] | None = None,
    ) -> Future[Completions]:
        params = self._check(prompt, params)
        seed = params.seed if params.seed is not None else self._seeds.getrandbits(62)
        request = Request(uuid.uuid4().hex, prompt, params, seed, self._loop, on_text)
        request.start()
        return request.future

    def _stream(self, prompt: Encoded, params: SamplingParams) -> Iterator[dict[str, Any]]:
        pieces = []
        for item in iterate(partial(self._start, prompt, params)):
            if isinstance(item, str):
                pieces.append(item)
                yield {"text": "".join(pieces), "meta_info": {"finish_reason": None}}
            else:
                yield _as_dicts(item)[0]

    async def _stream_async(
        self, prompt: Encoded, params: SamplingParams
    ) -> AsyncIterator[dict[str, Any]]:
        pieces = []
        async for item in iterate_async(partial(self._start, prompt, params)):
            if isinstance(item, str):
                pieces.append(item)
                yield {"text": "".join(pieces), "meta_info": {"finish_reason": None}}
            else:
                yield _as_dicts(item)[0]

    def _check(self, encoded: Encoded, params: SamplingParams) -> SamplingParams:
        params.validate()
        if params.dtype in ("int", "float"):  # as in SGLang; a number ends where it is complete
            params = replace(params, stop=(*params.stop, " ", "\n"))
        limit = min(self._model.context_length, self._model.slots)
        if encoded.total > limit or encoded.end > self._model.context_length:
            raise PromptError(
                f"the prompt has {encoded.total} tokens; the context holds "
                f"{self._model.context_length} and the KV pool {self._model.slots}"
            )
        start = params.logprob_start_len
        if start is not None and start > len(encoded.tokens):
            raise InvalidParamsError(
                f"logprob_start_len is {start}, the prompt has {len(encoded.tokens)} tokens"
            )
        room = max(limit - encoded.total, 0)
        tokens = min(params.max_new_tokens, room)
        return replace(
            params, max_new_tokens=tokens, min_new_tokens=min(params.min_new_tokens, tokens)
        )


def _params_for(
    given: Params | Sequence[Params], count: int, changes: Mapping[str, Any]
) -> list[SamplingParams]:
    """One `SamplingParams` for each of `count` prompts."""
    rows = list(given) if isinstance(given, Sequence) else [given] * count
    if len(rows) != count:
        raise InvalidParamsError(f"{len(rows)} sampling_params for {count} prompts")
    return [SamplingParams.of(row).override(**changes) for row in rows]


def _only(prompts: list[Encoded]) -> Encoded:
    if len(prompts) != 1:
        raise InvalidParamsError(f"stream=True takes one prompt, got {len(prompts)}")
    return prompts[0]


def _as_dicts(completions: Completions) -> list[dict[str, Any]]:
    return [
        {"text": c.text, "output_ids": list(c.token_ids), "meta_info": c.meta_info()}
        for c in completions
    ]


def _shape(answers: list[list[dict[str, Any]]], single: bool) -> Any:
    """A dictionary for one sample of one prompt, else a flat list."""
    if single and len(answers[0]) == 1:
        return answers[0][0]
    return list(itertools.chain.from_iterable(answers))
