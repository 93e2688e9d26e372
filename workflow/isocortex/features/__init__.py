"""From stimuli to model features: architectures, layers in one pass, one store a model."""

from isocortex.features.allconv import AllConvolutional
from isocortex.features.architectures import (
    Architecture,
    build_architecture,
    default_layers,
    import_torchvision,
    weights_digest,
)
from isocortex.features.extract import Network, extract_features
from isocortex.features.filters import GaborEnergy, Pixels
from isocortex.features.images import load_images
from isocortex.features.resnet20 import ResNet20

__all__ = [
    "AllConvolutional",
    "Architecture",
    "GaborEnergy",
    "Network",
    "Pixels",
    "ResNet20",
    "build_architecture",
    "default_layers",
    "extract_features",
    "import_torchvision",
    "load_images",
    "weights_digest",
]
