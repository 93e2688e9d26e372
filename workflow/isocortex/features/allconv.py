"""All-CNN-C: a small network of convolutions alone, for images of 32 x 32 pixels."""

from collections import OrderedDict

import torch
from torch import nn

# Channels, kernel size and stride of each convolution.
CONVOLUTIONS = (
    (96, 3, 1),
    (96, 3, 1),
    (96, 3, 2),
    (192, 3, 1),
    (192, 3, 1),
    (192, 3, 2),
    (192, 3, 1),
    (192, 1, 1),
)


class AllConvolutional(nn.Sequential):
    """All-CNN-C: nine convolutions, ``conv1`` to ``conv9``, and their mean over space, ``avgpool``.

    Parameters
    ----------
    classes
        Number of outputs.

    Notes
    -----
    Each convolution is followed by a rectification and is one module with it. The dropout of the
    source has no effect on features and is left out. Untrained weights are those of He et al.
    (2015).

    References
    ----------
    Springenberg et al. (2015), Striving for simplicity: the all convolutional net, table 1.
    """

    def __init__(self, classes: int = 10) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels_in = 3
        for number, (channels, kernel, stride) in enumerate(
            (*CONVOLUTIONS, (classes, 1, 1)), start=1
        ):
            convolution = nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2)
            nn.init.kaiming_normal_(convolution.weight)
            nn.init.zeros_(convolution.bias)
            layers[f"conv{number}"] = nn.Sequential(convolution, nn.ReLU())
            channels_in = channels
        layers["avgpool"] = nn.AdaptiveAvgPool2d(1)
        super().__init__(layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores, shape (n, classes), of images (n, 3, 32, 32)."""
        return super().forward(images).flatten(1)
