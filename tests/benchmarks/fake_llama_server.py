"""A stand-in for llama-server: /health and a streamed /completion, steered by its bias.

Started as `fake_llama_server.py TOKENIZER_FOLDER FAULT …llama-server's own arguments`. Faults:
`exits`, `sick` (never healthy), `dies` (at the third call), `hangs`, `garbage`, `html`, `refuses`,
`uncounted`, `idle` (writes fewer tokens than asked for), `resets` (the first connections).
"""

from __future__ import annotations

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sgl_mlx.tokenizer import Tokenizer

FOLDER, FAULT, *ARGUMENTS = sys.argv[1:]
WARM_UP_CALLS = 8


class Handler(BaseHTTPRequestHandler):
    tokenizer = Tokenizer.from_file(FOLDER)
    calls = 0

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(503 if FAULT == "sick" else 200)
        self.end_headers()

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Handler.calls += 1
        if FAULT == "resets" and Handler.calls % 3 == 1:
            self.connection.close()
            return
        late = Handler.calls > WARM_UP_CALLS
        if FAULT == "refuses" and late:
            self.send_response(400)
            self.end_headers()
            self.wfile.write(b'{"error": "no"}')
            return
        self.send_response(200)
        self.end_headers()
        if late:
            self.fail()
        for event in self.answer(request, late):
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

    def fail(self) -> None:
        if FAULT == "dies":
            print("out of memory, or so", flush=True)  # noqa: T201
            os._exit(3)
        if FAULT == "hangs":
            time.sleep(600)
        if FAULT == "garbage":
            self.wfile.write(b"data: {nothing\n\n")
        if FAULT == "html":
            self.wfile.write(b"<html>It works!</html>\n")

    def answer(self, request: dict[str, Any], late: bool) -> list[dict[str, Any]]:
        count = request["n_predict"] - (FAULT == "idle" and late)
        bias = request["logit_bias"]
        word = self.tokenizer.decode([bias[0][0]], at_start=False) if bias else ""
        pieces = [{"content": word, "stop": False} for _ in range(count)]
        counts = {
            "tokens_evaluated": len(self.tokenizer.encode(request["prompt"])),
            "tokens_predicted": count,
        }
        end = {"content": "", "stop": True, **({} if FAULT == "uncounted" and late else counts)}
        return [*pieces, end]


if __name__ == "__main__":
    if FAULT == "exits":
        sys.exit("error: unknown model architecture")
    port = int(ARGUMENTS[ARGUMENTS.index("--port") + 1])
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
