"""What becomes of a sequence's tokens: text, stop conditions, logprobs, and one `Completion`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sgl_mlx.core import Completion, FinishReason, Logprobs, SamplingParams, TokenLogprob
from sgl_mlx.runtime.sequence import Scores, TokenScore
from sgl_mlx.tokenizer import Tokenizer


class TextOutput:
    """Collects one sample; implements `sequence.Output`.

    Args:
        params: of the request.
        tokenizer: of the model.
        end_tokens: the model's end-of-sequence ids.
        on_text: told of new text as soon as no stop string can take it back.
        on_finish: told of the end, once.
    """

    def __init__(
        self,
        params: SamplingParams,
        tokenizer: Tokenizer,
        end_tokens: frozenset[int],
        on_finish: Callable[[TextOutput], None],
        on_text: Callable[[str], None] | None = None,
    ) -> None:
        self._params = params
        self._tokenizer = tokenizer
        self._end_tokens = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            self._end_tokens |= end_tokens
        self._on_finish = on_finish
        self._on_text = on_text
        self._detokenizer = tokenizer.detokenizer(params.skip_special_tokens)
        self._sent = 0
        self._scores: list[TokenScore] = []
        self._top: list[tuple[TokenScore, ...]] = []
        self._prompt_scores: list[TokenScore] = []
        self._prompt_top: list[tuple[TokenScore, ...]] = []
        self.token_ids: list[int] = []
        self.text = ""
        self.finish_reason: FinishReason | None = None

    # -- sequence.Output ----------------------------------------------------------------------

    def push(self, token: int, scores: Scores | None) -> FinishReason | None:
        self.token_ids.append(token)
        if scores is not None:
            self.score_next(scores)
        if token in self._end_tokens and len(self.token_ids) > self._params.min_new_tokens:
            if self._params.no_stop_trim:
                self.text += self._tokenizer.token_text(token)
            return FinishReason("stop", matched=token)
        return self._append(self._detokenizer.add(token))

    def score_prompt(self, scores: Scores) -> None:
        self._prompt_scores += scores.tokens
        self._prompt_top += scores.top

    def score_next(self, scores: Scores) -> None:
        self._scores += scores.tokens
        self._top += scores.top

    def finish(self, reason: FinishReason) -> None:
        if reason.type == "length":
            reason = self._append(self._detokenizer.finish()) or reason
        self.finish_reason = reason
        self._send(len(self.text))
        self._on_finish(self)

    # -- the answer ---------------------------------------------------------------------------

    def completion(
        self, name: str, prompt: Sequence[int], prompt_tokens: int, cached_tokens: int
    ) -> Completion:
        """The finished sample of a prompt, whose own tokens are given for its logprobs."""
        assert self.finish_reason is not None
        return Completion(
            text=self.text,
            token_ids=tuple(self.token_ids),
            finish_reason=self.finish_reason,
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            id=name,
            logprobs=self._logprobs(prompt) if self._params.return_logprob else None,
        )

    def prompt_logprobs(self) -> tuple[TokenLogprob, ...]:
        return tuple(self._describe(score) for score in self._prompt_scores)

    def _logprobs(self, prompt: Sequence[int]) -> Logprobs:
        scored = self.prompt_logprobs()
        tops = tuple(tuple(map(self._describe, row)) for row in self._prompt_top)
        start = self._params.logprob_start_len
        if start == 0 and len(prompt) == len(scored) + 1:  # nothing comes before the first token
            scored = (self._describe((None, prompt[0])), *scored)
            tops = ((), *tops) if tops else ()
        return Logprobs(
            input=scored,
            output=tuple(map(self._describe, self._scores[: len(self.token_ids)])),
            input_top=tops,
            output_top=tuple(tuple(map(self._describe, row)) for row in self._top),
        )

    def _describe(self, score: tuple[float | None, int]) -> TokenLogprob:
        logprob, token = score
        wants_text = self._params.return_text_in_logprobs
        return TokenLogprob(
            logprob, token, self._tokenizer.token_text(token) if wants_text else None
        )

    # -- text ---------------------------------------------------------------------------------

    def _append(self, piece: str) -> FinishReason | None:
        """Add text; the reason to stop if it completes a stop string."""
        if not piece:
            return None
        longest = max(map(len, self._params.stop), default=1)
        start = max(len(self.text) - longest + 1, 0)
        self.text += piece
        found = [(self.text.find(stop, start), stop) for stop in self._params.stop]
        found = [(at, stop) for at, stop in found if at >= 0]
        if found:
            at, stop = min(found)
            self.text = self.text[: at + (len(stop) if self._params.no_stop_trim else 0)]
            return FinishReason("stop", matched=stop)
        self._send(len(self.text) - self._may_be_stop())
        return None

    def _may_be_stop(self) -> int:
        """Length of the longest end of the text that could begin a stop string."""
        longest = max((len(stop) - 1 for stop in self._params.stop), default=0)
        for length in range(min(longest, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[-length:]) for stop in self._params.stop):
                return length
        return 0

    def _send(self, end: int) -> None:
        if self._on_text is not None and end > self._sent:
            self._on_text(self.text[self._sent : end])
            self._sent = end


class Silent:
    """Output of a prompt that is computed for its KV alone."""

    def push(self, token: int, scores: Scores | None) -> FinishReason | None:
        raise AssertionError("a prompt without output got a token")

    def score_prompt(self, scores: Scores) -> None:
        """Nobody asked."""

    def score_next(self, scores: Scores) -> None:
        """Nobody asked."""

    def finish(self, reason: FinishReason) -> None:
        """Whoever waits for the KV looks at the sequence."""
