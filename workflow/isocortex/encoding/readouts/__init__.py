"""Readouts: how voxels are predicted from feature maps, one kind a file."""

from isocortex.encoding.readouts.base import Readout
from isocortex.encoding.readouts.factorised import Factorised
from isocortex.encoding.readouts.gaussian import Gaussian
from isocortex.encoding.readouts.routing import Routing
from isocortex.encoding.readouts.semantic import Semantic
from isocortex.encoding.readouts.training import FeatureMaps, Trained, train

KINDS: dict[str, type[Readout]] = {
    kind.name: kind for kind in (Factorised, Gaussian, Semantic, Routing)
}

__all__ = ["KINDS", "FeatureMaps", "Readout", "Trained", "train"]
