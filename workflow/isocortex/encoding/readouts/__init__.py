"""Readouts: how voxels are predicted from feature maps, one kind a file."""

from isocortex.encoding.readouts.base import Readout
from isocortex.encoding.readouts.training import FeatureMaps, Trained, train

KINDS: dict[str, type[Readout]] = {}

__all__ = ["KINDS", "FeatureMaps", "Readout", "Trained", "train"]
