"""Lines of a streamed answer."""

from __future__ import annotations


class Lines:
    """Splitter of bytes that arrive in pieces into lines of text.

    A line ends at a line feed alone, as in server-sent events and in lines of JSON.
    `str.splitlines` and httpx also split at other characters, such as U+2028, which JSON may hold
    unescaped.
    """

    def __init__(self) -> None:
        self._begun = b""

    def feed(self, piece: bytes) -> list[str]:
        """Return the lines that end in `piece`, without line feeds."""
        *whole, self._begun = (self._begun + piece).split(b"\n")
        return [_text(line) for line in whole]

    def rest(self) -> list[str]:
        """Return the text after the last line feed, as a list of one line; [] if there is none."""
        return [_text(self._begun)] if self._begun else []


def _text(line: bytes) -> str:
    return line.removesuffix(b"\r").decode("utf-8", "replace")
