"""Luminance and contrast on a grid over the visual field, of images and of movies."""

import torch
from torch import nn

from isocortex.features.filters import Luminance

REC709 = (0.2126, 0.7152, 0.0722)


def cell_means(images: torch.Tensor, cells: int) -> torch.Tensor:
    """Means over cells x cells cells, shape (n, channels, cells, cells).

    The cells are those of `adaptive_avg_pool2d`, which adds up one pixel after the other and so
    loses two digits over a large cell; matrix products do not.
    """

    def weights(length: int) -> torch.Tensor:
        number = torch.arange(cells)[:, None]
        pixel = torch.arange(length)
        first, last = number * length // cells, -(-(number + 1) * length // cells)
        inside = ((pixel >= first) & (pixel < last)).to(images)
        return inside / inside.sum(1, keepdim=True)

    return weights(images.shape[-2]) @ images @ weights(images.shape[-1]).T


def linear_rgb(images: torch.Tensor) -> torch.Tensor:
    """Linear light of sRGB values, both 0 to 1 (IEC 61966-2-1)."""
    return torch.where(
        images <= 0.04045, images / 12.92, ((images.clamp(min=0) + 0.055) / 1.055) ** 2.4
    )


class LuminanceContrast(nn.Module):
    """Mean luminance and RMS contrast of each cell of a grid.

    Parameters
    ----------
    grid
        Cells a side.
    linear
        Measure light (the sRGB curve undone, Rec. 709 weights) instead of the image's values
        (Rec. 601 luma).

    Notes
    -----
    Layers: `luminance` and `contrast`, shape (n, 1, grid, grid), and `both`, (n, 2, grid, grid).
    Luminance runs from 0 (black) to 1 (white), contrast is its standard deviation over a cell's
    pixels in the same unit.

    References
    ----------
    Peli (1990), Contrast in complex images (RMS contrast).
    """

    def __init__(self, *, grid: int = 8, linear: bool = False) -> None:
        super().__init__()
        self.cells, self.linear = grid, linear
        self.grey = Luminance()
        self.luminance = nn.Identity()
        self.contrast = nn.Identity()
        self.both = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Luminance and contrast, shape (n, 2, grid, grid), of images (n, 3, height, width)."""
        if self.linear:
            weights = images.new_tensor(REC709).view(1, 3, 1, 1)
            grey = (linear_rgb(images) * weights).sum(1, keepdim=True)
        else:
            grey = self.grey(images)
        # Squares around the image's mean: around 0 they would lose a low contrast to rounding.
        centre = grey.mean((2, 3), keepdim=True)
        first = cell_means(grey - centre, self.cells)
        second = cell_means((grey - centre) ** 2, self.cells)
        luminance = self.luminance(first + centre)
        contrast = self.contrast((second - first**2).clamp(min=0).sqrt())
        return self.both(torch.cat([luminance, contrast], dim=1))


class ContrastEnergy(nn.Module):
    """Contrast energy and flicker of movies on a grid, also of stimuli as silhouettes.

    Parameters
    ----------
    grid
        Cells a side.
    background
        Luminance that counts as no stimulus, 0 (black) to 1.

    Notes
    -----
    Layers: `contrast`, the mean over a cell's pixels and a sample's frames of (luminance -
    background)^2; `flicker`, that of the squared difference between one frame and the next;
    shape (n, 1, grid, grid); and `both`. Of a silhouette, 1 on a background of 0, the contrast
    is the share of the cell that it covers. With one frame a sample there is no flicker.
    """

    def __init__(self, *, grid: int = 16, background: float = 0.0) -> None:
        super().__init__()
        if not 0 <= background <= 1:
            raise ValueError(f"background is {background}: write a luminance from 0 to 1")
        self.cells, self.background = grid, background
        self.grey = Luminance()
        self.contrast = nn.Identity()
        self.flicker = nn.Identity()
        self.both = nn.Identity()

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Contrast (and flicker), shape (n, 1 or 2, grid, grid), of (n, frames, 3, side, side)."""
        grey = self.grey(clips.flatten(0, 1)).unflatten(0, clips.shape[:2]).squeeze(2)
        energy = ((grey - self.background) ** 2).mean(1, keepdim=True)
        contrast = self.contrast(cell_means(energy, self.cells))
        if clips.shape[1] == 1:
            return contrast
        change = (grey.diff(dim=1) ** 2).mean(1, keepdim=True)
        flicker = self.flicker(cell_means(change, self.cells))
        return self.both(torch.cat([contrast, flicker], dim=1))
