"""Output of one sample: from tokens to text, stream events, logprobs and a `Completion`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from sgl_mlx.core import (
    Completion,
    FinishReason,
    Logprobs,
    SamplingParams,
    StreamEvent,
    TokenLogprob,
)
from sgl_mlx.runtime.constraints.healing import NOTHING_TAKEN, TakenBack
from sgl_mlx.runtime.request.stops import Stops
from sgl_mlx.runtime.scheduler.plan import Scores, TokenScore
from sgl_mlx.tokenizer import Tokenizer


class TextOutput:
    """The output of one sample; implements `sequence.Output`.

    Args:
        params: sampling parameters of the request.
        tokenizer: the model's tokenizer.
        end_tokens: the model's end-of-sequence ids.
        on_finish: called once with this output, when the sample has ended.
        on_event: called with a `StreamEvent` when there is new text that no stop string or pattern
            can still include; also at the end, unless the sample was aborted. The events lack the
            request's id and the prompt's counts, which `Request` adds.
        taken_back: end of the prompt that the model generates again (token healing). The output's
            text, tokens, counts and logprobs leave this end out; `prompt_part` has its logprobs.
        sample: number of this sample in its request, copied into the events.

    Raises:
        InvalidParamsError: a `stop_regex` cannot be compiled.
    """

    def __init__(
        self,
        params: SamplingParams,
        tokenizer: Tokenizer,
        end_tokens: frozenset[int],
        on_finish: Callable[[TextOutput], None],
        on_event: Callable[[StreamEvent], None] | None = None,
        taken_back: TakenBack = NOTHING_TAKEN,
        sample: int = 0,
    ) -> None:
        self._params = params
        self._tokenizer = tokenizer
        named = (tokenizer.added_token(stop) for stop in params.stop)
        self._end_tokens = frozenset(params.stop_token_ids).union(
            token for token in named if token is not None and tokenizer.is_special(token)
        )
        if not params.ignore_eos:
            self._end_tokens |= end_tokens
        self._on_finish = on_finish
        self._on_event = on_event
        self._detokenizer = tokenizer.detokenizer(
            params.skip_special_tokens, constrained=params.constrained
        )
        has_stops = params.stop or params.stop_regex
        self._stops = Stops(params.stop, params.stop_regex) if has_stops else None
        self._sent = 0
        self._told_tokens = 0
        self._scores: list[TokenScore] = []
        self._top: list[tuple[TokenScore, ...]] = []
        self._prompt_scores: list[TokenScore] = []
        self._prompt_top: list[tuple[TokenScore, ...]] = []
        self._taken_back = taken_back
        self._missing = len(taken_back.text.encode())
        self._taken_back_left = len(taken_back.text)
        self._overlap = 0
        self._prompt_end: dict[int, Scores] = {}
        self._sample = sample
        self.prompt_told = False
        self.forced_tokens = 0
        self.token_ids: list[int] = []
        self.text = ""
        self.finish_reason: FinishReason | None = None

    # -- sequence.Output ----------------------------------------------------------------------

    def push(self, token: int, scores: Scores | None, forced: bool = False) -> FinishReason | None:
        if self._missing and self._is_prompt(token):
            self._without_taken_back(self._detokenizer.add(token))
            self._prompt_end[token] = scores or Scores()
            return None
        self.token_ids.append(token)
        self.forced_tokens += forced
        if scores is not None:
            self.score_next(scores)
        elif self._params.return_logprob:  # a forced token: the model computed no logprob
            self.score_next(
                Scores(((None, token),), ((),) if self._params.top_logprobs_num else ())
            )
        if token in self._end_tokens and len(self.token_ids) > self._params.min_new_tokens:
            if self._params.no_stop_trim:
                self.text += self._tokenizer.token_text(token)
            return FinishReason("stop", matched=token)
        reason = self._append(self._without_taken_back(self._detokenizer.add(token)))
        if reason is None and len(self.token_ids) >= self._params.max_new_tokens:
            return FinishReason("length", length=len(self.token_ids))
        return reason

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
        self._tell(len(self.text))
        self._on_finish(self)

    # -- the answer ---------------------------------------------------------------------------

    def completion(
        self, name: str, prompt: Sequence[int], prompt_tokens: int, cached_tokens: int
    ) -> Completion:
        """Return the finished sample; call it after `finish`.

        Args:
            name: the sample's id.
            prompt: the prompt's tokens after its last `Shift` or `Parallel` part, without the
                tokens of `taken_back`.
            prompt_tokens: number of tokens of the whole prompt.
            cached_tokens: number of prompt tokens whose KV was cached.
        """
        assert self.finish_reason is not None
        return Completion(
            text=self.text,
            token_ids=tuple(self.token_ids),
            finish_reason=self.finish_reason,
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            id=name,
            logprobs=self._logprobs(prompt) if self._params.return_logprob else None,
            extra=self._counts(),
        )

    def _counts(self) -> Mapping[str, int]:
        if not self._params.constrained:
            return {}
        decoded = len(self.token_ids) - self.forced_tokens
        return {"forced_tokens": self.forced_tokens, "decoded_tokens": decoded}

    def prompt_logprobs(self) -> tuple[TokenLogprob, ...]:
        return tuple(self._describe(score) for score in self._prompt_scores)

    def _logprobs(self, prompt: Sequence[int]) -> Logprobs:
        found = Logprobs(output=self._output_logprobs(0), output_top=self._output_top(0, None))
        return self.prompt_part(prompt) + found

    def prompt_part(self, prompt: Sequence[int]) -> Logprobs:
        """Return the logprobs of the prompt's tokens, those of `taken_back` included.

        Args:
            prompt: the prompt's tokens after its last `Shift` or `Parallel` part, without the
                tokens of `taken_back`.
        """
        scored = self.prompt_logprobs()
        tops = self._rows(self._prompt_top)
        start = self._params.logprob_start_len
        if start == 0 and len(prompt) == len(scored) + 1:  # nothing comes before the first token
            scored = (self._describe((None, prompt[0])), *scored)
            tops = ((), *tops) if self._params.top_logprobs_num else ()
        if start is None or start < 0:
            return Logprobs(input=scored, input_top=tops)
        return Logprobs(input=scored, input_top=tops) + self._end_part(start - len(prompt))

    def _end_part(self, start: int) -> Logprobs:
        """Return the logprobs of the taken-back tokens from index `start` on.

        A token that the model did not generate again has the logprob None.
        """
        tokens = self._taken_back.tokens[max(start, 0) :]
        known = [self._prompt_end.get(token, Scores(((None, token),))) for token in tokens]
        tops = [scores.top[0] if scores.top else () for scores in known]
        return Logprobs(
            input=tuple(self._describe(scores.tokens[0]) for scores in known),
            input_top=self._rows(tops) if self._params.top_logprobs_num else (),
        )

    def _output_logprobs(self, start: int) -> tuple[TokenLogprob, ...]:
        found = tuple(map(self._describe, self._scores[start : len(self.token_ids)]))
        if start or not found or found[0].text is None:
            return found
        new = found[0].text[self._overlap :]  # the token may begin with the prompt's end
        return (replace(found[0], text=new), *found[1:])

    def _output_top(self, start: int, end: int | None) -> tuple[tuple[TokenLogprob, ...], ...]:
        return self._rows(self._top[start:end])

    def _rows(self, rows: Sequence[tuple[TokenScore, ...]]) -> tuple[tuple[TokenLogprob, ...], ...]:
        return tuple(tuple(map(self._describe, row)) for row in rows)

    def _describe(self, score: tuple[float | None, int]) -> TokenLogprob:
        logprob, token = score
        wants_text = self._params.return_text_in_logprobs
        return TokenLogprob(
            logprob, token, self._tokenizer.token_text(token) if wants_text else None
        )

    # -- text ---------------------------------------------------------------------------------

    def _is_prompt(self, token: int) -> bool:
        """Count a token's bytes as taken-back text; return False if it goes beyond that text."""
        missing, spelled = self._missing, len(self._tokenizer.token_bytes(token))
        self._missing = max(missing - spelled, 0)
        if spelled > missing:
            self._overlap = len(self._taken_back.text)
        return spelled <= missing

    def _without_taken_back(self, piece: str) -> str:
        rest = piece[self._taken_back_left :]
        self._taken_back_left -= len(piece) - len(rest)
        return rest

    def _append(self, piece: str) -> FinishReason | None:
        """Append text to the output, and send the text that no stop can include any more.

        Returns:
            The finish reason if a stop matches or the stop patterns take too long; else None.
        """
        if not piece:
            return None
        self.text += piece
        if self._stops is None:
            self._tell(len(self.text))
            return None
        found = self._stops.find(self.text, self._sent, len(self.token_ids))
        if found is None:
            self._tell(self._stops.safe_end(self.text, self._sent))
            return None
        if isinstance(found, FinishReason):
            return found
        self.text = self.text[: found.end if self._params.no_stop_trim else found.start]
        return FinishReason("stop", matched=found.matched)

    def _tell(self, end: int) -> None:
        """Send the unsent text before index `end` as an event; no later stop begins in it."""
        piece = self.text[self._sent : end]
        self._sent = max(self._sent, end)
        reason = self.finish_reason
        aborted = reason is not None and reason.type == "abort"  # the request fails as a whole
        if self._on_event is None or aborted or not (piece or reason):
            return
        tokens = tuple(self.token_ids[self._told_tokens :])
        self._on_event(
            StreamEvent(
                self._sample,
                piece,
                tokens,
                self._new_logprobs() if self._params.return_logprob else None,
                reason,
                extra=self._counts(),
            )
        )
        self._told_tokens += len(tokens)

    def _new_logprobs(self) -> Logprobs:
        start, end = self._told_tokens, None if self.finish_reason else len(self.token_ids)
        return Logprobs(
            output=self._output_logprobs(start), output_top=self._output_top(start, end)
        )


class Silent:
    """The output of a prompt that is computed only for its KV: ignores logprobs and the end."""

    def push(self, token: int, scores: Scores | None, forced: bool = False) -> FinishReason | None:
        raise AssertionError("a prompt without output got a token")

    def score_prompt(self, scores: Scores) -> None:
        """Ignore logprobs of prompt tokens."""

    def score_next(self, scores: Scores) -> None:
        """Ignore logprobs after the prompt."""

    def finish(self, reason: FinishReason) -> None:
        """Ignore the end; the scheduler reads `Sequence.finish_reason`."""
