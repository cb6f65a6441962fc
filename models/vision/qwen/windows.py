"""Windows of attention: squares of tokens, cut off at a picture's right and bottom edge."""

from __future__ import annotations

from itertools import groupby

import mlx.core as mx

from sgl_mlx.models.vision.pixels import Size
from sgl_mlx.models.vision.qwen.config import QwenTowerConfig

Groups = list[tuple[int, int]]
"""Windows of equal size, one group after another: their number, and the patches of each."""


class Windows:
    """The windows of one grid, in an order in which those of equal size follow each other.

    Args:
        grid: rows and columns of patches.

    Attributes:
        groups: the windows by size. Without windows there is one, the whole picture.
        whole: the whole picture as one window.
    """

    def __init__(self, grid: Size, config: QwenTowerConfig) -> None:
        self._square = config.merge**2
        rows, columns = (edge // config.merge for edge in grid)
        self.whole: Groups = [(1, grid[0] * grid[1])]
        self.groups = self.whole
        self._order: list[int] | None = None
        if config.window:
            cut = sorted(_windows((rows, columns), config.window), key=len)
            sizes = [(size, len(list(same))) for size, same in groupby(map(len, cut))]
            self.groups = [(count, size * self._square) for size, count in sizes]
            self._order = [token for window in cut for token in window]

    def sorted(self, patches: mx.array) -> mx.array:
        """Bring patches `(pictures, patches, …)` from the order of tokens to that of windows."""
        if self._order is None:
            return patches
        squares = patches.reshape(len(patches), len(self._order), self._square, -1)
        return squares[:, mx.array(self._order)].reshape(patches.shape)

    def by_row(self, tokens: mx.array) -> mx.array:
        """Bring tokens `(pictures, tokens, width)` back from the order of windows, row by row."""
        if self._order is None:
            return tokens
        return tokens[:, mx.argsort(mx.array(self._order))]


def _windows(grid: Size, edge: int) -> list[list[int]]:
    """List the tokens of each window of `edge` tokens along its edge; tokens count row by row."""
    rows, columns = grid
    return [
        [
            row * columns + column
            for row in range(top, min(top + edge, rows))
            for column in range(left, min(left + edge, columns))
        ]
        for top in range(0, rows, edge)
        for left in range(0, columns, edge)
    ]
