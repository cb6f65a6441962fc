"""Our engine as a system under test, in this process; parts of it can be switched off."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import sgl_mlx as sgl
from sgl_mlx.benchmarks.peers.system import Answer, Usage
from sgl_mlx.benchmarks.suite.optimum import Asked, Optimum
from sgl_mlx.benchmarks.suite.workloads.words import Vocabulary, Words
from sgl_mlx.benchmarks.suite.workloads.workload import (
    TEMPORARY_FOLDER,
    WARM_UP_TOKENS,
    Need,
    Row,
    Size,
    Workload,
    warm_up,
)
from sgl_mlx.core import (
    ChoiceScores,
    Completion,
    Image,
    Parallel,
    Prompt,
    SamplingParams,
    StreamEvent,
    prompt_text,
)
from sgl_mlx.cpu_kernels.build import compiled_for
from sgl_mlx.lang.backend import Backend
from sgl_mlx.lang.relay import Relay
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.request.futures import then
from sgl_mlx.runtime.request.prefetch import nothing

SAMPLING: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "token_healing": False}
"""Sampling of every `gen`: greedy, full length, and no healing, which other systems lack."""


class Ours:
    """A `System` that opens one engine per session.

    Args:
        options: options of the engine (`EngineConfig`).
        name: the system's name in reports.
        prefills_forks: False disables the prefill of the parent's prompt at a `fork`.
        parallel: False makes each `gen` wait for its output, so that branches run one by one.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        name: str = "ours",
        prefills_forks: bool = True,
        parallel: bool = True,
    ) -> None:
        self.name = name
        self.version = ""
        self.instruction_sets = compiled_for() or "MLX's own build"
        self._options = dict(options)
        self._prefills_forks = prefills_forks
        self._parallel = parallel

    @property
    def abilities(self) -> frozenset[Need]:
        return frozenset({"grammar", "images"} if self._options.get("mmproj") else {"grammar"})

    @contextmanager
    def session(self, workload: Workload, size: Size, words: Words) -> Iterator[OurSession]:
        with ExitStack() as stack:
            options = {**self._options, **workload.engine(size)}
            if options.get("disk_cache_dir") == TEMPORARY_FOLDER:
                options["disk_cache_dir"] = stack.enter_context(TemporaryDirectory())
            engine = stack.enter_context(Engine(**options))
            steered = Steered(engine, engine.tokenizer, words, self._prefills_forks, self._parallel)
            engine.generate(warm_up(words), max_new_tokens=WARM_UP_TOKENS, temperature=0)
            engine.flush_cache()
            stack.enter_context(default_backend(steered))  # for nested programs
            yield OurSession(workload, engine, steered)


@contextmanager
def default_backend(backend: Backend) -> Iterator[None]:
    """Make `backend` the default backend within the context, then restore the former default."""
    former = sgl.global_config.default_backend
    sgl.set_default_backend(backend)
    try:
        yield
    finally:
        sgl.set_default_backend(former)


class OurSession:
    """A `Session` on our engine."""

    def __init__(self, workload: Workload, engine: Engine, backend: Steered) -> None:
        self._workload = workload
        self._engine = engine
        self._backend = backend
        self._before = engine.get_server_info()["stats"]

    @property
    def usage(self) -> Usage:
        return self._backend.usage

    def run(self, row: Row) -> None:
        run_program(self._workload, row, self._backend)

    def details(self) -> Mapping[str, Any]:
        """Return the engine's counts and seconds since the session began.

        The maxima `longest_step` and `peak_slots` also include the warm-up. `unique_tokens` is the
        fewest prompt tokens that must be computed (see `optimum`), or None if it is unknown.
        """
        after = self._engine.get_server_info()["stats"]
        spent = {name: after[name] - self._before.get(name, 0) for name in after}
        asked, policy = self._backend.asked, spent["tree_seconds"] + spent["schedule_seconds"]
        optimum = Optimum.of(asked)
        return {
            "computed_tokens": spent["computed_tokens"],
            "cached_tokens": spent["cached_tokens"],
            "total_tokens": spent["prompt_tokens"],
            "unique_tokens": optimum.unique if optimum else None,
            "forward_passes": spent["forward_passes"],
            "decode_tokens": spent["decode_tokens"],
            "decode_passes": spent["decode_passes"],
            "decode_rows": spent["decode_rows"],
            "pool_tokens_read": spent["pool_tokens_read"],
            "longest_step": after["longest_step"],
            "peak_slots": after["peak_slots"],
            "tree_and_scheduler_seconds": round(policy, 4),
            "model_seconds": round(spent["model_seconds"], 3),
        }


