"""Former module of `GGUFFile`, kept for old imports; the class is in `models.gguf.file`."""

from sgl_mlx.models.gguf.file import GGUFFile

__all__ = ["GGUFFile"]
