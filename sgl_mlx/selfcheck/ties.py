"""Recognition of near-ties: places where rounding alone decides which token is sampled."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, cast

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from sgl_mlx.core import Generated, SamplingParams, Text
from sgl_mlx.runtime.constraints.grammar import GrammarCompiler
from sgl_mlx.runtime.constraints.healing import Healing, Spellings
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.request.encode import encode
from sgl_mlx.runtime.sampler import Sampler
from sgl_mlx.runtime.scheduler.plan import Place, Row, Shown
from sgl_mlx.runtime.scheduler.sequence import Constraint
from sgl_mlx.selfcheck.recording import Request

TOLERANCES = {mx.float32: 1e-4, mx.float16: 2e-2, mx.bfloat16: 1.5e-1}
"""Largest change of a logit that the order of additions can cause, by dtype."""
_ROUNDED_KV = 1.5e-1
"""Largest change of a logit that counts as rounding if keys and values are kept in 8 bits."""
_DRAWS = 256
_TOP = 128
"""Most likely tokens that an engine reports."""
_NEVER = -1e9


class Ties:
    """Judge of differing tokens, on an engine that computes every request alone.

    Attributes:
        tolerance: largest change of a logit that counts as rounding.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tokenizer = engine.tokenizer
        probe = engine.run_on_model(lambda model: model(mx.array([[0]]))[0, -1])
        self._vocabulary = int(probe.shape[-1])
        rounded = _ROUNDED_KV if engine.config.kv_bits else 0.0
        self.tolerance = max(TOLERANCES.get(probe.dtype, TOLERANCES[mx.float16]), rounded)
        self._grammars = GrammarCompiler(self._tokenizer, self._vocabulary)
        self._spellings: Spellings | None = None

    def is_tie(
        self, request: Request, sample: int, output: tuple[int, ...], rivals: set[int]
    ) -> bool:
        """Return True if rounding decides which of two tokens comes after `output`.

        The logits after `output` are changed by up to `tolerance`, many times. Rounding decides if
        each of the two tokens is sampled after some of these changes.

        Args:
            sample: number of the sample.
            output: the tokens on which both answers agree.
            rivals: the two tokens that follow in the answers.
        """
        params = request.params
        if params is None:
            return False
        encoded = encode(
            tuple(p for p in request.prompt if isinstance(p, (Text, Generated))), self._tokenizer
        )
        prompt = encoded.tokens
        constraint: Constraint | None = self._grammars.constraint(params)
        parts: Any = request.prompt
        if params.token_healing and not params.constrained:
            prompt, constraint = self._healed(prompt, encoded.sealed)
        if all(isinstance(p, (Text, Generated)) for p in request.prompt):
            logits = self._plain([*prompt, *output])
        else:
            logits = self._reported((*parts, Generated("", output)) if output else parts, rivals)
        if constraint is not None:
            for token in output:
                constraint.accept(token)
        row = Row(
            id="row",
            tokens=prompt[-1:],
            prefix=(),
            slots=(),
            position=len(prompt) + len(output) - 1,
            sample=True,
            params=replace(params, return_logprob=False),
            seed=(params.seed or 0) + sample,
            output=output,
            history=(*prompt, *output),
            constraint=None if constraint is None or constraint.done else "it",
        )
        return rivals <= self._samples(row, logits, rivals, constraint)

    def _healed(
        self, prompt: tuple[int, ...], sealed: int
    ) -> tuple[tuple[int, ...], Constraint | None]:
        self._spellings = self._spellings or Spellings(self._tokenizer, self._vocabulary)
        taken = self._spellings.heals(prompt[sealed:])
        if not taken or len(taken.tokens) >= len(prompt):
            return prompt, None
        healing = Healing(self._spellings, taken.text.encode())
        return prompt[: len(prompt) - len(taken.tokens)], cast(Constraint, healing)

    def _plain(self, tokens: list[int]) -> NDArray[np.float32]:
        """Compute the logits after tokens in one forward pass of the model's own module."""

        def logits(module: Any) -> NDArray[np.float32]:
            return np.array(module(mx.array([tokens]))[0, -1].astype(mx.float32))

        return self._engine.run_on_model(logits)

    def _reported(self, prompt: Any, rivals: set[int]) -> NDArray[np.float32]:
        """Return the likeliest tokens' logprobs, as the engine reports them; else `_NEVER`."""
        params = SamplingParams(
            max_new_tokens=1, temperature=0, return_logprob=True, top_logprobs_num=_TOP
        )
        [found] = self._engine.submit(prompt, params).result()
        logits = np.full(self._vocabulary, _NEVER, np.float32)
        for score in found.logprobs.output_top[0] if found.logprobs else ():
            logits[score.token_id] = score.logprob
        return logits

    def _samples(
        self,
        row: Row,
        logits: NDArray[np.float32],
        rivals: set[int],
        constraint: Constraint | None,
    ) -> set[int]:
        """Return the tokens sampled when logits change: at random, and towards each rival."""
        moves = np.random.default_rng(0).uniform(-1, 1, (_DRAWS, len(logits)))
        moves[0] = 0
        for i, rival in enumerate(sorted(rivals), 1):
            moves[i] = 0
            moves[i, list(rivals)] = -1
            moves[i, rival] = 1
        moved = (logits + self.tolerance * moves).astype(np.float32)
        mask = None if constraint is None else constraint.allowed()
        lookup = None if mask is None else _Mask(mask)

        def sampled(_: Any) -> list[int]:
            # on the engine's thread, which alone may use MLX
            rows = [row] * _DRAWS
            sampler = Sampler(rows, self._tokenizer.eos_token_ids, len(logits), lookup)
            return cast(list[int], sampler.sample(mx.array(moved), 0).tokens.tolist())

        return set(self._engine.run_on_model(sampled))


class _Mask:
    """A lookup that knows one mask."""

    def __init__(self, mask: bytes) -> None:
        self._mask = mask

    def masks(self, places: Collection[Place]) -> Mapping[Place, bytes]:
        return dict.fromkeys(places, self._mask)

    def image(self, picture: str) -> Shown:
        raise KeyError(picture)