def run_program(workload: Workload, row: Row, backend: Backend) -> None:
    """Run a workload's program to its end with the arguments `row`; raises the program's error."""
    state = workload.program.run(**row, backend=backend, **SAMPLING)
    state.sync()
    if error := state.error():
        raise error


class Steered(Relay):
    """A backend that makes another write the texts of `Words.steer`, and counts tokens.

    Scores are not steered. For `prefills_forks` and `parallel`, see `Ours`.

    Args:
        backend: an engine, or a client of a server.
        tokenizer: the tokenizer of the backend's model.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Vocabulary,
        words: Words,
        prefills_forks: bool = True,
        parallel: bool = True,
    ) -> None:
        super().__init__(backend)
        self.usage = Usage()
        self._answered: list[tuple[Prompt, Completion]] = []
        self._scored: list[Asked] = []
        self._tokenizer = tokenizer
        self._words = words
        self._prefills_forks = prefills_forks
        self._parallel = parallel

    @property
    def asked(self) -> list[Asked | None]:
        """All calls so far, in tokens; None for a call with pictures or joined forks.

        Prompts are encoded here, outside the measured time.
        """
        return [*(self._asked(*answered) for answered in self._answered), *self._scored]

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        on_event: Callable[[StreamEvent], None] | None = None,
    ) -> Future[tuple[Completion, ...]]:
        started = time.perf_counter()
        first: list[float] = []

        def watch(event: StreamEvent) -> None:
            if event.text and not first:
                first.append(time.perf_counter() - started)
            if on_event is not None:
                on_event(event)

        def count(completions: tuple[Completion, ...]) -> tuple[Completion, ...]:
            [done] = completions
            seconds = first[0] if first else time.perf_counter() - started
            # systems write text that a grammar forces with different numbers of tokens
            output = self._words.count(done.text) if params.constrained else len(done.token_ids)
            self.usage.add(Answer(done.prompt_tokens, output, done.cached_tokens, seconds))
            self._answered.append((prompt, done))
            return completions

        bias = self._words.steer(prompt_text(prompt), params.constrained)
        steered = params.override(logit_bias=bias)
        future = then(self._backend.submit(prompt, steered, watch), count)
        if not self._parallel:
            future.exception()  # waits
        return future

    def score(
        self, prompt: Prompt, choices: Sequence[str], unconditional: bool = False
    ) -> Future[ChoiceScores]:
        def count(scores: ChoiceScores) -> ChoiceScores:
            text = prompt_text(prompt)
            for choice in choices:
                tokens = tuple(self._tokenizer.encode(text + choice))
                self.usage.add(Answer(len(tokens), 0, 0))
                self._scored.append(Asked(tokens, (), scored=True))
            return scores

        return then(self._backend.score(prompt, choices, unconditional), count)

    def prefill(self, prompt: Prompt) -> Future[int]:
        if self._prefills_forks:
            return self._backend.prefill(prompt)
        return nothing()

    def _asked(self, prompt: Prompt, done: Completion) -> Asked | None:
        if any(isinstance(part, Parallel | Image) for part in prompt):
            return None
        return Asked(tuple(self._tokenizer.encode(prompt_text(prompt))), done.token_ids)


_: type[Backend] = Steered
