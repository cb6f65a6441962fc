"""JSON form of plans and results, for a runner in another process, a recording or a replay.

A dataclass becomes an object with its class name under `"is"` and the fields that differ from
their defaults; a tuple becomes a list. Floats are read back bit for bit, infinities included.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from sgl_mlx.core import SamplingParams
from sgl_mlx.runtime.cache.tier import (
    Grow,
    GrowStates,
    GrowWindows,
    Load,
    LoadState,
    Spill,
    SpillState,
)
from sgl_mlx.runtime.scheduler.plan import (
    Decode,
    Extend,
    PicturePart,
    Plan,
    Row,
    RowWindow,
    Scores,
    StepResult,
)

Message = Plan | StepResult

_CLASSES: dict[str, type[Any]] = {
    c.__name__: c
    for c in (
        Extend,
        Decode,
        StepResult,
        Row,
        RowWindow,
        PicturePart,
        SamplingParams,
        Scores,
        Spill,
        Load,
        Grow,
        GrowStates,
        GrowWindows,
        SpillState,
        LoadState,
    )
}


def to_json(message: Message) -> str:
    """Serialise a plan or a step result to JSON.

    Raises:
        TypeError: a field holds something that is not plain data, such as a callable.
    """
    return json.dumps(message, default=_as_object, separators=(",", ":"))


def from_json(text: str) -> Message:
    """Read a plan or step result that `to_json` wrote; it equals the original.

    Raises:
        ValueError: the text is not JSON, or neither a plan nor a step result.
        KeyError, TypeError: an object has an unknown class name, or other fields than its class.
    """
    message = json.loads(text, object_hook=_from_object)
    if not isinstance(message, Message):
        raise ValueError(f"expected a plan or a step result, got {text[:80]!r}")
    return message


def _as_object(value: Any) -> dict[str, Any]:
    name = type(value).__name__
    if _CLASSES.get(name) is not type(value):
        raise TypeError(f"a plan must be plain data, but holds {value!r}")
    found = ((f.name, f.default, getattr(value, f.name)) for f in fields(value))
    return {"is": name, **{key: held for key, default, held in found if held != default}}


def _from_object(found: dict[str, Any]) -> Any:
    held = {key: _as_tuple(value) for key, value in found.items()}
    name = held.get("is")
    if not isinstance(name, str):  # a dictionary by sequence id; an id may be "is"
        return held
    del held["is"]
    return _CLASSES[name](**held)


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value
