"""Known causes of a broken prefix, recognised by the text around the break.

A prefix is broken where a prompt stops matching the earlier prompt it was compared with.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_SIDE = 120
"""Number of characters before and after a break that are looked at."""


@dataclass(frozen=True)
class Cause:
    """A cause of a broken prefix: its short name, and advice how to avoid it.

    Attributes:
        wasted: True if text that could have been reused is computed again.
    """

    name: str
    advice: str
    wasted: bool = True


FIRST = Cause("first", "No earlier prompt begins like this one.", wasted=False)
NEW = Cause("new", "The whole earlier prompt was reused; only new text is computed.", wasted=False)
OTHER = Cause("other", "Another text begins here: what both share was reused.", wasted=False)
EVICTED = Cause("evicted", "The prefix was evicted: give the pool more tokens or a disk cache.")
EDITED = Cause("edited", "The client changed earlier text: append instead of rewriting.")
BILLING = Cause(
    "billing", "A billing line differs in each request: drop it (CLAUDE_CODE_ATTRIBUTION_HEADER=0)."
)
BUDGET = Cause("budget", "A counter of tokens left changes each turn: move it to the last message.")
DATE = Cause("date", "A date or time differs: leave it out, or put it after the fixed text.")
IDENTIFIER = Cause("id", "A random identifier differs: leave it out, or put it after fixed text.")
THOUGHTS = Cause("thoughts", "Reasoning was stripped from an earlier answer: send it back.")
SPACING = Cause("spacing", "JSON was written anew with other spaces: send it back as it came.")

_THINK = re.compile(r"\s*(<think>|\[THINK\]|<\|channel>thought)")
_BILLING = re.compile(r"x-anthropic-billing-header|\bcch=")
_BUDGET = re.compile(
    r"total_tokens|token[_ ]?budget|budget|tokens?[_ ](left|remaining|used)|remaining[_ ]tokens",
    re.IGNORECASE,
)
_MONTH = "(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_DATE = re.compile(
    rf"\d{{4}}-\d\d-\d\d|\d{{1,2}}:\d\d|\b\d{{1,2}}[./]\d{{1,2}}[./]\d{{2,4}}"
    rf"|\b{_MONTH}\.? \d{{1,2}}|\b\d{{1,2}}\.? {_MONTH}|\b(mon|tues|wednes|thurs|fri|satur|sun)day",
    re.IGNORECASE,
)
_IDENTIFIER = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-|[0-9a-fA-F]{12,}|\b\w+[_-][0-9A-Za-z]{12,}")


def cause_of(earlier: str, now: str, at: int) -> Cause:
    """Return why two prompts differ from index `at` on, judged by the text around `at`."""
    if at >= len(earlier):
        return NEW
    lines = _line(earlier, at), _line(now, at)
    if _THINK.match(earlier, at) and not _THINK.match(now, at):
        return THOUGHTS
    for pattern, cause in ((_BILLING, BILLING), (_BUDGET, BUDGET), (_DATE, DATE)):
        if _differ(pattern, *lines) or (cause is not DATE and all(map(pattern.search, lines))):
            return cause
    if _differ(_IDENTIFIER, *lines):
        return IDENTIFIER
    before, after = earlier[at : at + _SIDE].split(), now[at : at + _SIDE].split()
    if _same_but_for_spaces("".join(before), "".join(after)):
        return SPACING
    return EDITED if _goes_on_alike(earlier, now, at) else OTHER


def _line(text: str, at: int) -> str:
    """Return the line around a character, at most `_SIDE` characters to each side."""
    start = max(text.rfind("\n", 0, at) + 1, at - _SIDE)
    end = text.find("\n", at)
    return text[start : min(end if end >= 0 else len(text), at + _SIDE)]


def _differ(pattern: re.Pattern[str], earlier: str, now: str) -> bool:
    """Return True if both lines match a pattern and are equal apart from the matches."""
    found = pattern.findall(earlier), pattern.findall(now)
    return all(found) and pattern.sub("", earlier) == pattern.sub("", now)


def _same_but_for_spaces(earlier: str, now: str) -> bool:
    length = min(len(earlier), len(now), _SIDE // 2)
    return length >= 8 and earlier[:length] == now[:length]


def _goes_on_alike(earlier: str, now: str, at: int) -> bool:
    """Return True if text after the break in the earlier prompt is also in the new prompt."""
    middle = (at + len(earlier)) // 2
    sample = earlier[middle : middle + _SIDE]
    return len(sample) >= _SIDE // 2 and sample in now[at:]
