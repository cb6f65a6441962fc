"""Tokenization and detokenization over HTTP, for clients without a tokenizer."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sgl_mlx.core import prompt_text
from sgl_mlx.server.bodies import json_response
from sgl_mlx.server.errors import bad_value
from sgl_mlx.server.messages import Conversation
from sgl_mlx.server.service import Service, in_thread


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """The body of `/tokenize`: either `prompt` (a text or several) or `messages` (a chat)."""

    prompt: str | list[str] | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    model: str | None = None


class TemplateRequest(msgspec.Struct, kw_only=True):
    """The body of `/apply-template`, llama.cpp's path: a chat to render."""

    messages: list[dict[str, Any]]
    add_generation_prompt: bool = True
    model: str | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """The body of `/detokenize`: `tokens`, a list of token ids or a list of such lists."""

    tokens: list[Any]
    skip_special_tokens: bool = True
    model: str | None = None


def routes(service: Service) -> list[Route]:
    """Return the routes `/tokenize`, `/detokenize`, `/apply-template` and `/tokenizer_info`."""
    asked = _Answers(service)
    return [
        *(Route(path, asked.tokenize, methods=["POST"]) for path in ("/tokenize", "/v1/tokenize")),
        *(
            Route(path, asked.detokenize, methods=["POST"])
            for path in ("/detokenize", "/v1/detokenize")
        ),
        Route("/apply-template", asked.apply_template, methods=["POST"]),
        Route("/tokenizer_info", asked.tokenizer_info),
    ]


class _Answers:
    """The handlers of the routes, for the tokenizer of one model."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._tokenizer = service.engine.tokenizer

    async def tokenize(self, request: Request) -> Response:
        fields = await self._service.read(request, TokenizeRequest)
        self._service.model(fields.model)
        tokens = await in_thread(self._tokens, fields)
        many = isinstance(fields.prompt, list)
        count: Any = [len(row) for row in tokens] if many else len(tokens[0])
        return json_response(
            {
                "tokens": tokens if many else tokens[0],
                "count": count,
                "max_model_len": self._service.context_length,
            }
        )

    def _tokens(self, fields: TokenizeRequest) -> list[list[int]]:
        special = fields.add_special_tokens
        if (fields.prompt is None) == (fields.messages is None):
            given = "neither" if fields.prompt is None else "both"
            raise bad_value(f"give either prompt or messages, got {given}")
        if fields.messages is not None:
            chat = Conversation(fields.messages).prompt(
                self._tokenizer,
                tools=fields.tools,
                add_generation_prompt=fields.add_generation_prompt,
            )
            return [self._tokenizer.encode(prompt_text(chat), special)]
        texts = [fields.prompt] if isinstance(fields.prompt, str) else fields.prompt
        return [self._tokenizer.encode(text, special) for text in texts or ()]

    async def apply_template(self, request: Request) -> Response:
        fields = await self._service.read(request, TemplateRequest)
        self._service.model(fields.model)
        if not fields.messages:
            raise bad_value("messages is empty; send at least one message", "messages")
        render = self._tokenizer.render_chat
        prompt = await in_thread(render, fields.messages, fields.add_generation_prompt)
        return json_response({"prompt": prompt})

    async def detokenize(self, request: Request) -> Response:
        fields = await self._service.read(request, DetokenizeRequest)
        self._service.model(fields.model)
        many = bool(fields.tokens) and isinstance(fields.tokens[0], list)
        rows = fields.tokens if many else [fields.tokens]
        texts = await in_thread(self._texts, rows, fields.skip_special_tokens)
        text: Any = texts if many else texts[0]
        return json_response({"text": text, "prompt": text})

    def _texts(self, rows: list[Any], skip_special: bool) -> list[str]:
        size = self._tokenizer.vocab_size
        for row in rows:
            if not isinstance(row, list) or not all(type(t) is int for t in row):
                raise bad_value("tokens must be a list of integers or of such lists", "tokens")
            wrong = next((t for t in row if not 0 <= t < size), None)
            if wrong is not None:
                raise bad_value(f"token id {wrong} is not in the vocabulary (0 to {size - 1})")
        return [self._tokenizer.decode(row, skip_special) for row in rows]

    async def tokenizer_info(self, _: Request) -> Response:
        tokenizer = self._tokenizer
        end, begin = min(tokenizer.eos_token_ids, default=None), tokenizer.bos_token_id
        return json_response(
            {
                "eos_token": None if end is None else tokenizer.token_text(end),
                "bos_token": None if begin is None else tokenizer.token_text(begin),
                "pad_token": None,
                "chat_template": tokenizer.chat_template,
            }
        )
