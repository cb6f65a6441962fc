"""Assertions about an engine when all is over."""

from __future__ import annotations

from sgl_mlx.runtime.engine import Engine


def assert_holds_nothing(engine: Engine) -> None:
    """No request is left, and every slot is free once the cache is flushed."""
    assert engine.flush_cache()
    stats = engine.get_server_info()["stats"]
    total = engine.get_server_info()["max_total_num_tokens"]
    assert (stats["running"], stats["waiting"], stats["free_slots"]) == (0, 0, total)
