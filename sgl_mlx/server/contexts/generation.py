"""Generation in a context; each event of a streamed answer holds all text so far."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from sgl_mlx.core import Completion, PartialCompletion, SamplingParams
from sgl_mlx.server.contexts.work import Work
from sgl_mlx.server.errors import HttpError, openai_body
from sgl_mlx.server.flight import Ask
from sgl_mlx.server.service import new_id
from sgl_mlx.server.sse import DONE, frame
from sgl_mlx.server.turn import Turn


class Generation:
    """One request to `/generate` of a context.

    The answer is appended to the context if it is a single sample and the field `keep` is true.
    """

    def __init__(self, work: Work[Any], params: SamplingParams) -> None:
        self._work = work
        self._params = params

    async def whole(self) -> dict[str, Any]:
        turn = await self._work.turn(self._params)
        [samples] = await self._work.visit.whole([self._ask(turn)])
        return {
            "samples": [sample.to_dict() for sample in samples],
            **self._finish(samples, turn),
        }

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield each sample's answer so far with its `index`; at the end, the id of the context."""
        turn = await self._work.turn(self._params)
        samples = [PartialCompletion() for _ in range(self._params.n)]
        async with aclosing(self._work.visit.stream([self._ask(turn)])) as events:
            async for _, event in events:
                samples[event.sample].add(event)
                yield frame({**samples[event.sample].to_dict(), "index": event.sample})
        yield frame(self._finish([_completion(sample) for sample in samples], turn)) + DONE

    def _ask(self, turn: Turn) -> Ask:
        fields = self._work.fields
        return Ask(turn.prompt, turn.params, fields.rid or new_id("ctx-"), fields.priority or 0)

    def _finish(self, samples: list[Completion] | tuple[Completion, ...], turn: Turn) -> Any:
        work = self._work
        if len(samples) > 1 or not work.fields.keep:
            return {"context": None}
        content = work.content.answered(samples[0], turn, work.visit.answers)
        context = work.finish(content)
        shown = content.shown()
        said = {"message": shown["messages"][-1]} if "messages" in shown else {}
        return {"context": context.id, **said}


def failure(error: HttpError) -> bytes:
    return frame(openai_body(error)) + DONE


def _completion(sample: PartialCompletion) -> Completion:
    assert sample.finish_reason is not None
    return Completion(
        sample.text,
        tuple(sample.token_ids),
        sample.finish_reason,
        sample.prompt_tokens,
        sample.cached_tokens,
    )
