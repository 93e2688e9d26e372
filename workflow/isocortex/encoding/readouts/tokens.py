"""Feature maps as tokens: patches with a place in the image, and tokens without one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_EXTRA = 5  # tokens without a place: a class token, and up to four registers


@dataclass(frozen=True)
class TokenGrid:
    """Where the tokens of a layer are.

    Attributes
    ----------
    rows, columns
        Of the patches, which are the last tokens, row by row; 0 where tokens have no place.
    n_extra
        Tokens before them without a place (class token, registers).
    n_units
        Channels of a patch.
    """

    rows: int
    columns: int
    n_extra: int
    n_units: int

    @property
    def n_tokens(self) -> int:
        return self.n_extra + self.rows * self.columns


def token_grid(shape: tuple[int, ...]) -> TokenGrid:
    """The tokens of a layer whose features of one stimulus have this shape.

    Parameters
    ----------
    shape
        (channel, row, column), (token, unit) or (unit,). Tokens are those of a vision
        transformer: a square of patches, after a class token and up to four registers; where
        their number fits no square, none has a place. Units alone are one token.
    """
    if len(shape) == 3:
        return TokenGrid(shape[1], shape[2], 0, shape[0])
    if len(shape) == 1:
        return TokenGrid(0, 0, 1, shape[0])
    n_tokens, n_units = shape
    side = math.isqrt(n_tokens)
    n_extra = n_tokens - side**2
    if n_extra > MAX_EXTRA or side < 2:
        return TokenGrid(0, 0, n_tokens, n_units)
    return TokenGrid(side, side, n_extra, n_units)


def as_tokens(values: Tensor) -> Tensor:
    """Features of some stimuli as tokens, shape (n, tokens, units)."""
    if values.ndim == 4:
        return values.flatten(2).transpose(1, 2)
    return values[:, None] if values.ndim == 2 else values


def places(grid: TokenGrid) -> Tensor:
    """Middle of each patch: x, and y upwards, from the image's middle; shape (patches, 2).

    Shares of the image's width; cells are square.
    """
    x = (torch.arange(grid.columns) + 0.5) / max(grid.columns, 1) - 0.5
    y = (grid.rows / 2 - torch.arange(grid.rows) - 0.5) / max(grid.columns, 1)
    return torch.stack([x.expand(grid.rows, -1), y[:, None].expand(-1, grid.columns)], -1).flatten(
        0, 1
    )


def position_code(grid: TokenGrid, n_frequencies: int) -> Tensor:
    """Sines and cosines of the patches' places, shape (patches, 4 x frequencies).

    Half a period to `n_frequencies` half periods over the image's width: the same code for the
    same place on maps of any resolution.
    """
    angle = math.pi * torch.arange(1, n_frequencies + 1) * places(grid)[..., None]
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(1)
