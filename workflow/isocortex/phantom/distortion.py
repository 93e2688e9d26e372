"""What a fieldmap session records of a phantom head: distorted EPI, wrapped phases, magnitudes.

Nothing here is shared with the correction: spins of the continuous head are put where the
scanner would put them, one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from isocortex.phantom.anatomy import apply_affine, grid_points

Head = Callable[[np.ndarray], np.ndarray]
"""A function of points (..., 3) in mm."""


def sinus_field(
    centre: Sequence[float], *, peak: float = 120.0, width: float = 22.0, shim: float = 0.25
) -> Head:
    """Return a field in Hz like that above the nasal sinuses and the ear canals.

    Parameters
    ----------
    centre
        Of the head, mm.
    peak
        Hz above the sinuses; two thirds of it, negative, beside each ear.
    width
        Of each source, mm.
    shim
        Hz per mm of what shimming left, along the head's long axis.
    """
    centre = np.asarray(centre, float)
    sources = (((0, 42, -22), 1.0), ((46, -12, -22), -0.66), ((-46, -12, -22), -0.66))

    def field(points: np.ndarray) -> np.ndarray:
        away = points - centre
        total = shim * away[..., 1]
        for place, strength in sources:
            square = ((away - np.array(place, float)) ** 2).sum(axis=-1)
            total = total + strength * peak * np.exp(-square / (2 * width**2))
        return total

    return field


def distorted_epi(
    head: Head,
    field: Head,
    shape: Sequence[int],
    affine: np.ndarray,
    *,
    axis: int,
    sign: int,
    readout_time: float,
    spins: int = 8,
) -> np.ndarray:
    """Return an echo-planar image of a head in a field, (i, j, k).

    Spins at even distances along each line of voxels of the phase-encoding axis bring the head's
    intensity to the place that frequency encoding gives them: theirs plus ``sign * readout_time
    * field`` voxels. None is lost but beyond the grid's ends.

    Parameters
    ----------
    head
        Intensity at points, mm.
    field
        Hz at points, mm.
    shape, affine
        Of the image.
    axis, sign
        Array axis of the phase encoding; -1 for a direction that ends in "-".
    readout_time
        Total, s.
    spins
        A voxel.
    """
    size = shape[axis]
    out = np.zeros((*shape[:axis], *shape[axis + 1 :], size + 2))
    lines = np.arange(out[..., 0].size).reshape(out.shape[:-1])[..., None] * (size + 2)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1).astype(float)
    for part in range(spins):
        offset = np.zeros(3)
        offset[axis] = (part + 0.5) / spins - 0.5
        points = apply_affine(affine, index + offset)
        value = np.moveaxis(head(points) / spins, axis, -1)
        place = index[..., axis] + offset[axis] + sign * readout_time * field(points)
        place = np.clip(np.moveaxis(place, axis, -1) + 1, 0, size + 1 - 1e-9)
        low = np.floor(place).astype(int)
        share = place - low
        np.add.at(out.reshape(-1), lines + low, value * (1 - share))
        np.add.at(out.reshape(-1), lines + low + 1, value * share)
    return np.moveaxis(out[..., 1:-1], -1, axis)


def phase_images(
    head: Head,
    field: Head,
    shape: Sequence[int],
    affine: np.ndarray,
    *,
    echo_times: tuple[float, float],
    rng: np.random.Generator,
    noise: float = 0.02,
) -> dict[str, np.ndarray]:
    """Return the images of a double gradient echo, undistorted.

    Parameters
    ----------
    head, field, shape, affine
        As for `distorted_epi`.
    echo_times
        s.
    rng, noise
        Standard deviation of each channel's noise as a fraction of the brightest voxel: phases
        are random where there is no signal.

    Returns
    -------
    dict
        ``magnitude1``, ``magnitude2``, ``phase1``, ``phase2``, ``phasediff``: phases in radians,
        wrapped to -pi to pi.
    """
    points = grid_points(tuple(shape), affine)
    signal, frequency = head(points), field(points)
    # the transmitter's phase, the same in both echoes, which only a difference takes out
    start = 0.8 + 0.01 * points[..., 0]
    level = noise * signal.max()
    images, complexes = {}, []
    for number, time in enumerate(echo_times, start=1):
        decay = np.exp(-time / 0.04)
        value = signal * decay * np.exp(1j * (start + 2 * np.pi * frequency * time))
        value = value + level * (
            rng.standard_normal(value.shape) + 1j * rng.standard_normal(value.shape)
        )
        images[f"magnitude{number}"] = np.abs(value)
        images[f"phase{number}"] = np.angle(value)
        complexes.append(value)
    images["phasediff"] = np.angle(complexes[1] * np.conj(complexes[0]))
    return images
