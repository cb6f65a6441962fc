"""Helpers that programs import from `sglang.utils`."""

from __future__ import annotations

import base64
import html
import json
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

from sgl_mlx.errors import BackendError
from sgl_mlx.lang.state import ProgramState

_DOWNLOAD_SECONDS = 60
_ASK_SECONDS = 1.0


def read_jsonl(filename: str) -> list[Any]:
    """Read a file with one JSON document per line; skip empty lines and lines that begin with #.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is no JSON; the message has the number of the line.
    """
    documents = []
    with open(filename, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip() and not line.startswith("#"):
                try:
                    documents.append(json.loads(line))
                except ValueError as error:
                    raise ValueError(f"{filename}, line {number}: {error}") from None
    return documents


def dump_state_text(filename: str, states: Iterable[Any], mode: str = "w") -> None:
    """Write the texts of all states to one file, each under a heading with its number.

    For objects that are no program states, `str(object)` is written.

    Args:
        mode: as in `open`: "w" replaces the file, "a" appends to it.
    """
    with open(filename, mode, encoding="utf-8") as file:
        for i, state in enumerate(states):
            text = state.text() if isinstance(state, ProgramState) else str(state)
            file.write(f"{'=' * 40} {i} {'=' * 40}\n{text}\n{'=' * 80}\n\n")


def get_exception_traceback() -> str:
    """Return the traceback of the current exception, as text."""
    return traceback.format_exc()


def convert_json_schema_to_str(json_schema: Any) -> str:
    """Return a JSON Schema as text, from JSON text, a dictionary or a pydantic model class."""
    if hasattr(json_schema, "model_json_schema"):
        json_schema = json_schema.model_json_schema()
    return json_schema if isinstance(json_schema, str) else json.dumps(json_schema)


def encode_image_base64(image_path: Any) -> str:
    """Return a picture file as base64 text.

    Args:
        image_path: the file's path, its content as bytes, or a PIL image, which is encoded as PNG.
    """
    if isinstance(image_path, bytes):
        return base64.b64encode(image_path).decode()
    if isinstance(image_path, (str, Path)):
        return base64.b64encode(Path(image_path).read_bytes()).decode()
    buffer = BytesIO()
    image_path.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


# -- HTTP -----------------------------------------------------------------------------------------


class HttpResponse:
    """A response of a server: `status_code`, `content`, `text` and `json()`."""

    def __init__(self, status_code: int, content: bytes) -> None:
        self.status_code = status_code
        self.content = content

    @property
    def text(self) -> str:
        return self.content.decode(errors="replace")

    def json(self) -> Any:
        return json.loads(self.content)


def http_request(
    url: str,
    json: Any = None,
    stream: bool = False,
    api_key: str | None = None,
    verify: str | None = None,
    method: str | None = None,
) -> Any:
    """Send a request and return the response, whatever its status; `json` becomes the body.

    Args:
        stream: return the open response of `urllib` instead, to be read line by line.
        api_key: sent as a bearer token.
        verify: a file with the certificates to trust.
        method: the HTTP method; by default GET, or POST with a body.

    Raises:
        OSError: the server cannot be reached.
    """
    headers = {"Content-Type": "application/json; charset=utf-8"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    body = None if json is None else _json_bytes(json)
    request = urllib.request.Request(url, body, headers, method=method)
    try:
        response = urllib.request.urlopen(request, context=_trusting(verify))
    except urllib.error.HTTPError as error:
        response = error
    if stream:
        return response
    with response:
        return HttpResponse(response.status, response.read())


def download_and_cache_file(url: str, filename: str | None = None) -> str:
    """Return the local path of the file at `url`; download the file if the path does not exist.

    Args:
        filename: where to store the file; by default in the folder for temporary files.

    Raises:
        OSError: the file cannot be downloaded.
    """
    path = Path(filename or Path(tempfile.gettempdir()) / url.rsplit("/", 1)[-1])
    if not path.exists():
        part = path.with_name(path.name + ".part")
        with urllib.request.urlopen(url, timeout=_DOWNLOAD_SECONDS) as response:
            part.write_bytes(response.read())
        part.replace(path)
    return str(path)


def _json_bytes(document: Any) -> bytes:
    return json.dumps(document).encode()


def _trusting(verify: str | None) -> Any:
    import ssl  # slow to import

    return ssl.create_default_context(cafile=verify) if verify else None


# -- servers --------------------------------------------------------------------------------------


def launch_server_cmd(
    command: str, host: str = "127.0.0.1", port: int | None = None
) -> tuple[subprocess.Popen[bytes], int]:
    """Start a server by a command, with `--host` and `--port` appended; return (process, port).

    Without `port`, a free port is chosen. `python` at the start of the command becomes the running
    interpreter.
    """
    port = port or _free_port(host)
    words = [*shlex.split(command), "--host", host, "--port", str(port)]
    if words[0] in ("python", "python3"):
        words[0] = sys.executable
    return subprocess.Popen(words), port


def wait_for_server(base_url: str, timeout: float | None = None) -> None:
    """Wait until a server answers a request for its models.

    Args:
        timeout: in seconds; None waits without limit.

    Raises:
        BackendError: there was no answer within `timeout` seconds.
    """
    end = None if timeout is None else time.monotonic() + timeout
    while not _answers(f"{base_url.rstrip('/')}/v1/models"):
        if end is not None and time.monotonic() > end:
            raise BackendError(f"no server at {base_url} within {timeout} seconds")
        time.sleep(_ASK_SECONDS)


def terminate_process(process: Any) -> None:
    """End a process and wait for its end; kill it after 10 seconds."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port(host: str) -> int:
    with socket.socket() as found:
        found.bind((host, 0))
        port: int = found.getsockname()[1]
        return port


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


# -- notebooks ------------------------------------------------------------------------------------


def print_highlight(html_content: str) -> None:
    """Show a text: highlighted in a notebook, plain elsewhere."""
    try:
        notebook = import_module("IPython.display")
    except ImportError:
        sys.stdout.write(f"{html_content}\n")
    else:
        text = html.escape(str(html_content)).replace("\n", "<br>")
        notebook.display(notebook.HTML(f"<strong style='color: #00008B;'>{text}</strong>"))


def stream_and_merge(llm: Any, prompt: str, sampling_params: Mapping[str, Any]) -> str:
    """Stream the answer of the engine `llm` to a prompt, and return its whole text."""
    text = ""
    for event in llm.generate(prompt, sampling_params, stream=True):
        text = event["text"]
    return text


async def async_stream_and_merge(llm: Any, prompt: str, sampling_params: Mapping[str, Any]) -> Any:
    """Stream the answer of the engine `llm` to a prompt, and yield the new text of each event."""
    text = ""
    async for event in await llm.async_generate(prompt, sampling_params, stream=True):
        piece, text = event["text"][len(text) :], event["text"]
        yield piece


def trim_overlap(existing_text: str, new_chunk: str) -> str:
    """Return `new_chunk` without the beginning that repeats the end of `existing_text`."""
    longest = min(len(existing_text), len(new_chunk))
    sizes = range(longest, 0, -1)
    shared = next((n for n in sizes if existing_text.endswith(new_chunk[:n])), 0)
    return new_chunk[shared:]


def is_in_ci() -> bool:
    """Return False: this is not one of SGLang's test machines."""
    return False
