"""The reader of GGUF files under its earlier name; it is `sgl_mlx.models.gguf.file`."""

from sgl_mlx.models.gguf.file import GGUFFile

__all__ = ["GGUFFile"]
