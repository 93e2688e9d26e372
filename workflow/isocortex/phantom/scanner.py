"""The scanner of the demo study: head motion, slice timing, drift, physiology and noise."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from isocortex.phantom.anatomy import (
    TISSUES,
    Anatomy,
    apply_affine,
    grid_points,
    rigid_matrix,
    sample,
)
from isocortex.phantom.responses import Responses, design_matrix

REPETITION_TIME = 2.0
MULTIBAND = 2
FIELD_OF_VIEW_MM = (180.0, 216.0, 168.0)
GREY_LEVEL = 700.0  # intensity of grey matter
SLOPE = 2.0  # intensity of one step of the stored integers
# Standard deviations at noise=1, as fractions of the grey matter's intensity.
THERMAL = 0.009
AUTOCORRELATED = 0.0075
AUTOCORRELATION = 0.4  # of the second, from one volume to the next
RESPIRATION = 0.004  # everywhere in the head
PULSE_FLUID = 0.02  # in cerebrospinal fluid
PULSE_TISSUE = 0.003
DRIFT = 0.008


@dataclass(frozen=True)
class Grid:
    """Shape and affine (voxel to scanner mm) of a BOLD image, with its slices' times in s."""

    shape: tuple[int, int, int]
    affine: np.ndarray
    slice_times: np.ndarray


def slice_times(n_slices: int) -> np.ndarray:
    """Return when each slice is taken within its volume: interleaved, two at a time."""
    groups = n_slices // MULTIBAND
    order = np.concatenate([np.arange(0, groups, 2), np.arange(1, groups, 2)])
    times = np.empty(groups)
    times[order] = np.arange(groups) * REPETITION_TIME / groups
    return np.round(np.tile(times, MULTIBAND), 4)


def make_session(
    anatomy: Anatomy, rng: np.random.Generator, *, voxel_size: float
) -> tuple[Grid, np.ndarray]:
    """Place the slices of one subject, and the head in the scanner.

    Returns
    -------
    grid
        An oblique grid, tilted by 6 to 14 degrees about the left-right axis.
    session
        4x4, T1w mm to scanner mm while the head keeps still.
    """
    session = rigid_matrix(
        np.concatenate([rng.uniform(-2, 2, 3), np.deg2rad(rng.uniform(-2, 2, 3))]), anatomy.centre
    )
    tilt = np.deg2rad([rng.uniform(-2, 2), 0.0, rng.uniform(-2, 2)])
    tilt[0] -= np.deg2rad(rng.uniform(6, 14))
    axes = rigid_matrix(np.concatenate([np.zeros(3), tilt]), np.zeros(3))
    shape = [round(extent / voxel_size) for extent in FIELD_OF_VIEW_MM]
    shape[2] += -shape[2] % MULTIBAND
    affine = np.eye(4)
    affine[:3, :3] = axes[:3, :3] * voxel_size
    middle = apply_affine(session, anatomy.centre + rng.uniform(-2, 2, 3))
    affine[:3, 3] = middle - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    # The header holds float32; the image is taken exactly where the header says.
    affine = affine.astype(np.float32).astype(np.float64)
    return Grid(tuple(shape), affine, slice_times(shape[2])), session


