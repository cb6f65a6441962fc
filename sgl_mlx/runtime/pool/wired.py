"""Wiring of model weights: keeping them resident in a Mac's memory, so that they are not paged out.

Large models run many times slower unwired (ollama#17367: 0.6 tokens a second instead of 64 on an
M3 Ultra). Wiring short-lived buffers has caused kernel panics (mlx#3186). So the wired limit is the
size of the weights and is set before the KV pool is allocated: pool and activations are not wired.
Small models gain nothing from wiring and are not wired by default.
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
"""Share of the GPU's recommended working set above which weights are wired by default."""

_GIB = 2**30


@dataclass(frozen=True)
class Wiring:
    """A decision about wiring: how many bytes of weights to wire, perhaps 0, and why."""

    bytes: int
    why: str


def mode() -> Mode:
    """Read `SGL_MLX_WIRED` from the environment: auto (wire large weights), on (all) or off.

    Unset or empty means auto.

    Raises:
        InvalidParamsError: the variable has another value.
    """
    asked = os.environ.get(VARIABLE) or "auto"
    if asked not in get_args(Mode):
        raise InvalidParamsError(f"{VARIABLE}={asked!r}: it must be {', '.join(get_args(Mode))}")
    return cast("Mode", asked)


def wiring(weights: int, device: Mapping[str, Any] | None = None) -> Wiring:
    """Decide how many bytes of weights to wire; this changes nothing.

    Args:
        weights: bytes of the model's weights.
        device: device information as `machine.device_info` returns it; None asks this machine.

    Raises:
        InvalidParamsError: `SGL_MLX_WIRED` has an unknown value.
    """
    facts = device_info() if device is None else device
    recommended, asked = int(facts.get("max_recommended_working_set_size") or 0), mode()
    if not recommended:
        return Wiring(0, "no GPU that limits its memory: nothing to wire")
    told = f"weights of {weights / _GIB:.1f} GiB, {weights / recommended:.0%} of the recommended "
    told += f"{recommended / _GIB:.1f} GiB"
    if asked == "off":
        return Wiring(0, f"{told}: not wired, {VARIABLE}=off")
    if asked == "auto" and weights <= LARGE * recommended:
        return Wiring(0, f"{told}: not wired, up to {LARGE:.0%} wiring brings nothing")
    return Wiring(min(weights, recommended), f"{told}: wired ({VARIABLE}=off leaves them unwired)")


class WiredWeights:
    """One engine's share of MLX's wired limit, which all engines of the process have in common.

    Make it right after loading the weights, before anything else is allocated: it raises the limit.

    Args:
        weights: bytes of the loaded weights; 0 wires nothing.
        device: device information as `machine.device_info` returns it; None asks this machine.
    """

    def __init__(self, weights: int, device: Mapping[str, Any] | None = None) -> None:
        self.wiring = wiring(weights, device)
        self._taken = 0
        if self.wiring.bytes:
            mx.clear_cache()  # or buffers left from loading would be wired
            self._taken = self._add(self.wiring.bytes)

    def release(self) -> None:
        """Lower the limit by this engine's share again. Safe to call twice."""
        self._taken += self._add(-self._taken)

    def _add(self, share: int) -> int:
        """Change the wired limit by `share` bytes; return the change, 0 if the system refuses."""
        if not share:
            return 0
        try:
            before = mx.set_wired_limit(0)  # the only way to read it
            mx.set_wired_limit(max(before + share, 0))
        except (RuntimeError, ValueError) as error:  # the system allows less
            self.wiring = Wiring(0, f"not wired: {error}")
            return 0
        return share
