"""ResNet-20 for images of 32 x 32 pixels, as trained on CIFAR-10."""

import torch
from torch import nn
from torch.nn import functional


class _Shortcut(nn.Module):
    """Parameter-free shortcut (option A): every second pixel, new channels are zero."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.added = added

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        half = self.added // 2
        return functional.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, half, self.added - half))


class _Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        same = stride == 1 and channels_in == channels
        self.shortcut = nn.Sequential() if same else _Shortcut(channels - channels_in)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu(self.bn1(self.conv1(images)))
        return functional.relu(self.bn2(self.conv2(hidden)) + self.shortcut(images))


class ResNet20(nn.Module):
    """ResNet-20: three stages of three blocks, 16, 32 and 64 channels.

    Parameters
    ----------
    classes
        Number of outputs.

    Notes
    -----
    The module names are those of the public CIFAR-10 checkpoints: `conv1`, `bn1`,
    `layer1.0` ... `layer3.2`, `linear`; `avgpool` gives the 64 pooled units.

    References
    ----------
    He et al. (2016), Deep residual learning for image recognition, section 4.2.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, stride=1)
        self.layer2 = self._stage(16, 32, stride=2)
        self.layer3 = self._stage(32, 64, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(channels_in: int, channels: int, *, stride: int) -> nn.Sequential:
        return nn.Sequential(
            _Block(channels_in, channels, stride),
            _Block(channels, channels, 1),
            _Block(channels, channels, 1),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores, shape (n, classes), of images (n, 3, 32, 32)."""
        hidden = functional.relu(self.bn1(self.conv1(images)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        return self.linear(self.avgpool(hidden).flatten(1))
