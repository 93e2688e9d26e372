"""A small convolutional network of fixed seed: the planted model of the demo study.

Its weights are never trained. They come from a seed, and each layer is then set so that its
channels have mean 0 and variance 1 over synthetic "dead leaves" pictures (occluding discs, the
simplest pictures with the statistics of natural scenes: Lee, Mumford & Huang 2001), which is the
layer-sequential unit-variance initialisation of Mishkin & Matas (2016). The layers differ in
kernel size, nonlinearity, divisive normalisation and pooling, chosen so that the geometries that
they give to a set of photographs are told apart well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from isocortex.features.images import load_images

INPUT_SIZE = 64
CALIBRATION_IMAGES = 48


class LayerShape(NamedTuple):
    """What one layer does: see `ConvLayer`."""

    channels: int
    kernel: int
    nonlinearity: str
    threshold: float
    size: int
    normalisation: float
    band_pass: bool


LAYERS = (
    LayerShape(16, 7, "relu", 0.0, 10, 0.0, False),
    LayerShape(24, 7, "relu", 0.0, 6, 1.0, True),
    LayerShape(32, 1, "absolute", 0.0, 5, 1.0, False),
    LayerShape(48, 3, "relu", 0.5, 3, 0.01, True),
    LayerShape(64, 3, "square", 0.0, 2, 1.0, False),
    LayerShape(96, 1, "absolute", 0.0, 1, 0.01, False),
)


class ConvLayer(nn.Module):
    """Convolution, divisive normalisation, nonlinearity, average pooling, standardisation.

    Parameters
    ----------
    weight
        (channels, channels in, kernel, kernel).
    shape
        ``nonlinearity`` is ``relu`` (above ``threshold``), ``absolute`` or ``square``;
        ``normalisation`` is the constant under the root of the divisive normalisation across
        channels (0: none); ``size`` is the width and height that the output is pooled to.
    """

    def __init__(self, weight: torch.Tensor, shape: LayerShape) -> None:
        super().__init__()
        self.shape = shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        channels = weight.shape[0]
        self.register_buffer("drive", torch.ones(1, channels, 1, 1))
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("deviation", torch.ones(1, channels, 1, 1))

    def _convolve(self, x: torch.Tensor) -> torch.Tensor:
        border = [self.shape.kernel // 2] * 4
        return functional.conv2d(functional.pad(x, border, mode="replicate"), self.weight)

    def _respond(self, x: torch.Tensor) -> torch.Tensor:
        x = self._convolve(x) / self.drive
        if self.shape.normalisation:
            energy = x.square().mean(dim=1, keepdim=True)
            x = x / (self.shape.normalisation + energy).sqrt()
        if self.shape.nonlinearity == "relu":
            x = functional.relu(x - self.shape.threshold)
        elif self.shape.nonlinearity == "absolute":
            x = x.abs()
        else:
            x = x.square()
        return functional.adaptive_avg_pool2d(x, self.shape.size)

    def calibrate(self, x: torch.Tensor) -> torch.Tensor:
        """Set the standardisation from a batch, and return the batch's responses."""
        over = (0, 2, 3)
        self.drive.copy_(self._convolve(x).square().mean(over, keepdim=True).sqrt())
        response = self._respond(x)
        self.mean.copy_(response.mean(over, keepdim=True))
        self.deviation.copy_(response.std(over, keepdim=True).clamp_min(1e-6))
        return (response - self.mean) / self.deviation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (n, channels, size, size)."""
        return (self._respond(x) - self.mean) / self.deviation


class ConvNet(nn.Module):
    """Six `ConvLayer` in a row, named ``layer1`` to ``layer6``; the input is in [0, 1]."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        x = _dead_leaves(CALIBRATION_IMAGES, torch.Generator().manual_seed(seed + 1)) - 0.5
        for number, shape in enumerate(LAYERS, start=1):
            size = (shape.channels, x.shape[1], shape.kernel, shape.kernel)
            weight = torch.randn(size, generator=generator)
            if shape.band_pass:
                weight = weight - weight.mean(dim=(2, 3), keepdim=True)
            weight = weight / weight.flatten(1).norm(dim=1)[:, None, None, None]
            layer = ConvLayer(weight, shape)
            x = layer.calibrate(x)
            self.add_module(f"layer{number}", layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last layer's responses, (n, 96, 1, 1), to (n, 3, 64, 64) in [0, 1]."""
        x = x - 0.5
        for layer in self.children():
            x = layer(x)
        return x


def _dead_leaves(n_images: int, generator: torch.Generator) -> torch.Tensor:
    """Return (n, 3, 64, 64) pictures of 40 occluding, textured discs each, in [0, 1]."""

    def uniform(*size: int) -> torch.Tensor:
        return torch.rand(*size, generator=generator)

    axis = torch.arange(INPUT_SIZE, dtype=torch.float32)
    down, across = axis[None, :, None], axis[None, None, :]
    out = uniform(n_images, 3, 1, 1).expand(-1, -1, INPUT_SIZE, INPUT_SIZE).clone()
    for _ in range(40):
        radius = 3 * (uniform(n_images) * 0.98 + 0.02) ** -0.6
        centre = uniform(n_images, 2) * INPUT_SIZE
        colour = uniform(n_images, 3)
        grey = (uniform(n_images) < 0.5)[:, None]
        colour = torch.where(grey, colour.mean(dim=1, keepdim=True), colour)
        angle = (uniform(n_images) * torch.pi)[:, None, None]
        frequency = (uniform(n_images) * 1.5)[:, None, None]
        amplitude = (uniform(n_images) * 0.3)[:, None, None]
        away = (down - centre[:, 0, None, None]) ** 2 + (across - centre[:, 1, None, None]) ** 2
        wave = torch.sin(frequency * (torch.cos(angle) * down + torch.sin(angle) * across))
        disc = (colour[:, :, None, None] + (amplitude * wave)[:, None]).clamp(0, 1)
        out = torch.where((away < radius[:, None, None] ** 2)[:, None], disc, out)
    return out


@torch.no_grad()
def convnet(seed: int = 0) -> nn.Module:
    """Return the network in evaluation mode.

    Parameters
    ----------
    seed
        Gives the weights; the global random state is neither read nor changed.

    Returns
    -------
    torch.nn.Module
        Takes (n, 3, 64, 64) float32 in [0, 1]. Its modules ``layer1`` to ``layer6`` give
        (n, 16, 10, 10), (n, 24, 6, 6), (n, 32, 5, 5), (n, 48, 3, 3), (n, 64, 2, 2) and
        (n, 96, 1, 1).
    """
    return ConvNet(seed).eval()


def preprocess_images(paths: Sequence[str | Path]) -> torch.Tensor:
    """Read pictures as the network takes them.

    Parameters
    ----------
    paths
        Image files of any size and mode, opened as `load_images` does.

    Returns
    -------
    torch.Tensor
        (n, 3, 64, 64) float32 in [0, 1], resized bilinearly without cropping.

    Raises
    ------
    InputError
        If a file is missing or is no picture.
    """
    return load_images(
        [Path(path) for path in paths], size=INPUT_SIZE, fit="stretch", resampling="bilinear"
    )
