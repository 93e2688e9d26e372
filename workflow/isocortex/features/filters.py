"""Features without learning: pixels and Gabor energy."""

import math

import torch
from torch import nn
from torch.nn import functional

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Luminance(nn.Module):
    """Grey images, shape (n, 1, height, width), of RGB images (n, 3, height, width)."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        weights = images.new_tensor(LUMINANCE).view(1, 3, 1, 1)
        return (images * weights).sum(1, keepdim=True)


class Pixels(nn.Module):
    """The pixels themselves.

    Layers: `rgb` (n, 3, height, width), `grey` (n, 1, height, width).
    """

    def __init__(self) -> None:
        super().__init__()
        self.rgb = nn.Identity()
        self.grey = Luminance()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Grey images; the hooks read both layers."""
        return self.grey(self.rgb(images))


def _is_fast(length: int) -> bool:
    """Whether a length has no prime factor over 5: others take several times as long."""
    for factor in (2, 3, 5):
        while length % factor == 0:
            length //= factor
    return length == 1


class GaborScale(nn.Module):
    """Gabor energy of one spatial frequency, on a grid.

    Parameters
    ----------
    size
        Side of the square images, pixels.
    frequency
        Cycles a pixel.
    orientations
        Number of orientations, equally spaced over 180 degrees.
    bandwidth
        Full width at half height of the tuning to frequency, octaves.
    grid
        Energy is averaged over grid x grid cells.
    """

    def __init__(
        self, *, size: int, frequency: float, orientations: int, bandwidth: float, grid: int
    ) -> None:
        super().__init__()
        # A Gaussian in the frequency domain is half as high at f (1 +- ratio) where
        # (1 + ratio) / (1 - ratio) = 2 ** bandwidth.
        ratio = (2**bandwidth - 1) / (2**bandwidth + 1)
        spread = frequency * ratio / math.sqrt(2 * math.log(2))
        # The envelope in space has the standard deviation 1 / (2 pi spread); three of them
        # are what a border can reach.
        border = min(size - 1, math.ceil(3 / (2 * math.pi * spread)))
        while border < size - 1 and not _is_fast(size + 2 * border):
            border += 1
        self.size, self.border, self.grid = size, border, grid
        axis = torch.fft.fftfreq(size + 2 * border, dtype=torch.float64)
        angles = torch.arange(orientations, dtype=torch.float64) * math.pi / orientations
        across = axis.view(1, 1, -1) - frequency * torch.cos(angles).view(-1, 1, 1)
        down = axis.view(1, -1, 1) - frequency * torch.sin(angles).view(-1, 1, 1)
        # One-sided spectra: the real and the imaginary part of the response are the quadrature
        # pair. Twice the height gives a matched grating its own amplitude.
        spectra = 2 * torch.exp(-(across**2 + down**2) / (2 * spread**2))
        spectra[:, 0, 0] = 0  # no response to the mean luminance
        self.register_buffer("spectra", spectra.to(torch.float32))

    def forward(self, grey: torch.Tensor) -> torch.Tensor:
        padded = functional.pad(grey, [self.border] * 4, mode="reflect")
        response = torch.fft.ifft2(torch.fft.fft2(padded) * self.spectra)
        inside = slice(self.border, self.border + self.size)
        response = response[..., inside, inside]
        energy = response.real**2 + response.imag**2
        return functional.adaptive_avg_pool2d(energy, self.grid).sqrt()


class GaborEnergy(nn.Module):
    """Gabor energy pyramid: scales x orientations, quadrature pairs, on a grid.

    Parameters
    ----------
    size
        Side of the square images, pixels.
    scales
        Number of spatial frequencies, an octave apart, the highest size / 4 cycles an image.
    orientations
        Number of orientations: channel o prefers luminance that changes along the angle
        180 o / orientations degrees from the horizontal (channel 0: vertical stripes).
    bandwidth
        Octaves.
    grid
        The energy is averaged over grid x grid cells before the square root.

    Notes
    -----
    Layers: `scale1` (finest) ... and `energy`, all scales together; shape
    (n, scale x orientation, grid, grid). A unit is the contrast amplitude in its cell: a
    grating of amplitude a at the preferred frequency and orientation gives a, at any phase.

    References
    ----------
    Adelson & Bergen (1985); Kay et al. (2008), Identifying natural images from human brain
    activity (square root of the quadrature energy).
    """

    def __init__(
        self,
        *,
        size: int = 128,
        scales: int = 4,
        orientations: int = 8,
        bandwidth: float = 1.0,
        grid: int = 8,
    ) -> None:
        super().__init__()
        self.grey = Luminance()
        self.names = [f"scale{index + 1}" for index in range(scales)]
        self.frequencies = [size / 4 / 2**index for index in range(scales)]  # cycles an image
        for index, name in enumerate(self.names):
            scale = GaborScale(
                size=size,
                frequency=0.25 / 2**index,
                orientations=orientations,
                bandwidth=bandwidth,
                grid=grid,
            )
            self.add_module(name, scale)
        self.energy = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Energy, shape (n, scales x orientations, grid, grid), of images (n, 3, size, size)."""
        grey = self.grey(images)
        return self.energy(torch.cat([getattr(self, name)(grey) for name in self.names], dim=1))
