"""Weights made resident on a Mac's GPU, where the system would otherwise page them out.

Large models run many times slower unwired (ollama#17367: 0.6 tokens a second instead of 64 on an
M3 Ultra). Wiring buffers that come and go is behind kernel panics (mlx#3186), so the limit is the
size of the weights and is set before the pool is made: pool and activations are never wired.
Small models gain nothing and are left alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import mlx.core as mx

from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.machine import device_info

VARIABLE = "SGL_MLX_WIRED"
Mode = Literal["auto", "on", "off"]

LARGE = 0.25
"""Share of the recommended working set from which weights are wired."""

_GIB = 2**30


@dataclass(frozen=True)
class Wiring:
    """Bytes of weights to keep resident, 0 for none, and the reason in words."""

    bytes: int
    why: str


def mode() -> Mode:
    """Read from the environment whether to wire: auto (large weights), on (any) or off.

    Raises:
        InvalidParamsError: the value is not one of these.
    """
    asked = os.environ.get(VARIABLE) or "auto"
    if asked not in get_args(Mode):
        raise InvalidParamsError(f"{VARIABLE}={asked!r}: it must be {', '.join(get_args(Mode))}")
    return cast("Mode", asked)


def wiring(weights: int, device: Mapping[str, Any] | None = None) -> Wiring:
    """Decide how many of the `weights` (bytes) are made resident; nothing is changed.

    Args:
        device: facts as `machine.device_info` gives them; None asks for this machine's.
    """
    facts = device_info() if device is None else device
    recommended, asked = int(facts.get("max_recommended_working_set_size") or 0), mode()
    if not recommended:
        return Wiring(0, "no GPU with a memory of its own limits: nothing to wire")
    told = f"weights of {weights / _GIB:.1f} GiB, {weights / recommended:.0%} of the recommended "
    told += f"{recommended / _GIB:.1f} GiB"
    if asked == "off":
        return Wiring(0, f"{told}: not wired, {VARIABLE}=off")
    if asked == "auto" and weights <= LARGE * recommended:
        return Wiring(0, f"{told}: not wired, up to {LARGE:.0%} it brings nothing")
    return Wiring(min(weights, recommended), f"{told}: wired ({VARIABLE}=off leaves them unwired)")


class WiredWeights:
    """One engine's share of MLX's wired limit, which is one for the whole process.

    Args:
        weights: bytes of weights that are loaded; make this before anything else is allocated.
    """

    def __init__(self, weights: int, device: Mapping[str, Any] | None = None) -> None:
        self.wiring = wiring(weights, device)
        self._taken = 0
        if self.wiring.bytes:
            mx.clear_cache()  # or buffers left from loading would be wired
            self._taken = self._add(self.wiring.bytes)

    def release(self) -> None:
        """Give the share back; safe to call twice."""
        self._taken += self._add(-self._taken)

    def _add(self, share: int) -> int:
        """Change the limit by `share` bytes; returns by how much it was changed."""
        if not share:
            return 0
        try:
            before = mx.set_wired_limit(0)  # the only way to read it
            mx.set_wired_limit(max(before + share, 0))
        except (RuntimeError, ValueError) as error:  # the system allows less
            self.wiring = Wiring(0, f"not wired: {error}")
            return 0
        return share
