"""Backends that are clients of HTTP servers."""

from sgl_mlx.protocol import sglang as wire

__all__ = ["wire"]
