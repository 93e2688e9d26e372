"""What the planted regions answer to each image, and when: mixtures of features, and the HRF."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from nilearn.glm.first_level import glover_hrf

from isocortex.phantom.anatomy import Anatomy, apply_affine
from isocortex.phantom.regions import REGIONS, region_index

# Percent signal change at the peak of the response to one image, in a BOLD voxel: mean over
# images, and standard deviation over images.
MEAN_RESPONSE = 2.0
RESPONSE_DEVIATION = 2.4
# Neighbouring voxels share part of their mixture: standard deviation of the smoothing, in units
# of the distance of the planted voxels.
MIXTURE_SMOOTHING = 0.5
FINE_STEP_S = 0.05


@dataclass(frozen=True)
class Responses:
    """Planted voxels of one subject, on a lattice in T1w space.

    Attributes
    ----------
    affine, shape
        The lattice; its axes are those of the T1w space.
    index
        (voxel, 3) lattice index of each planted voxel.
    region
        (voxel,) number of the region, from 1.
    beta
        (voxel, image) percent signal change at the peak.
    field
        (voxel, 2) centre of the receptive field, fractions of the picture's height and width.
    """

    affine: np.ndarray
    shape: tuple[int, int, int]
    index: np.ndarray
    region: np.ndarray
    beta: np.ndarray
    field: np.ndarray

    @property
    def points(self) -> np.ndarray:
        """(voxel, 3) position in T1w space, mm."""
        return apply_affine(self.affine, self.index.astype(float))


def _ranks(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return ranks scaled to (0, 1), ties broken at random."""
    order = np.argsort(values + rng.normal(0, 1e-3, len(values)))
    ranks = np.empty(len(values))
    ranks[order] = (np.arange(len(values)) + 0.5) / len(values)
    return ranks


def _receptive_fields(there: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lay the picture out on a region: contralateral, upside down, eccentricity along y.

    Parameters
    ----------
    there
        (voxel, 3) positions in MNI space.
    """
    centre = np.empty((len(there), 2))
    for side, hemisphere in ((0.5, there[:, 0] < 0), (0.0, there[:, 0] >= 0)):
        if hemisphere.any():
            centre[hemisphere, 0] = _ranks(there[hemisphere, 2], rng)
            eccentricity = _ranks(there[hemisphere, 1], rng) / 2
            centre[hemisphere, 1] = 0.5 + eccentricity if side else 0.5 - eccentricity
    return centre


def _mix(
    features: np.ndarray, centre: np.ndarray, spread: float, rng: np.random.Generator
) -> np.ndarray:
    """Return (voxel, image): each voxel's random mixture of the units that its field covers.

    Parameters
    ----------
    features
        (image, channel, height, width).
    centre
        (voxel, 2) as `Responses.field`.
    """
    n_images, n_channels, height, width = features.shape
    # An RDM by correlation distance ignores the mean over a picture's units; so do the voxels.
    flat = features.reshape(n_images, -1).astype(np.float64)
    flat = flat - flat.mean(axis=1, keepdims=True)
    down = (np.arange(height) + 0.5) / height - centre[:, :1]
    across = (np.arange(width) + 0.5) / width - centre[:, 1:]
    squared = down[:, :, None] ** 2 + across[:, None, :] ** 2
    envelope = np.exp(-squared / (2 * spread**2)).reshape(len(centre), 1, -1)
    weights = rng.standard_normal((len(centre), n_channels, height * width)) * envelope
    return weights.reshape(len(centre), -1) @ flat.T


def plant_responses(
    anatomy: Anatomy,
    features: Mapping[str, np.ndarray],
    rng: np.random.Generator,
    *,
    spacing: float,
) -> Responses:
    """Fill the regions of one subject with voxels that each mix one layer's features.

    Parameters
    ----------
    anatomy
        Gives the way from the subject's space to MNI space.
    features
        Layer name to activations (image, channel, height, width).
    spacing
        Distance of the planted voxels, mm.
    """
    half = int(np.ceil(130 / spacing))
    shape = (2 * half + 1,) * 3
    affine = np.eye(4)
    affine[:3, :3] *= spacing
    affine[:3, 3] = anatomy.centre - half * spacing
    every = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    every = every.reshape(-1, 3)
    # The regions lie in the back half of the head; mapping only that half saves time.
    every = every[every[:, 1] < half]
    there = anatomy.to_template(apply_affine(affine, every.astype(float)))
    region = region_index(there)
    index, there, region = every[region > 0], there[region > 0], region[region > 0]

    n_images = len(next(iter(features.values())))
    # A BOLD voxel lies between the planted ones and averages them, which takes variance away:
    # this share is left, on the mean over all places between them.
    correlation = np.exp(-1 / (4 * MIXTURE_SMOOTHING**2))
    left = (2 / 3 + correlation / 3) ** 3
    beta = np.zeros((len(index), n_images))
    field = np.full((len(index), 2), 0.5)
    for number, spec in enumerate(REGIONS, start=1):
        voxels = np.flatnonzero(region == number)
        if not len(voxels):
            continue
        field[voxels] = _receptive_fields(there[voxels], rng)
        mixture = _mix(features[spec.layer], field[voxels], spec.spread, rng)
        mixture /= mixture.std(axis=1, keepdims=True)
        away = np.linalg.norm(index[voxels, None] - index[None, voxels], axis=-1)
        kernel = np.exp(-(away**2) / (2 * MIXTURE_SMOOTHING**2))
        mixture = kernel @ mixture
        mixture /= mixture.std(axis=1, keepdims=True)
        gain = rng.uniform(0.8, 1.2, (len(voxels), 1))
        beta[voxels] = MEAN_RESPONSE + RESPONSE_DEVIATION / np.sqrt(left) * gain * mixture
    return Responses(affine, shape, index, region, beta, field)


def response_curve(duration: float) -> np.ndarray:
    """Return the response to one image: Glover's HRF after a boxcar, its peak 1.

    Parameters
    ----------
    duration
        Of the image, seconds.

    Returns
    -------
    np.ndarray
        Samples every 0.05 s from the onset on, over 32 s and the duration.
    """
    hrf = glover_hrf(FINE_STEP_S, oversampling=1, time_length=32.0, onset=0.0)
    curve = np.convolve(hrf, np.ones(max(1, round(duration / FINE_STEP_S))))
    return curve / curve.max()


def design_matrix(onsets: np.ndarray, times: np.ndarray, *, duration: float) -> np.ndarray:
    """Return (time, event): the response to each event at any moments.

    Parameters
    ----------
    onsets, times
        Seconds from the start of the run.
    """
    curve = response_curve(duration)
    grid = np.arange(len(curve)) * FINE_STEP_S
    return np.interp(times[:, None] - onsets[None, :], grid, curve, left=0.0, right=0.0)
