"""Embeddings: one vector for a text, by a model that was trained for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from sgl_mlx.errors import ContextLengthError, UnsupportedModelError
from sgl_mlx.models.hidden import REDUCE, Run, chunk_states
from sgl_mlx.models.pooling import Pooling
from sgl_mlx.models.trunk import trunk_of
from sgl_mlx.runtime.assembly import RunnableModel


class Embedder:
    """An embedding model in an engine, which computes one text at a time.

    Texts are computed in chunks between the engine's steps, with a KV cache of their own.

    Args:
        run: calls a function with the model on the engine thread.

    Attributes:
        fault: why the model's embeddings cannot be computed here; empty if they can.
    """

    def __init__(self, model: RunnableModel, pooling: Pooling, run: Run) -> None:
        self._model = model
        self._pooling = pooling
        self._run = run
        self.fault = pooling.fault
        if model.ranks is not None:
            self.fault = "several ranks run it"
        elif trunk_of(model.module) is model.module:
            self.fault = "its architecture does not give hidden states"

    @classmethod
    def of(cls, model: RunnableModel, run: Run) -> Embedder | None:
        """Return the embedder of a model; None for a model that only generates text."""
        return None if model.pooling is None else cls(model, model.pooling, run)

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text, with those that the model expects at both ends."""
        return [*self._model.tokenizer.encode(text), *self._pooling.suffix]

    def embed(
        self, tokens: Sequence[int], stopped: Callable[[], bool] = lambda: False
    ) -> list[float]:
        """Return the embedding of a text, one number per channel of the model.

        Args:
            tokens: at least one token id.
            stopped: is asked before each chunk; once it is true, the result has no meaning.

        Raises:
            ContextLengthError: there are more tokens than the model's context holds.
            UnsupportedModelError: there is a `fault`.
            EngineStoppedError: the engine was shut down.
        """
        if self.fault:
            raise UnsupportedModelError(f"the model makes no embeddings here: {self.fault}")
        count, limit = len(tokens), self._model.context_length
        if count > limit:
            text = f"the text has {count:,} tokens, the model's context holds {limit:,}"
            raise ContextLengthError(text, count, limit)
        mode, found = self._pooling.mode, list[float]()
        for state in chunk_states(self._run, tokens, REDUCE[mode]):
            summed = mode == "mean" and found
            found = [a + b for a, b in zip(found, state, strict=True)] if summed else state
            if stopped():
                break
        if mode == "mean":
            found = [x / count for x in found]
        return scaled(found) if self._pooling.normalize else found


def scaled(vector: Sequence[float]) -> list[float]:
    """Return a vector scaled to length 1; zeros stay zeros."""
    length = math.hypot(*vector) or 1.0
    return [x / length for x in vector]
