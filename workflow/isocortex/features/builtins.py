"""Models that come with the package: one entry each."""

from collections.abc import Callable

from isocortex.errors import InputError
from isocortex.features.allconv import AllConvolutional
from isocortex.features.architectures import IMAGENET_MEAN, IMAGENET_STD, Architecture, Request
from isocortex.features.colour import Colour
from isocortex.features.convnet import convnet
from isocortex.features.filters import GaborEnergy, Pixels
from isocortex.features.gist import Gist
from isocortex.features.luminance import ContrastEnergy, LuminanceContrast
from isocortex.features.motion import MotionEnergy
from isocortex.features.resnet20 import ResNet20
from isocortex.features.text import WordCounts, count_letters
from isocortex.features.visual_field import gridded, without_options


def _pixels(request: Request) -> Architecture:
    return Architecture(Pixels(), request.size or 32, layers=("rgb",))


def _resnet20(request: Request) -> Architecture:
    layers = tuple(f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2))
    return Architecture(
        ResNet20(), request.size or 32, IMAGENET_MEAN, IMAGENET_STD, (*layers, "avgpool")
    )


def _all_cnn_c(request: Request) -> Architecture:
    module = AllConvolutional()
    layers = tuple(name for name, _ in module.named_children())
    return Architecture(module, request.size or 32, IMAGENET_MEAN, IMAGENET_STD, layers)


def _words(request: Request) -> Architecture:
    return Architecture(
        WordCounts(), layers=("words", "letters"), takes="text", tokenize=count_letters
    )


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
    "pixels": without_options(_pixels),
    "gabor": gridded(GaborEnergy, size=128, layers=("energy",)),
    "luminance": gridded(LuminanceContrast, size=128, layers=("luminance", "contrast")),
    "colour": gridded(Colour, size=128, layers=("opponent", "lab", "histogram")),
    "gist": gridded(Gist, size=128, layers=("gist",)),
    "motion-energy": gridded(MotionEnergy, size=96, layers=("energy",), takes="movie"),
    "contrast-energy": gridded(
        ContrastEnergy, size=96, layers=("contrast", "flicker"), takes="movie"
    ),
    "words": without_options(_words),
    "convnet": without_options(_convnet),
    "resnet20-cifar": without_options(_resnet20),
    "all-cnn-c": without_options(_all_cnn_c),
}
"""Models by name in the config; torch's global generator holds the seed when one is made."""