def make_motion(n_volumes: int, rng: np.random.Generator, *, motion: float) -> np.ndarray:
    """Return head motion, (volume, 6): mm and radians as `rigid_matrix` takes them.

    A smooth random walk that spans ``0.7 * motion`` mm and degrees at most in each parameter, a
    pose of the run's own, and one jerk of ``0.25 * motion`` that half goes back.
    """
    walk = ndimage.gaussian_filter1d(
        np.cumsum(rng.standard_normal((n_volumes, 6)), axis=0), 3.0, axis=0
    )
    span = np.maximum(np.ptp(walk, axis=0), 1e-12)
    walk = (walk - walk[0]) / span * rng.uniform(0.4, 0.7, 6)
    when = int(rng.integers(n_volumes // 4, max(n_volumes // 4 + 1, 3 * n_volumes // 4)))
    jerk = rng.normal(0, 0.25, 6)
    after = np.maximum(np.arange(n_volumes) - when, 0)
    walk += (
        np.where(np.arange(n_volumes) >= when, 1.0, 0.0)[:, None]
        * jerk
        * (0.5 + 0.5 * np.exp(-after / 2.0)[:, None])
    )
    walk += rng.normal(0, 0.4, 6)
    walk[:, 3:] = np.deg2rad(walk[:, 3:])
    return walk * motion


def epi_coefficients(
    anatomy: Anatomy, tissues: dict[str, np.ndarray], affine: np.ndarray, *, voxel_size: float
) -> np.ndarray:
    """Return cubic spline coefficients of the EPI contrast, grey matter 1, in T1w space.

    The contrast is blurred by a Gaussian as wide as a BOLD voxel (full width at half maximum),
    in place of a voxel's extent.
    """
    contrast = sum(anatomy.epi_contrast[name] * tissues[name] for name in TISSUES)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    blurred = ndimage.gaussian_filter(
        contrast.astype(np.float32), voxel_size / 2.355 / spacing, mode="constant"
    )
    return ndimage.spline_filter(blurred, order=3, output=np.float32)


class SmoothFields:
    """Spatially smooth random fields of unit variance, made from values on coarse knots."""

    def __init__(self, shape: tuple[int, int, int], *, spacing: float) -> None:
        self.operators = []
        for n in shape:
            n_knots = int(np.ceil((n - 1) / spacing)) + 4
            away = np.arange(n)[:, None] / spacing - (np.arange(n_knots) - 1.5)[None]
            operator = np.exp(-(away**2) / (2 * 0.6**2)).astype(np.float32)
            self.operators.append(operator / np.linalg.norm(operator, axis=1, keepdims=True))
        self.knots = tuple(operator.shape[1] for operator in self.operators)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Return independent standard normal values at the knots."""
        return rng.standard_normal(self.knots, dtype=np.float32)

    def expand(self, values: np.ndarray) -> np.ndarray:
        """Return the field on the full grid."""
        for operator in self.operators:
            values = np.tensordot(values, operator, axes=(0, 1))
        return values


def _pulse(times: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Return a quasi-periodic signal of unit variance at the given moments, seconds."""
    grid = np.arange(0.0, times.max() + 1.0, 0.05)
    wander = ndimage.gaussian_filter1d(rng.standard_normal(len(grid)), 40) * 2.0
    phase = np.cumsum(2 * np.pi * rate * (1 + np.clip(wander, -0.5, 0.5)) * 0.05)
    return np.sqrt(2) * np.sin(np.interp(times, grid, phase) + rng.uniform(0, 2 * np.pi))


def noise_fractions(tissues: dict[str, np.ndarray], *, noise: float) -> dict[str, np.ndarray]:
    """Return the standard deviation of each kind of noise as a fraction of the local signal.

    Thermal noise is not among them: it is additive, `THERMAL` of the grey matter's intensity.
    """
    head = np.clip(sum(tissues[name] for name in TISSUES), 0, 1)
    brain = np.clip(tissues["gm"] + tissues["wm"] + tissues["csf"], 0, 1)
    return {
        "autocorrelated": noise * AUTOCORRELATED * brain,
        "respiration": noise * RESPIRATION * head,
        "pulse": noise * (PULSE_TISSUE * brain + PULSE_FLUID * tissues["csf"]),
        "drift": noise * DRIFT * head,
    }


@dataclass(frozen=True)
class Scan:
    """One run.

    Attributes
    ----------
    data
        (i, j, k, volume) int16; times `SLOPE` is the intensity.
    poses
        (volume, 4, 4), T1w mm to scanner mm.
    parameters
        (volume, 6), as `make_motion`.
    """

    data: np.ndarray
    poses: np.ndarray
    parameters: np.ndarray


class _PlantedSignal:
    """Linear interpolation between the planted voxels; a place without one counts as 0."""

    def __init__(self, responses: Responses) -> None:
        # One more layer of empty places on each side, so that no corner needs a check.
        self.shape = np.array(responses.shape) + 2
        self.strides = np.array([self.shape[1] * self.shape[2], self.shape[2], 1])
        self.place = np.full(self.shape, -1, dtype=np.int32)
        self.place[tuple(responses.index.T + 1)] = np.arange(len(responses.index))
        self.to_index = np.linalg.inv(responses.affine)
        self.spacing = responses.affine[0, 0]

    def near(self, points: np.ndarray, *, reach: float) -> np.ndarray:
        """Return which of the points, (n, 3) mm, could get a signal if moved by up to reach mm."""
        steps = int(np.ceil(reach / self.spacing)) + 1
        wide = ndimage.binary_dilation(self.place >= 0, np.ones((3, 3, 3)), iterations=steps)
        index = np.round(apply_affine(self.to_index, points)).astype(int) + 1
        index = np.clip(index, 0, self.shape - 1)
        return np.flatnonzero(wide.ravel()[index @ self.strides])

    def read(self, course: np.ndarray, points: np.ndarray, moment: np.ndarray) -> np.ndarray:
        """Return the signal at points, each at its own moment.

        Parameters
        ----------
        course
            (moment, voxel) signal.
        points
            (n, 3) in T1w space, mm.
        moment
            (n,) row of ``course`` for each point.
        """
        index = apply_affine(self.to_index, points) + 1
        low = np.floor(index).astype(int)
        part = index - low
        low = np.clip(low, 0, self.shape - 2) @ self.strides
        place, flat = self.place.ravel(), course.ravel()
        first = moment * course.shape[1]
        below, above = (1 - part).T, part.T
        signal = np.zeros(len(points))
        for corner in np.ndindex(2, 2, 2):
            voxel = place[low + corner @ self.strides]
            hit = np.flatnonzero(voxel >= 0)
            x, y, z = (above[axis, hit] if corner[axis] else below[axis, hit] for axis in range(3))
            signal[hit] += x * y * z * flat[first[hit] + voxel[hit]]
        return signal


def interpolate_betas(responses: Responses, points: np.ndarray) -> np.ndarray:
    """Return the planted responses at points in T1w space, (n, image), as `make_run` uses them."""
    n_images, planted = responses.beta.shape[1], _PlantedSignal(responses)
    out = np.empty((len(points), n_images))
    for image in range(n_images):
        out[:, image] = planted.read(responses.beta.T, points, np.full(len(points), image))
    return out


def make_run(
    anatomy: Anatomy,
    epi: np.ndarray,
    epi_affine: np.ndarray,
    grid: Grid,
    session: np.ndarray,
    responses: Responses,
    onsets: np.ndarray,
    images: np.ndarray,
    rng: np.random.Generator,
    *,
    n_volumes: int,
    duration: float,
    noise: float,
    motion: float,
) -> Scan:
    """Scan one run.

    Every volume sees the head in its own pose, every slice at its own time; the planted signal
    and the noise that scales with it multiply the contrast, thermal noise is added to both
    channels of a magnitude image.

    Parameters
    ----------
    epi, epi_affine
        As from `epi_coefficients`.
    session
        As from `make_session`.
    onsets, images
        (event,) seconds from the start of the run, and which image is shown.
    """
    parameters = make_motion(n_volumes, rng, motion=motion)
    poses = np.stack([session @ rigid_matrix(p, anatomy.centre) for p in parameters])
    points = grid_points(grid.shape, grid.affine).reshape(-1, 3)
    at_first = apply_affine(np.linalg.inv(poses[0]), points)

    # Only points that can meet the head in some pose are followed through the run.
    reach = 2 + 3 * motion  # mm that a point of the head may move, generously
    shell = sample(epi, epi_affine, at_first, order=1).reshape(grid.shape) > 0.01
    steps = int(np.ceil(reach / np.linalg.norm(grid.affine[:3, 0])))
    inside = np.flatnonzero(ndimage.binary_dilation(shell, iterations=steps))
    points, at_first = points[inside], at_first[inside]
    slices = np.unravel_index(inside, grid.shape)[2]
    fractions = noise_fractions(anatomy.tissues(at_first), noise=noise)

    planted = _PlantedSignal(responses)
    near = planted.near(at_first, reach=reach)

    offsets, group = np.unique(grid.slice_times, return_inverse=True)
    group = group[slices]
    times = np.arange(n_volumes)[:, None] * REPETITION_TIME + offsets[None]
    design = design_matrix(onsets, times.ravel(), duration=duration)
    course = (design @ responses.beta.T[images] / 100).reshape(n_volumes, len(offsets), -1)
    breath = _pulse(times.ravel(), 0.27, rng).reshape(times.shape)
    heart = _pulse(times.ravel(), 1.1, rng).reshape(times.shape)

    fields = SmoothFields(grid.shape, spacing=3.0)
    memory = fields.draw(rng)
    trends = [fields.draw(rng) for _ in range(3)]
    phase = np.linspace(0, 1, n_volumes)
    shapes = np.stack([2 * phase - 1, np.cos(np.pi * phase), np.cos(2 * np.pi * phase)], axis=1)

    data = np.empty((*grid.shape, n_volumes), dtype=np.int16, order="F")

    def look(volume: int) -> tuple[np.ndarray, np.ndarray]:
        here = apply_affine(np.linalg.inv(poses[volume]), points)
        return here[near], sample(epi, epi_affine, here)

    # Interpolation takes most of the time and leaves Python alone meanwhile: threads do it ahead.
    with ThreadPoolExecutor(2) as pool:
        looks = list(pool.map(look, range(n_volumes)))
    for volume, (here, signal) in enumerate(looks):
        factor = np.ones(len(inside), dtype=np.float32)
        factor[near] += planted.read(course[volume], here, group[near])
        if noise:
            factor += fields.expand(memory).ravel()[inside] * fractions["autocorrelated"]
            trend = sum(w * t for w, t in zip(shapes[volume], trends)) - trends[0] * shapes[0, 0]
            factor += fields.expand(trend).ravel()[inside] * fractions["drift"]
            factor += breath[volume, group] * fractions["respiration"]
            factor += heart[volume, group] * fractions["pulse"]
            innovation = np.float32(np.sqrt(1 - AUTOCORRELATION**2))
            memory = AUTOCORRELATION * memory + innovation * fields.draw(rng)
        full = np.zeros(np.prod(grid.shape), dtype=np.float32)
        full[inside] = signal * factor
        if noise:
            channels = rng.standard_normal((2, len(full)), dtype=np.float32)
            channels *= np.float32(THERMAL * noise)
            full = np.hypot(full + channels[0], channels[1])
        stored = np.round(full * (GREY_LEVEL / SLOPE))
        data[..., volume] = np.clip(stored, 0, 32767).reshape(grid.shape)
    return Scan(data, poses, parameters)


def noise_variance(
    tissues: dict[str, np.ndarray], signal: np.ndarray, *, noise: float
) -> dict[str, np.ndarray]:
    """Return the variance over time of each kind of noise, as a fraction of the signal, squared.

    Motion, drift and the planted responses are left out: a GLM models them.

    Parameters
    ----------
    signal
        Mean intensity, grey matter 1.
    """
    fractions = noise_fractions(tissues, noise=noise)
    return {
        "thermal": (noise * THERMAL / np.maximum(signal, 1e-3)) ** 2,
        "autocorrelated": fractions["autocorrelated"] ** 2,
        "physiological": fractions["respiration"] ** 2 + fractions["pulse"] ** 2,
    }


def beta_variance(
    onsets: np.ndarray, images: np.ndarray, n_images: int, *, n_volumes: int, duration: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the variance of single-trial estimates, per unit of white and of AR(1) noise.

    The estimates are those of ordinary least squares with a regressor for each trial, a constant
    and cosines up to 1/128 Hz, sampled at the start of each volume.

    Returns
    -------
    white, autocorrelated
        (image,) multiplied by the noise's variance gives the estimate's.
    """
    times = np.arange(n_volumes) * REPETITION_TIME
    trials = design_matrix(onsets, times, duration=duration)
    order = int(np.floor(2 * n_volumes * REPETITION_TIME / 128))
    place = (np.arange(n_volumes) + 0.5) / n_volumes
    drift = np.cos(np.pi * place[:, None] * np.arange(order + 1)[None])
    inverse = np.linalg.pinv(np.hstack([trials, drift]))[: len(onsets)]
    lag = np.abs(np.subtract.outer(np.arange(n_volumes), np.arange(n_volumes)))
    white, autocorrelated = np.full(n_images, np.nan), np.full(n_images, np.nan)
    white[images] = (inverse**2).sum(axis=1)
    autocorrelated[images] = np.einsum("it,tu,iu->i", inverse, AUTOCORRELATION**lag, inverse)
    return white, autocorrelated
