"""Image quality measures of a run, named as MRIQC names them (Esteban et al. 2017).

Volumes before the steady state are left out of every measure over time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np
from scipy import stats

from isocortex.preprocess.transforms import AffineTransform

_VOXELS_AT_A_TIME = 4096
_VOXELS_FOR_RANKS = 10_000


def anatomical_axes(affine: np.ndarray) -> tuple[int, int, int]:
    """Array axes nearest to left-right, back-front and foot-head: MRIQC's x, y and z.

    Parameters
    ----------
    affine
        (4, 4): voxel index to mm.

    Returns
    -------
    tuple of int
        Array axis of x, y and z.
    """
    nearest = nib.io_orientation(affine)[:, 0].astype(int)
    x, y, z = (int(np.flatnonzero(nearest == axis)[0]) for axis in range(3))
    return x, y, z


# --- of the mean image -----------------------------------------------------------------------


def entropy_focus_criterion(image: np.ndarray) -> float:
    """EFC: Shannon entropy of the intensities over its maximum (Atkinson et al. 1997).

    Parameters
    ----------
    image
        Mean image, any shape; negative values count as 0.

    Returns
    -------
    float
        0 for all energy in one voxel, 1 for the same intensity everywhere; ghosts and blur raise
        it. As MRIQC's ``efc``.
    """
    values = np.maximum(np.asarray(image, float).ravel(), 0)
    share = values / np.sqrt((values**2).sum())
    share = share[share > 0]
    root = np.sqrt(values.size)
    return float((share * np.log(share)).sum() / (root * np.log(1 / root)))


def foreground_background_energy(image: np.ndarray, mask: np.ndarray) -> float:
    """FBER: mean energy inside the brain over that outside (Shehzad et al. 2015).

    Parameters
    ----------
    image
        Mean image.
    mask
        Brain, boolean.

    Returns
    -------
    float
        The higher the better; NaN where there is nothing outside. As MRIQC's ``fber``, which
        gives -1 there.
    """
    inside, outside = (np.mean(np.square(image[m], dtype=float)) for m in (mask, ~mask))
    return float(inside / outside) if outside > 0 else np.nan


def signal_to_noise(image: np.ndarray, mask: np.ndarray) -> float:
    """SNR: median over standard deviation of the brain's intensities, as MRIQC's ``snr``.

    Parameters
    ----------
    image
        Mean image.
    mask
        Brain, boolean.

    Returns
    -------
    float
        Of one image; the noise is what differs from voxel to voxel.
    """
    values = np.asarray(image[mask], float)
    return float(np.median(values) / values.std(ddof=1))


def ghost_to_signal(image: np.ndarray, mask: np.ndarray, axis: int) -> float:
    """GSR: Nyquist ghost over signal, were `axis` the phase encoding (Giannelli et al. 2010).

    Parameters
    ----------
    image
        Mean image over the whole field of view.
    mask
        Brain, boolean.
    axis
        Array axis.

    Returns
    -------
    float
        (mean where the brain's ghost would be - mean of the rest outside) over the brain's mean:
        the ghost is the mask shifted by half of the field of view, without the brain. NaN where
        the brain fills the field of view. As MRIQC's ``gsr``.
    """
    ghost = np.roll(mask, mask.shape[axis] // 2, axis=axis) & ~mask
    rest = ~(ghost | mask)
    if not ghost.any() or not rest.any():
        return np.nan
    return float((image[ghost].mean() - image[rest].mean()) / image[mask].mean())


def smoothness(image: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """FWHM of the image along x, y and z in mm, from neighbours' differences (Forman et al. 1995).

    Parameters
    ----------
    image
        Mean image, as MRIQC has AFNI's ``3dFWHMx`` measure it.
    mask
        Brain, boolean.
    affine
        (4, 4): voxel index to mm.

    Returns
    -------
    numpy.ndarray
        (3,): sqrt(-2 ln 2 / ln(1 - v/2s)) voxels, where v is the variance of the difference of
        neighbours and s that of the image; NaN along an axis of one voxel, or where neighbours are
        not correlated.
    """
    variance = np.var(image[mask], dtype=float)
    size = np.linalg.norm(affine[:3, :3], axis=0)
    found = []
    for axis in anatomical_axes(affine):
        n = image.shape[axis]
        both = np.take(mask, range(n - 1), axis) & np.take(mask, range(1, n), axis)
        if not both.any() or not variance > 0:
            found.append(np.nan)
            continue
        steps = np.diff(np.asarray(image, float), axis=axis)[both]
        correlation = 1 - np.mean(steps**2) / (2 * variance)
        wide = np.sqrt(-2 * np.log(2) / np.log(correlation)) if 0 < correlation < 1 else np.nan
        found.append(wide * size[axis])
    return np.array(found)


def summary(image: np.ndarray, inside: np.ndarray) -> dict[str, float]:
    """Distribution of intensities, as MRIQC's ``summary_fg_*`` and ``summary_bg_*``.

    Parameters
    ----------
    image
        Mean image.
    inside
        Brain, or what is outside of it.

    Returns
    -------
    dict
        mean, median, stdv, mad (scaled as a standard deviation), p05, p95, k (excess kurtosis)
        and n; without the others where n is 0.
    """
    values = np.asarray(image[inside], float)
    if not values.size:
        return {"n": 0}
    p05, median, p95 = np.percentile(values, (5, 50, 95))
    return {
        "mean": values.mean(),
        "median": median,
        "stdv": values.std(),
        "mad": 1.4826 * np.median(np.abs(values - median)),
        "p05": p05,
        "p95": p95,
        "k": stats.kurtosis(values) if values.std() > 0 else np.nan,
        "n": values.size,
    }


# --- over time -------------------------------------------------------------------------------


def temporal_signal_to_noise(series: np.ndarray) -> np.ndarray:
    """tSNR: mean over standard deviation in time, as nipype's ``TSNR``.

    Parameters
    ----------
    series
        (x, y, z, time), from the steady state on.

    Returns
    -------
    numpy.ndarray
        float32 (x, y, z); 0 where nothing changes.
    """
    mean = series.mean(axis=3, dtype=np.float64)
    squares = np.zeros(mean.shape)
    for t in range(series.shape[3]):
        squares += (series[..., t] - mean) ** 2
    spread = np.sqrt(squares / series.shape[3])
    changes = spread > 1e-3
    return np.divide(mean, spread, out=np.zeros(mean.shape), where=changes).astype(np.float32)


def global_correlation(series: np.ndarray) -> float:
    """GCOR: mean correlation of all pairs of voxels, from one mean course (Saad et al. 2013).

    Parameters
    ----------
    series
        (voxel, time): the brain after motion correction; constant voxels are left out.

    Returns
    -------
    float
        Mean square of the mean of the standardised courses. As MRIQC's ``gcor``.
    """
    total, n_voxels = np.zeros(series.shape[1]), 0
    for start in range(0, len(series), _VOXELS_AT_A_TIME):
        values = series[start : start + _VOXELS_AT_A_TIME].astype(np.float64)
        values = values[np.ptp(values, axis=1) > 0]
        values -= values.mean(axis=1, keepdims=True)
        total += (values / values.std(axis=1, keepdims=True)).sum(axis=0)
        n_voxels += len(values)
    return float(np.mean((total / max(n_voxels, 1)) ** 2))


def outlier_fraction(series: np.ndarray) -> np.ndarray:
    """Share of voxels in which a volume is far from the voxel's median (AFNI's 3dToutcount).

    Parameters
    ----------
    series
        (voxel, time): the brain after motion correction.

    Returns
    -------
    numpy.ndarray
        (time,): far is more than alpha * sqrt(pi/2) * MAD, where MAD is the median absolute
        deviation, alpha the quantile of 1 - 0.001/time of the standard normal. The mean over time
        is MRIQC's ``aor``.
    """
    n = series.shape[1]
    limit = stats.norm.isf(0.001 / n) * np.sqrt(np.pi / 2)
    far = np.zeros(n)
    for start in range(0, len(series), _VOXELS_AT_A_TIME):
        values = series[start : start + _VOXELS_AT_A_TIME].astype(np.float32)
        values -= np.median(values, axis=1, keepdims=True)
        np.abs(values, out=values)
        deviation = np.median(values, axis=1, keepdims=True)
        far += ((values > limit * deviation) & (deviation > 0)).sum(axis=0)
    return far / max(len(series), 1)


def quality_index(series: np.ndarray) -> np.ndarray:
    """Distance of each volume from the median volume (AFNI's 3dTqual).

    Parameters
    ----------
    series
        (voxel, time): the brain after motion correction.

    Returns
    -------
    numpy.ndarray
        (time,): 1 - Spearman's correlation over voxels. The mean over time is MRIQC's ``aqi``.
    """
    ranks = stats.rankdata(series, axis=0)
    middle = stats.rankdata(np.median(series, axis=1))
    ranks -= ranks.mean(axis=0)
    middle -= middle.mean()
    scale = np.sqrt((ranks**2).sum(axis=0) * (middle**2).sum())
    return 1 - np.divide(middle @ ranks, scale, out=np.zeros(len(scale)), where=scale > 0)


def slice_means(series: np.ndarray, mask: np.ndarray, *, axis: int = 2) -> np.ndarray:
    """Mean of the brain in each slice and volume.

    Parameters
    ----------
    series
        (i, j, k, time): the run as it was scanned.
    mask
        Brain.
    axis
        Of the slices.

    Returns
    -------
    numpy.ndarray
        (slice, time), NaN for a slice without a voxel of the brain.
    """
    # volume by volume in the order of the file: slice by slice reads all of it each time
    where = np.flatnonzero(mask.ravel(order="F"))
    number = np.unravel_index(where, mask.shape, order="F")[axis]
    count = np.bincount(number, minlength=mask.shape[axis])
    sums = [
        np.bincount(number, series[..., t].ravel(order="F")[where], minlength=mask.shape[axis])
        for t in range(series.shape[3])
    ]
    return np.divide(
        np.transpose(sums),
        count[:, None],
        out=np.full((mask.shape[axis], series.shape[3]), np.nan),
        where=count[:, None] > 0,
    )


def slice_spikes(slice_means: np.ndarray, *, threshold: float = 6.0) -> np.ndarray:
    """Slices whose mean jumps in one volume.

    Parameters
    ----------
    slice_means
        (slice, time): mean of each slice's voxels of the brain, as they were scanned; NaN for a
        slice without one.
    threshold
        Of the robust z: distance from the median over the scaled median absolute deviation, after
        a quadratic trend was taken out. MRIQC's limit is 6.

    Returns
    -------
    numpy.ndarray
        (slice, time) boolean. The number is MRIQC's ``spikes_num``.
    """
    values = np.nan_to_num(np.asarray(slice_means, float))
    time = np.linspace(-1, 1, values.shape[1])
    values = values - np.polynomial.polynomial.polyval(
        time, np.polynomial.polynomial.polyfit(time, values.T, 2)
    )
    distance = np.abs(values - np.median(values, axis=1, keepdims=True))
    deviation = 1.4826 * np.median(distance, axis=1, keepdims=True)
    return (distance > threshold * deviation) & (deviation > 1e-9)


# --- of the field of view --------------------------------------------------------------------


def coverage(points: np.ndarray, shape: tuple[int, ...], affine: np.ndarray) -> float:
    """Percent of points inside a grid's field of view.

    Parameters
    ----------
    points
        (n, 3) mm: the brain's voxels, in the space of the grid.
    shape, affine
        Grid of the run.

    Returns
    -------
    float
        Percent; voxels reach half a voxel beyond their centres.
    """
    index = AffineTransform(np.linalg.inv(affine)).apply(points)
    inside = (index >= -0.5) & (index <= np.array(shape[:3]) - 0.5)
    return float(100 * inside.all(axis=1).mean()) if len(points) else np.nan


# --- all of a run ----------------------------------------------------------------------------


def run_quality(
    *,
    mean: np.ndarray,
    affine: np.ndarray,
    mask: np.ndarray,
    series: np.ndarray,
    slice_means: np.ndarray,
    tsnr: np.ndarray,
    framewise_displacement: np.ndarray,
    dvars: Mapping[str, np.ndarray],
    n_dummy: int,
    fd_threshold: float,
    repetition_time: float,
    brain_points: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """All measures of a run.

    Parameters
    ----------
    mean
        (i, j, k): mean of the aligned volumes over the whole field of view.
    affine
        Of the run's grid.
    mask
        Brain on this grid.
    series
        (voxel, time): the brain after motion correction; ``aor`` and ``aqi`` are of at most
        10,000 voxels, evenly spaced.
    slice_means
        (slice, time) of the raw run.
    tsnr
        (i, j, k).
    framewise_displacement
        (time - 1,) mm.
    dvars
        ``nstd``, ``std`` and ``vstd``: (time - 1,).
    n_dummy
        Volumes before the steady state.
    fd_threshold
        mm, of ``fd_num`` and ``fd_perc``.
    repetition_time
        Seconds.
    brain_points
        Name of a coverage to the brain's points in mm of the run's space.

    Returns
    -------
    dict
        Number by name; None where one cannot be had.
    """
    steady = series[:, n_dummy:]
    # medians and ranks of every n-th voxel are those of all, within a thousandth
    few = steady[:: -(-len(steady) // _VOXELS_FOR_RANKS)]
    # the difference to the last volume before the steady state is not one of the run
    displacement = framewise_displacement[n_dummy:]
    over = displacement > fd_threshold
    x, y, _ = anatomical_axes(affine)
    wide = smoothness(mean, mask, affine)
    found: dict[str, Any] = {
        "efc": entropy_focus_criterion(mean),
        "fber": foreground_background_energy(mean, mask),
        "snr": signal_to_noise(mean, mask),
        "tsnr": float(np.median(tsnr[mask])),
        "fwhm_x": wide[0],
        "fwhm_y": wide[1],
        "fwhm_z": wide[2],
        "fwhm_avg": np.nanmean(wide) if np.isfinite(wide).any() else np.nan,
        "gsr_x": ghost_to_signal(mean, mask, x),
        "gsr_y": ghost_to_signal(mean, mask, y),
        "gcor": global_correlation(steady),
        "aor": outlier_fraction(few).mean(),
        "aqi": quality_index(few).mean(),
        "spikes_num": int(slice_spikes(slice_means[:, n_dummy:]).sum()),
        "fd_mean": displacement.mean() if len(displacement) else np.nan,
        "fd_num": int(over.sum()),
        "fd_perc": 100 * over.mean() if len(over) else np.nan,
        "dummy_trs": n_dummy,
        "spacing_tr": repetition_time,
        "size_t": series.shape[1],
    }
    for name, values in dvars.items():
        values = values[n_dummy:]
        found[f"dvars_{name}"] = np.mean(values) if len(values) else np.nan
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    for name, axis in zip("xyz", anatomical_axes(affine), strict=True):
        found[f"size_{name}"] = int(mask.shape[axis])
        found[f"spacing_{name}"] = float(spacing[axis])
    for name, inside in (("fg", mask), ("bg", ~mask)):
        found |= {f"summary_{name}_{key}": v for key, v in summary(mean, inside).items()}
    for name, points in brain_points.items():
        found[f"coverage_{name}"] = coverage(points, mask.shape, affine)
    return {
        name: value if isinstance(value, int) else _number(value) for name, value in found.items()
    }


def _number(value: float) -> float | None:
    # JSON has no NaN
    return float(value) if np.isfinite(value) else None
