"""A server for agent clients, run by hand: it computes like a model and answers as told.

    python -m tests.server.agents --tool bash --arguments '{"command": "echo hi > hello.txt"}'

The model is a small random one with the embedded model's tokenizer and room for 64,000 tokens. A
grammar forces its answers: one call of the given tool, and a sentence once the result is there. At
the end (Ctrl-C) it prints what each prompt found in the cache, as `/cache` tells it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import click
import uvicorn

from sgl_mlx.core import Completion, Prompt, SamplingParams, prompt_text
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.server import app
from tests.server.small import CONTEXT, small_model


class ToldEngine(Engine):
    """An engine whose answers are forced by grammars."""

    tools: set[str]
    call = tool = text = ""

    def submit(
        self, prompt: Prompt | Sequence[int], params: SamplingParams, *args: Any, **keywords: Any
    ) -> Future[tuple[Completion, ...]]:
        text = prompt_text(prompt)  # type: ignore[arg-type]
        told = self._answer(text)
        self.tools.update(re.findall(r'"function": {"name": "([^"]+)"', text))
        params = replace(params, grammar=f"start: {json.dumps(told)}", json_schema=None, regex=None)
        return super().submit(prompt, params, *args, **keywords)

    def _answer(self, prompt: str) -> str:
        *_, last, _ = prompt.rsplit("<|im_start|>", 2)
        asked = self.tool and f'"name": "{self.tool}"' in prompt and not last.startswith("tool\n")
        return self.call if asked else self.text


@click.command()
@click.option("--port", default=30000)
@click.option("--name", default="toy", help="Name of the model.")
@click.option("--tool", default="", help="Name of the tool to call, as the client names it.")
@click.option("--arguments", default="{}", help="Arguments of the call, in JSON.")
@click.option("--text", default="The file is there.", help="Answer where no tool is called.")
def main(port: int, name: str, tool: str, arguments: str, text: str) -> None:
    """Serve on 127.0.0.1 until Ctrl-C."""
    call = json.dumps({"name": tool, "arguments": json.loads(arguments)})
    with ToldEngine(model=small_model(name), max_total_tokens=CONTEXT) as engine:
        engine.tool, engine.text, engine.tools = tool, text, set()
        engine.call = f"<tool_call>\n{call}\n</tool_call>"
        served = app(engine, any_model=True)
        try:
            uvicorn.run(served, host="127.0.0.1", port=port, log_level="warning")
        finally:
            click.echo(f"tools: {', '.join(sorted(engine.tools))}")
            for seen in served.state.service.history.of_client(""):
                found = f"{seen.cached_tokens} of {seen.prompt_tokens} tokens"
                click.echo(f"{seen.id[:16]} {found}, {seen.cause.name}, {seen.content[:60]!r}")


if __name__ == "__main__":
    main()
