"""The scans: 1,797 handwritten digits of 8 x 8 pixels (UCI; `sklearn.datasets.load_digits`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

HELD_OUT = 400
_INK = 16  # the darkest value in the data set
_PIXEL = 2 / 8  # in the coordinates of `affine_grid`, where the edge is 2 long
_TURN, _STRETCH = 0.12, 0.08


@dataclass(frozen=True)
class Scans:
    """Pictures `(n, 8, 8)` from 0 to 255, and the digits `(n,)` on them."""

    pictures: np.ndarray
    digits: np.ndarray

    def __len__(self) -> int:
        return len(self.digits)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Pictures `(n, 1, 8, 8)` from 0 to 1, and digits `(n,)`."""
        pictures = torch.from_numpy(self.pictures).float() / 255
        return pictures[:, None], torch.from_numpy(self.digits).long()


def split() -> tuple[Scans, Scans]:
    """Scans to train on, and `HELD_OUT` others with every digit in proportion; always the same."""
    found = load_digits()
    pictures = np.round(found.images * (255 / _INK)).astype(np.uint8)
    digits = found.target.astype(np.uint8)
    parts = train_test_split(pictures, digits, test_size=HELD_OUT, stratify=digits, random_state=0)
    return Scans(parts[0], parts[2]), Scans(parts[1], parts[3])


def jitter(pictures: Tensor) -> Tensor:
    """Each picture `(n, 1, 8, 8)` a little turned, stretched, and moved by up to one pixel."""
    count = len(pictures)
    turn = torch.randn(count) * _TURN
    stretch = 1 + torch.randn(2, count) * _STRETCH
    shift = (torch.rand(2, count) * 2 - 1) * _PIXEL
    rows = [
        torch.stack([stretch[0] * turn.cos(), -turn.sin(), shift[0]], 1),
        torch.stack([turn.sin(), stretch[1] * turn.cos(), shift[1]], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, align_corners=False)


def normalise(pictures: Tensor) -> Tensor:
    """Three equal channels `(n, 3, 8, 8)` from -1 to 1, as the processor of `train.py` does it."""
    return (pictures * 2 - 1).expand(-1, 3, -1, -1)
