"""Regions along the visual stream, as volumes in MNI space, each with the layer it represents."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nilearn.datasets import load_mni152_template

from isocortex.phantom.anatomy import grid_points, load_template, sample


@dataclass(frozen=True)
class Region:
    """A bilateral region: two balls in MNI space, mirrored at the midline.

    Attributes
    ----------
    centre
        Of the right one, mm.
    layer
        The layer of the convnet whose features its voxels mix.
    spread
        Standard deviation of a voxel's receptive field as a fraction of the picture's width;
        at 1 and above a voxel pools over all of it.
    """

    name: str
    centre: tuple[float, float, float]
    radius: float
    layer: str
    spread: float


# Centres follow the literature's coordinates, moved apart where the balls would touch:
# V1-V4 Wang et al. 2015 (probabilistic maps), LO Malach et al. 1995, FFA Kanwisher et al. 1997,
# PPA Epstein & Kanwisher 1998.
REGIONS = (
    Region("V1", (11.0, -90.0, 1.0), 9.0, "layer1", 0.15),
    Region("V2", (20.0, -88.0, 22.0), 9.0, "layer2", 0.2),
    Region("V4", (28.0, -78.0, -12.0), 9.0, "layer3", 0.3),
    Region("LO", (41.0, -76.0, 6.0), 9.0, "layer4", 1.0),
    Region("FFA", (40.0, -53.0, -19.0), 9.0, "layer5", 1.5),
    Region("PPA", (25.0, -42.0, -10.0), 9.0, "layer6", 1.5),
)


def region_index(points: np.ndarray) -> np.ndarray:
    """Return which region each point in MNI space is in: 0 none, 1 the first of `REGIONS`, ...

    A point belongs to a region if it lies in one of its two balls and at least half of what is
    there is brain tissue. The balls do not overlap.
    """
    folded = np.abs(points) * [1, 0, 0] + points * [0, 1, 1]
    index = np.zeros(points.shape[:-1], dtype=np.int16)
    for number, region in enumerate(REGIONS, start=1):
        squared = ((folded - np.array(region.centre)) ** 2).sum(axis=-1)
        index[squared <= region.radius**2] = number
    template, found = load_template(), index > 0
    tissue = sum(
        sample(template.maps[name], template.affine, points[found]) for name in ("gm", "wm")
    )
    index[found] = np.where(tissue >= 0.5, index[found], 0)
    return index


def make_atlas() -> nib.Nifti1Image:
    """Return the regions on nilearn's 2 mm grid of the template, int16, indices from 1."""
    template = load_mni152_template(resolution=2)
    index = region_index(grid_points(template.shape, template.affine))
    atlas = nib.Nifti1Image(index, template.affine)
    atlas.header.set_xyzt_units("mm", "sec")
    atlas.set_sform(template.affine, code=4)
    atlas.set_qform(template.affine, code=4)
    return atlas
