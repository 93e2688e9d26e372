"""The gist of a scene: energy of oriented filters at several scales, averaged over blocks."""

import math

import torch
from torch import nn

from isocortex.features.luminance import cell_means


def pad_symmetric(images: torch.Tensor, width: int) -> torch.Tensor:
    """Mirror the last two axes at their borders, the outermost pixels repeated."""
    for axis in (-2, -1):
        length = images.shape[axis]
        images = torch.cat(
            [
                images.narrow(axis, 0, width).flip(axis),
                images,
                images.narrow(axis, length - width, width).flip(axis),
            ],
            dim=axis,
        )
    return images


def _frequencies(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cycles an image along columns and rows, each of shape (size, size), 0 first."""
    axis = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)
    down, across = torch.meshgrid(axis, axis, indexing="ij")
    return across, down


class Gist(nn.Module):
    """Spatial envelope of a scene.

    Parameters
    ----------
    size
        Side of the square images, pixels; even.
    scales
        Number of spatial frequencies, a factor 1.85 apart, the highest .3 cycles a pixel.
    orientations
        At each scale, equally spaced over 180 degrees.
    blocks
        The filters' magnitude is averaged over blocks x blocks cells.

    Notes
    -----
    Layer: `gist`, shape (n, scale x orientation, blocks, blocks), the finest scale first. Before
    filtering, the image's range becomes 0 to 255, its logarithm loses what is below about 4
    cycles an image, and what is left is divided by its local standard deviation.

    References
    ----------
    Oliva & Torralba (2001), Modeling the shape of the scene: a holistic representation of the
    spatial envelope; constants and borders as in their LMgist.
    """

    cutoff = 4.0  # cycles an image, of the high-pass filter before
    margin = 5  # pixels, around the image in that step
    border = 32  # pixels, around it for the oriented filters

    def __init__(
        self, *, size: int = 128, scales: int = 4, orientations: int = 8, blocks: int = 4
    ) -> None:
        super().__init__()
        if size % 2 or size < 2 * self.border:
            raise ValueError(f"image_size is {size}: gist takes an even one from 64 pixels on")
        self.blocks = blocks
        across, down = _frequencies(size + 2 * self.margin)
        width = self.cutoff / math.sqrt(math.log(2))
        low_pass = torch.exp(-(across**2 + down**2) / width**2)
        self.register_buffer("low_pass", low_pass.to(torch.float32))

        side = size + 2 * self.border
        across, down = _frequencies(side)
        radius, angle = torch.hypot(across, down), torch.atan2(down, across)
        # The Nyquist frequency is a negative one here as there: its angle then is theirs.
        spectra = []
        for scale in range(scales):
            frequency = 0.3 / 1.85**scale
            tuning = 16 * orientations**2 / 32**2
            for orientation in range(orientations):
                turned = angle + math.pi * orientation / orientations
                turned = turned - 2 * math.pi * (turned > math.pi)
                spectra.append(
                    torch.exp(
                        -3.5 * (radius / side / frequency - 1) ** 2
                        - 2 * tuning * math.pi * turned**2
                    )
                )
        self.register_buffer("spectra", torch.stack(spectra).to(torch.float32))
        self.gist = nn.Identity()

    def prefilter(self, grey: torch.Tensor) -> torch.Tensor:
        """High-pass and divide by the local contrast, shape (n, height, width), values 0 to 255."""
        padded = pad_symmetric(torch.log1p(grey), self.margin)
        passed = padded - torch.fft.ifft2(torch.fft.fft2(padded) * self.low_pass).real
        local = torch.fft.ifft2(torch.fft.fft2(passed**2) * self.low_pass).abs().sqrt()
        inside = slice(self.margin, -self.margin)
        return (passed / (0.2 + local))[..., inside, inside]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Gist, shape (n, scales x orientations, blocks, blocks), of images (n, 3, size, size)."""
        grey = images.mean(1)
        grey = grey - grey.amin((1, 2), keepdim=True)
        # A uniform image has no range; its gist is 0.
        grey = 255 * grey / grey.amax((1, 2), keepdim=True).clamp(min=1e-6)
        spectrum = torch.fft.fft2(pad_symmetric(self.prefilter(grey), self.border))
        inside = slice(self.border, -self.border)
        averages = [
            cell_means(torch.fft.ifft2(spectrum * each).abs()[:, None, inside, inside], self.blocks)
            for each in self.spectra  # one at a time: all responses would take 32 times the space
        ]
        return self.gist(torch.cat(averages, dim=1))
