"""The `Engine`: the runtime as a library. Prompts go in, completions come out.

`Engine` has SGLang's methods for direct calls (`generate`, `async_generate`) and satisfies
`lang.backend.Backend` for programs (`submit`, `score`, `prefill` …). Only its engine thread uses
MLX (see `loop`). Other threads prepare requests and deliver answers, so that neither a long prompt
nor a slow callback delays the model.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from threading import get_ident
from typing import Any, Literal, TypeVar, Unpack, overload

from sgl_mlx import bounds
from sgl_mlx.core import (
    ChoiceScores,
    Completion,
    GenerateResult,
    PartialCompletion,
    Prompt,
    SamplingParams,
)
from sgl_mlx.errors import EngineStoppedError, InvalidParamsError, ProgramError, SglError
from sgl_mlx.models.loader import LoadedModel
from sgl_mlx.runtime.config import EngineConfig
from sgl_mlx.runtime.loop import EngineLoop
from sgl_mlx.runtime.request.answers import grow, shape
from sgl_mlx.runtime.request.embedding import Embedder
from sgl_mlx.runtime.request.futures import gather, iterate, iterate_async, then
from sgl_mlx.runtime.request.inputs import (
    Inputs,
    Params,
    PromptInput,
    RequestKeywords,
    RequestOptions,
    TokenInput,
)
from sgl_mlx.runtime.request.prefetch import nothing, prefetch
from sgl_mlx.runtime.request.prepare import Preparer, Source
from sgl_mlx.runtime.request.request import (
    Completions,
    InFlight,
    OnEvent,
    Request,
    wait_all,
    wait_all_async,
)
from sgl_mlx.runtime.request.scoring import Scoring
from sgl_mlx.tokenizer import Tokenizer
from sgl_mlx.waits import result_of

T = TypeVar("T")
_SILENT = SamplingParams(max_new_tokens=0)


class Engine:
    """A model with its KV cache, running in this process.

    Args:
        model_path: a Hugging Face id, an MLX folder, a GGUF file or an alias (`models.resolve`).
        model: a model that `models.loader.load` has loaded already, instead of a path.
        options: see `EngineConfig`.

    Raises:
        ModelError: when the model cannot be found, read or run.
        MemoryLimitError: when the model or its KV pool does not fit into memory.
        InvalidParamsError: for an option that is unknown or out of range, or for both a path and a
            model.
        KernelError: when the environment asks for kernels that are unknown or not available.
    """

    def __init__(
        self, model_path: str | None = None, *, model: LoadedModel | None = None, **options: Any
    ) -> None:
        if model is not None and model_path is not None:
            raise InvalidParamsError("give either model_path or model, got both")
        self.config = EngineConfig.of({"model_path": model_path, **options})
        self._process = os.getpid()
        self._loop = EngineLoop(self.config, model)
        self._loop.start()
        self._model = self._loop.model
        self._preparer = Preparer(self._model, self.config.limits)
        self._flight = InFlight(self._loop)
        self.embedder = Embedder.of(self._model, self.run_on_model)
        self._flight.run(self._model.grammars.prepare, "grammars")
        self._seeds = random.Random(self.config.random_seed)
        self._engine_thread = result_of(self._loop.call(get_ident))

    # -- people -------------------------------------------------------------------------------

    @overload
    def generate(
        self,
        prompt: str,
        sampling_params: Params = None,
        *,
        image_data: Any = None,
        stream: Literal[False] = False,
        n: Literal[1] = 1,
        **options: Any,
    ) -> GenerateResult: ...

    @overload
    def generate(
        self,
        prompt: PromptInput = None,
        sampling_params: Params | Sequence[Params] = None,
        input_ids: TokenInput = None,
        image_data: Any = None,
        *,
        stream: Literal[True],
        **options: Any,
    ) -> Iterator[GenerateResult]: ...

    @overload
    def generate(
        self,
        prompt: PromptInput = None,
        sampling_params: Params | Sequence[Params] = None,
        input_ids: TokenInput = None,
        image_data: Any = None,
        *,
        stream: bool = False,
        **options: Any,
    ) -> Any: ...

    def generate(
        self,
        prompt: PromptInput = None,
        sampling_params: Params | Sequence[Params] = None,
        input_ids: TokenInput = None,
        image_data: Any = None,
        *,
        stream: bool = False,
        **options: Any,
    ) -> Any:
        """Continue one prompt or a list of them, given as text or as token ids.

        Args:
            prompt: a text or a list of texts; give either this or `input_ids`.
            sampling_params: parameters for all prompts, or a list with one entry for each prompt.
            input_ids: the token ids of one prompt, or a list of such lists.
            image_data: the picture (`core.Image`) or pictures that `<image>` in the prompt stands
                for; for a list of prompts, a list with one entry for each prompt.
            stream: return an iterator over growing answers; takes a single prompt.
            options: sampling parameters by name, which override `sampling_params`, and the keywords
                of `RequestKeywords`, such as `rid`, `priority`, `timeout`, `extra_key`.

        Returns:
            A `GenerateResult`; a list of them for a list of prompts or for `n > 1`. With `stream`,
            an iterator of results, each with the whole text of one sample so far; for `n > 1` the
            result's `index` is the sample's number. Closing the iterator aborts the request.

        Raises:
            InvalidParamsError, PromptError, ImageError: for a wrong argument.
            RequestAborted: `abort` was called, the timeout or deadline passed, the KV pool is too
                small, the grammar came to a dead end, or the model failed.
            ProgramError: inside a callback of this engine, where the call would wait for itself.
            EngineStoppedError: after `shutdown`, in a forked process, and if the engine hangs.
        """
        inputs = self._ask(prompt, sampling_params, input_ids, image_data, options)
        if bounds.switch("stream", stream):
            return self._stream(inputs.only())
        return shape(wait_all(self._launch(inputs)), inputs.single)

    async def async_generate(
        self,
        prompt: PromptInput = None,
        sampling_params: Params | Sequence[Params] = None,
        input_ids: TokenInput = None,
        image_data: Any = None,
        *,
        stream: bool = False,
        **options: Any,
    ) -> Any:
        """Continue prompts as `generate` does, without blocking the asyncio event loop.

        The arguments are those of `generate`. With `stream`, the awaited value is an asynchronous
        iterator. Cancelling the awaiting task aborts the request.
        """
        inputs = self._ask(prompt, sampling_params, input_ids, image_data, options)
        if bounds.switch("stream", stream):
            return self._stream_async(inputs.only())
        return shape(await wait_all_async(self._launch(inputs)), inputs.single)

    def abort(self, rid: str) -> bool:
        """End the request `rid`, whose caller gets `RequestAborted`; False if there is none."""
        return self._flight.abort(rid)

    # -- programs: lang.backend.Backend -------------------------------------------------------

    def submit(
        self,
        prompt: Prompt | Sequence[int],
        params: SamplingParams,
        on_event: OnEvent = None,
        **keywords: Unpack[RequestKeywords],
    ) -> Future[tuple[Completion, ...]]:
        """Start generating `params.n` samples after a prompt; return a future of the completions.

        The prompt is a tuple of parts or a list of token ids. `on_event` is called on another
        thread with every `StreamEvent`. Cancelling the future aborts the request. Wrong parameters
        and a stopped engine raise at once. Errors found later, such as too many tokens or a wrong
        grammar, fail the future.
        """
        self._enter()
        [options] = RequestOptions.each(keywords, 1, single=True)
        checked = SamplingParams.of(params).validate(self.config.limits)
        inputs = Inputs([self._preparer.of_prompt(prompt)], [checked], [options], True)
        return self._launch(inputs, on_event)[0]

    def prefill(self, prompt: Prompt) -> Future[int]:
        """Compute a prompt's KV now; the future gives how many tokens were already cached."""
        future = self.submit(prompt, _SILENT)
        return then(future, lambda completions: completions[0].cached_tokens)

    def prefetch(self, prompt: Prompt) -> Future[int]:
        """Restore a prompt's KV from disk, and compute the rest while no request needs the model.

        The future never fails. It gives the number of prompt tokens that are cached at the end; 0
        if the engine is stopped or the prompt cannot be prepared.
        """
        try:
            self._enter()
        except EngineStoppedError:
            return nothing()
        source, target = self._preparer.of_prompt(prompt), Future[int]()
        where = self._preparer.where([source], [])
        self._flight.run(partial(self._prefetch, source, target), where)
        return target

    def score(
        self,
        prompt: Prompt,
        choices: Sequence[str],
        unconditional: bool = False,
        **keywords: Unpack[RequestKeywords],
    ) -> Future[ChoiceScores]:
        """Score each choice as a continuation of the prompt, which is prefilled once.

        With `unconditional`, each choice is also scored without the prompt.

        Returns:
            A future of the choices' logprobs; errors of the prompt or in the model fail the future.

        Raises:
            InvalidParamsError: `choices` is empty or contains an empty text, or another argument is
                wrong.
            EngineStoppedError: after `shutdown`, in a forked process, and if the engine hangs.
        """
        self._enter()
        scoring = Scoring(choices, unconditional, self.tokenizer, self.config.limits)
        source = self._preparer.of_prompt(prompt)
        each = RequestOptions.each(keywords, scoring.requests, single=False)
        requests = [self._request(options) for options in each]
        futures = self._flight.launch(
            requests,
            lambda: scoring.prepare(source, self._preparer),
            self._preparer.where([source] * len(requests), []),
        )
        return gather(futures, lambda found: scoring.scores([c for [c] in found]))

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False
    ) -> str:
        """Return chat messages as text, by the model's template; `TokenizerError` if that fails.

        With `add_generation_prompt`, the text ends with the beginning of the assistant's answer.
        """
        return self.tokenizer.render_chat(messages, add_generation_prompt)

    @property
    def supports_parallel(self) -> bool:
        return self._model.joins

    @property
    def failure(self) -> str | None:
        """The reason why no request is taken, if the engine's thread hangs or died; else None."""
        return self._loop.failure

    @property
    def model_name(self) -> str:
        return self._model.name

    # -- upkeep -------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Tokenizer:
        return self._model.tokenizer

    def get_tokenizer(self) -> Tokenizer:
        """Return the model's tokenizer."""
        return self.tokenizer

    def flush_cache(self) -> bool:
        """Forget all cached prefixes and return True; while requests run, only return False."""
        return bool(self.run_on_thread(self._loop.flush_cache))

    def get_server_info(self) -> dict[str, Any]:
        """Return the options, model, limits, costs of steps, and `EngineStats` under `"stats"`."""
        stats, costs = self.run_on_thread(self._loop.stats).to_dict(), self._model.costs
        return {
            **asdict(self.config),
            **dict.fromkeys(("model_path", "tokenizer_path"), self.model_name),
            "context_length": self._model.context_length,
            "max_total_num_tokens": self._model.slots,
            "max_running_requests": self._model.max_running,
            "attention_path": self._model.path,
            "ranks": self._model.ranks.size if self._model.ranks is not None else 1,
            "step_seconds": asdict(costs) if costs is not None else None,
            "stats": stats,
        }

    def run_on_model(self, function: Callable[[Any], T]) -> T:
        """Call a function with the mlx-lm module on the engine thread; not over several ranks."""
        return self.run_on_thread(lambda: function(self._model.whole_module))

    def run_on_thread(self, function: Callable[[], T]) -> T:
        """Call a function on the engine thread; return its result."""
        self._enter()
        if get_ident() == self._engine_thread:
            return function()
        return result_of(self._loop.call(function))

    def shutdown(self) -> None:
        """Stop all threads; unfinished requests fail with `EngineStoppedError`."""
        self._loop.stop()
        self._flight.stop()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    # -- inside -------------------------------------------------------------------------------

    def _enter(self) -> None:
        """Raise `EngineStoppedError` in a forked process, after `shutdown`, and after a failure."""
        if os.getpid() != self._process:
            raise EngineStoppedError(
                "this process was forked after the engine was made, and an engine's threads do not "
                "come along; make an engine in each process, or start processes by 'spawn'"
            )
        self._loop.check()

    def _ask(
        self,
        prompt: PromptInput,
        sampling_params: Params | Sequence[Params],
        input_ids: TokenInput,
        image_data: Any,
        options: Mapping[str, Any],
    ) -> Inputs:
        self._enter()
        if self._loop.delivering or get_ident() == self._engine_thread:
            raise ProgramError(
                "generate() was called by a callback of the same engine and would wait for itself; "
                "call submit(), whose future a callback can be added to, or use another thread"
            )
        return Inputs.of(self._preparer, prompt, sampling_params, input_ids, image_data, options)

    def _launch(self, inputs: Inputs, on_event: OnEvent = None) -> list[Future[Completions]]:
        self._enter()
        rows = zip(inputs.params, inputs.options, strict=True)
        requests = [self._request(options, params, on_event) for params, options in rows]
        where = self._preparer.where(inputs.sources, inputs.params)
        return self._flight.launch(requests, partial(inputs.prepare, self._preparer), where)

    def _request(
        self, options: RequestOptions, params: SamplingParams = _SILENT, on_event: OnEvent = None
    ) -> Request:
        seed = params.seed if params.seed is not None else self._seeds.getrandbits(62)
        return Request(options, seed, self._loop, on_event)

    def _stream(self, inputs: Inputs) -> Iterator[GenerateResult]:
        samples = [PartialCompletion() for _ in range(inputs.params[0].n)]
        for event in iterate(lambda on_event: self._launch(inputs, on_event)[0]):
            yield grow(samples, event)

    async def _stream_async(self, inputs: Inputs) -> AsyncIterator[GenerateResult]:
        samples = [PartialCompletion() for _ in range(inputs.params[0].n)]
        async for event in iterate_async(lambda on_event: self._launch(inputs, on_event)[0]):
            yield grow(samples, event)

    def _prefetch(self, source: Source, target: Future[int]) -> None:
        try:
            prompt = source.encode()
            self._preparer.check_length(prompt)
            found = prefetch(prompt, self._loop)
        except SglError:  # the request for it will say what is wrong
            found = nothing()
        then(found, int, target)
