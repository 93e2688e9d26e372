"""Colour on a grid over the visual field: opponent channels, CIELAB, histograms."""

import math

import torch
from torch import nn
from torch.nn import functional

from isocortex.features.luminance import cell_means, linear_rgb

# Linear sRGB to CIE XYZ (IEC 61966-2-1); its white, D65, is the matrix' row sums.
XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
WHITE = (0.95047, 1.0, 1.08883)
RANGES = ((0.0, 100.0), (-100.0, 100.0), (-100.0, 100.0))
"""What the histograms of L*, a* and b* span; sRGB reaches a little further."""


def lab(images: torch.Tensor) -> torch.Tensor:
    """CIELAB (D65, 2 degrees), shape (n, 3, height, width), of sRGB images of that shape."""
    light = torch.einsum("xc,nchw->nxhw", images.new_tensor(XYZ), linear_rgb(images))
    ratio = light / images.new_tensor(WHITE).view(1, 3, 1, 1)
    root = torch.where(ratio > 0.008856, ratio.clamp(min=1e-9) ** (1 / 3), 7.787 * ratio + 16 / 116)
    x, y, z = root.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


class Colour(nn.Module):
    """Colour of each cell of a grid.

    Parameters
    ----------
    grid
        Cells a side.
    bins
        Of each of the three histograms of a cell.

    Notes
    -----
    Layers, shape (n, channels, grid, grid): `opponent`, means of (R - G) / sqrt 2, (R + G - 2 B)
    / sqrt 6 and (R + G + B) / sqrt 3; `lab`, means of L*, a* and b*; `histogram`, shares of the
    cell's pixels in equal bins of L* (0 to 100), a* and b* (-100 to 100; what is beyond counts
    in the outermost bin), `bins` channels each.

    References
    ----------
    van de Sande et al. (2010), Evaluating color descriptors for object and scene recognition
    (opponent channels).
    """

    def __init__(self, *, grid: int = 4, bins: int = 8) -> None:
        super().__init__()
        if bins < 1:
            raise ValueError(f"bins is {bins}: write a positive number")
        self.cells, self.bins = grid, bins
        self.opponent = nn.Identity()
        self.lab = nn.Identity()
        self.histogram = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Opponent channels; the hooks read all layers."""
        red, green, blue = images.unbind(1)
        channels = [
            (red - green) / math.sqrt(2),
            (red + green - 2 * blue) / math.sqrt(6),
            (red + green + blue) / math.sqrt(3),
        ]
        opponent = self.opponent(cell_means(torch.stack(channels, dim=1), self.cells))
        values = lab(images)
        self.lab(cell_means(values, self.cells))
        shares = []
        for channel, (low, high) in enumerate(RANGES):
            place = ((values[:, channel] - low) / (high - low) * self.bins).floor()
            place = place.clamp(0, self.bins - 1).long()
            counted = functional.one_hot(place, self.bins).permute(0, 3, 1, 2).to(values.dtype)
            shares.append(cell_means(counted, self.cells))
        self.histogram(torch.cat(shares, dim=1))
        return opponent
