"""Analysis of an article by plain HTTP calls: the same task as `program`.

Runs on llama-server, or on another server with OpenAI's completions and llama.cpp's `grammar`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

BIOGRAPHY = {"name": str, "occupation": str, "birth year": int, "number of awards": int}
GRAMMARS = {str: r'root ::= "\"" [a-zA-Z0-9_ ]* "\""', int: 'root ::= "-"? [0-9]+'}
SECTIONS = 4
ATTEMPTS = 3


class ServerError(Exception):
    """A request was refused, failed on every attempt, or was answered in the wrong form."""


class Server:
    """Client of a completion server. Safe to use from several threads.

    Args:
        http: HTTP client with the server's address and a timeout.
        pause: seconds before the first retry of a failed call; before each later retry, the wait
            is `pause` seconds longer.
    """

    def __init__(self, http: httpx.Client, pause: float = 0.5) -> None:
        self._http = http
        self._pause = pause

    def complete(
        self, prompt: str, max_tokens: int, stop: Sequence[str] = (), grammar: str | None = None
    ) -> str:
        """Return the text that the server writes after the prompt; retries failed calls.

        Raises:
            ServerError: when the server refuses the request, or every attempt fails.
        """
        request = {"prompt": prompt, "max_tokens": max_tokens, "stop": list(stop)}
        if grammar:
            request["grammar"] = grammar
        failure: Exception | None = None
        for attempt in range(ATTEMPTS):
            time.sleep(self._pause * attempt)
            try:
                response = self._http.post("/v1/completions", json=request)
                if response.is_client_error and response.status_code != 429:
                    raise ServerError(f"refused with {response.status_code}: {response.text}")
                response.raise_for_status()
                return str(response.json()["choices"][0]["text"])
            except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
                failure = error
        raise ServerError(f"failed {ATTEMPTS} times, at last with {failure!r}") from failure

    def choose(self, prompt: str, choices: Sequence[str]) -> str:
        """Return the choice that the server writes.

        Raises:
            ServerError: when the server writes another text, or `complete` fails.
        """
        grammar = "root ::= " + " | ".join(map(json.dumps, choices))
        text = self.complete(prompt, 8, grammar=grammar)
        if text not in choices:
            raise ServerError(f"{text!r} is none of {choices}")
        return text

    def field(self, prompt: str, kind: type) -> tuple[str, Any]:
        """Return the value that the server writes: as text, and converted to `kind`.

        Raises:
            ServerError: when the text cannot be converted, or `complete` fails.
        """
        text = self.complete(prompt, 24, grammar=GRAMMARS[kind])
        try:
            return text, kind(text.strip('"'))
        except ValueError:
            raise ServerError(f"{text!r} is no {kind.__name__}") from None


def analyse(server: Server, article: str) -> dict[str, Any]:
    prompt = f"Article:\n{article}\n\nIs the article about a celebrity?"
    answer = server.choose(prompt, [" yes", " no"])
    prompt += answer + "\n"
    found: dict[str, Any] = {"celebrity": answer == " yes"}
    if found["celebrity"]:
        prompt += "Biography:\n"
        found["biography"] = {}
        for field, kind in BIOGRAPHY.items():
            prompt += f"{field}: "
            text, found["biography"][field] = server.field(prompt, kind)
            prompt += text + "\n"
        prompt += "Introduction:"
    else:
        prompt += "Summary:"
    opening = server.complete(prompt, 160, stop=["\n"])
    prompt += f"{opening}\nTitles of the {SECTIONS} sections of a report:\n"
    titles = []
    for number in range(1, SECTIONS + 1):
        prompt += f"{number}."
        titles.append(server.complete(prompt, 16, stop=["\n"]))
        prompt += titles[-1] + "\n"
    with ThreadPoolExecutor(SECTIONS) as pool:
        texts = pool.map(lambda title: server.complete(f"{prompt}Section{title}:\n", 256), titles)
        report = [f"#{title}\n{text}\n" for title, text in zip(titles, texts, strict=True)]
    return found | {"opening": opening, "report": "\n".join(report)}
