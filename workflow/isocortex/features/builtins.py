"""Models that come with the package: one entry each."""

from collections.abc import Callable
from dataclasses import dataclass

from isocortex.errors import InputError
from isocortex.features.allconv import AllConvolutional
from isocortex.features.architectures import IMAGENET_MEAN, IMAGENET_STD, Architecture
from isocortex.features.convnet import convnet
from isocortex.features.filters import GaborEnergy, Pixels
from isocortex.features.resnet20 import ResNet20


@dataclass(frozen=True)
class Request:
    """What the config says of a builtin model.

    Parameters
    ----------
    name
        The model's key in the config, for messages.
    seed
        Of an untrained model's weights.
    size
        Side of the input, pixels; None: the model's own.
    """

    name: str
    seed: int = 0
    size: int | None = None


def _pixels(request: Request) -> Architecture:
    return Architecture(Pixels(), request.size or 32, layers=("rgb",))


def _gabor(request: Request) -> Architecture:
    size = request.size or 128
    return Architecture(GaborEnergy(size=size), size, layers=("energy",))


def _resnet20(request: Request) -> Architecture:
    layers = tuple(f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2))
    return Architecture(
        ResNet20(), request.size or 32, IMAGENET_MEAN, IMAGENET_STD, (*layers, "avgpool")
    )


def _all_cnn_c(request: Request) -> Architecture:
    module = AllConvolutional()
    layers = tuple(name for name, _ in module.named_children())
    return Architecture(module, request.size or 32, IMAGENET_MEAN, IMAGENET_STD, layers)


def _convnet(request: Request) -> Architecture:
    if request.size not in (None, 64):
        raise InputError(
            f"image_size {request.size} in features.models.{request.name}: convnet takes 64 "
            "pixels, leave it out"
        )
    layers = tuple(f"layer{number}" for number in range(1, 7))
    return Architecture(
        convnet(seed=request.seed), 64, layers=layers, fit="stretch", resampling="bilinear"
    )


BUILTINS: dict[str, Callable[[Request], Architecture]] = {
    "pixels": _pixels,
    "gabor": _gabor,
    "convnet": _convnet,
    "resnet20-cifar": _resnet20,
    "all-cnn-c": _all_cnn_c,
}
"""Models by name in the config; torch's global generator holds the seed when one is made."""
