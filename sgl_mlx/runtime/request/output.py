"""What becomes of a sequence's tokens: text, stop conditions, logprobs, and one `Completion`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import regex

from sgl_mlx.core import Completion, FinishReason, Logprobs, SamplingParams, TokenLogprob
from sgl_mlx.runtime.scheduler.sequence import Scores, TokenScore
from sgl_mlx.tokenizer import Tokenizer


class TextOutput:
    """Collects one sample; implements `sequence.Output`.

    Args:
        params: of the request.
        tokenizer: of the model.
        end_tokens: the model's end-of-sequence ids.
        on_text: told of new text as soon as no stop string can take it back.
        on_finish: told of the end, once.
        healed: end of the prompt that the output begins with again; not part of the text.
    """

    def __init__(
        self,
        params: SamplingParams,
        tokenizer: Tokenizer,
        end_tokens: frozenset[int],
        on_finish: Callable[[TextOutput], None],
        on_text: Callable[[str], None] | None = None,
        healed: str = "",
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
        self._on_text = on_text
        self._detokenizer = tokenizer.detokenizer(params.skip_special_tokens)
        self._stop_patterns = [regex.compile(pattern) for pattern in params.stop_regex]
        self._sent = 0
        self._scores: list[TokenScore] = []
        self._top: list[tuple[TokenScore, ...]] = []
        self._prompt_scores: list[TokenScore] = []
        self._prompt_top: list[tuple[TokenScore, ...]] = []
        self._healed = len(healed)
        self.forced_tokens = 0
        self.token_ids: list[int] = []
        self.text = ""
        self.finish_reason: FinishReason | None = None

    # -- sequence.Output ----------------------------------------------------------------------

    def push(self, token: int, scores: Scores | None, forced: bool = False) -> FinishReason | None:
        self.token_ids.append(token)
        self.forced_tokens += forced
        if scores is not None:
            self.score_next(scores)
        elif self._params.return_logprob:  # forced: the model was not asked
            self.score_next(
                Scores(((None, token),), ((),) if self._params.top_logprobs_num else ())
            )
        if token in self._end_tokens and len(self.token_ids) > self._params.min_new_tokens:
            if self._params.no_stop_trim:
                self.text += self._tokenizer.token_text(token)
            return FinishReason("stop", matched=token)
        return self._append(self._without_healed(self._detokenizer.add(token)))

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
            extra=self._counts(),
        )

    def _counts(self) -> dict[str, int]:
        if not self._params.constrained:
            return {}
        decoded = len(self.token_ids) - self.forced_tokens
        return {"forced_tokens": self.forced_tokens, "decoded_tokens": decoded}

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

    def _without_healed(self, piece: str) -> str:
        rest = piece[self._healed :]
        self._healed -= len(piece) - len(rest)
        return rest

    def _append(self, piece: str) -> FinishReason | None:
        """Add text; the reason to stop if it completes a stop string or pattern."""
        if not piece:
            return None
        self.text += piece
        found = self._find_stop()
        if found is None:
            self._send(self._safe_end())
            return None
        start, end, matched = found
        self.text = self.text[: end if self._params.no_stop_trim else start]
        return FinishReason("stop", matched=matched)

    def _find_stop(self) -> tuple[int, int, str] | None:
        """The stop in what was not sent yet that is complete first: where it is, and which.

        Complete first, not begun first: so it does not matter how the text is split into tokens.
        """
        found = []
        for stop in self._params.stop:
            at = self.text.find(stop, self._sent)
            if at >= 0:
                found.append((at, at + len(stop), stop))
        for pattern in self._stop_patterns:
            match = pattern.search(self.text, self._sent)
            if match and match.end() > match.start():
                found.append((match.start(), match.end(), match.group()))
        return min(found, key=lambda stop: (stop[1], stop[0]), default=None)

    def _safe_end(self) -> int:
        """How far the text can be sent: up to what could be the beginning of a stop."""
        ends = [len(self.text)]
        for stop in self._params.stop:
            first = max(self._sent, len(self.text) - len(stop) + 1)
            starts = (i for i in range(first, len(self.text)) if stop.startswith(self.text[i:]))
            ends.append(next(starts, len(self.text)))
        for pattern in self._stop_patterns:
            match = pattern.search(self.text, self._sent, partial=True)
            ends.append(match.start() if match else len(self.text))
        return min(ends)

    def _send(self, end: int) -> None:
        """Everything before `end` is settled; no stop will be looked for in it again."""
        if end > self._sent:
            if self._on_text is not None:
                self._on_text(self.text[self._sent : end])
            self._sent = end


class Silent:
    """Output of a prompt that is computed for its KV alone."""

    def push(self, token: int, scores: Scores | None, forced: bool = False) -> FinishReason | None:
        raise AssertionError("a prompt without output got a token")

    def score_prompt(self, scores: Scores) -> None:
        """Nobody asked."""

    def score_next(self, scores: Scores) -> None:
        """Nobody asked."""

    def finish(self, reason: FinishReason) -> None:
        """Whoever waits for the KV looks at the sequence."""
