"""From betas to patterns of voxels, or of vertices that sample them, in blocks of voxels."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from scipy.sparse import csr_array

from isocortex.errors import InputError
from isocortex.rsa.compute import check_measure, usable_voxels
from isocortex.rsa.dissimilarity import CROSS_VALIDATED, MEASURES, WHITENED
from isocortex.rsa.noise import SHRINKAGES, fold_freedom, measurement_residuals
from isocortex.rsa.patterns import crossvalidation_design, mean_patterns
from isocortex.searchlight.scoring import Patterns

COVERAGE = 0.5
"""Share of what a vertex samples that must be usable voxels."""


def noise_settings(noise_normalisation: Mapping[str, str] | None) -> dict[str, str]:
    """Return the noise normalisation with what it does not say filled in."""
    return {"source": "residuals", "shrinkage": "diag", **(noise_normalisation or {})}


def read_patterns(
    betas: xr.Dataset,
    labels: Sequence[str],
    *,
    measure: str = "correlation",
    noise_normalisation: Mapping[str, str] | None = None,
    chosen: np.ndarray | None = None,
    sampling: csr_array | None = None,
    where: str = "betas",
) -> tuple[Patterns, np.ndarray]:
    """Return what a subject's RDMs are made of, and where there is any of it.

    Parameters
    ----------
    betas
        ``betas`` store.
    labels
        Stimulus or condition of each trial.
    measure
        One of `isocortex.rsa.MEASURES`.
    noise_normalisation
        For mahalanobis and crossnobis: ``source`` (``residuals``, ``betas`` or ``none``) and
        ``shrinkage``: ``diag`` divides voxels by the SD of their noise once, the others estimate
        the covariance in each neighbourhood. Crossnobis in the noise of betas estimates it in each
        neighbourhood and fold, see `isocortex.rsa.crossnobis_in_own_noise`.
    chosen
        Voxels that may be used, bool; all where not given.
    sampling
        Weights of the voxels in each vertex, shape (n_vertices, n_voxels), whose rows add up to 1
        or less; patterns are then those of vertices.
    where
        File and subject, for errors.

    Returns
    -------
    patterns : Patterns
        Of the usable voxels or vertices only, float32.
    usable : numpy.ndarray
        bool, of all voxels or vertices: finite and varying in betas, and in residuals where they
        are used; a vertex where half of what it samples is such voxels.

    Raises
    ------
    InputError
        Where the measure is not possible with these data.
    """
    if measure not in MEASURES:
        raise InputError(f"searchlight.measure: {measure!r} is not one of {', '.join(MEASURES)}")
    settings = noise_settings(noise_normalisation)
    if settings["shrinkage"] not in SHRINKAGES:
        raise InputError(
            f"searchlight.noise_normalisation.shrinkage: {settings['shrinkage']!r} is not one of "
            f"{', '.join(SHRINKAGES)}"
        )
    runs = [str(run) for run in betas["run"].values]
    source = settings["source"] if measure in WHITENED else "none"
    check_measure(
        betas, labels, runs, measure, settings["source"], where=where, key="searchlight.measure"
    )
    design = crossvalidation_design(labels, runs)
    own_noise = measure == "crossnobis" and source == "betas"
    columns: list[np.ndarray] = []
    noise: list[np.ndarray] = []
    usable = np.zeros(betas.sizes["voxel"], dtype=bool)
    freedom = betas.attrs.get("degrees_of_freedom")
    freedom = int(freedom) if isinstance(freedom, int | float) and freedom > 0 else None
    if source == "residuals" and freedom is None:
        freedom = betas.sizes["time"] - 1
    if source == "betas":
        freedom = (
            fold_freedom(labels, runs)
            if own_noise
            else measurement_residuals(np.zeros((len(labels), 1)), labels, runs)[1]
        )
        if freedom < 1:
            raise InputError(
                f"nothing is left of the betas of {where} without the means of their stimuli and "
                "runs: set searchlight.noise_normalisation.source to residuals or none"
            )
    data = betas["beta"].data
    by_voxel = None if sampling is None else sampling.tocsc()
    for start, stop in itertools.pairwise(np.cumsum([0, *data.chunks[1]])):
        block = np.asarray(data[:, start:stop])
        good = usable_voxels(block)
        if chosen is not None:
            good &= chosen[start:stop]
        residual = None
        if source == "residuals":
            residual = np.asarray(betas["residual"][:, start:stop].data)
            good &= usable_voxels(residual)
        block = block[:, good]
        if measure.startswith("poisson") and (block < 0).any():
            raise InputError(
                f"betas of {where} are negative: {measure} is for counts; choose another "
                "searchlight.measure"
            )
        if source == "residuals":
            residual = residual[:, good]
        elif source == "betas" and not own_noise:
            residual = measurement_residuals(block, labels, runs)[0]
        if own_noise:
            means = block.T
        elif measure in CROSS_VALIDATED:
            means = design.run_means(block, centre=measure == "crossnobis")
            means = means.transpose(2, 1, 0).reshape(block.shape[1], -1)
        else:
            means = np.ascontiguousarray(mean_patterns(block, labels)[0].T)
        varying = np.ptp(means, axis=1) > 0
        if residual is not None and by_voxel is None and settings["shrinkage"] == "diag":
            # Nothing else is kept of residuals, which are many times the size of the patterns.
            deviation = _noise_deviation(residual.T, freedom)
            varying &= deviation > 0
            means = means / np.where(deviation > 0, deviation, 1.0)[:, None]
            residual = None
        good[np.flatnonzero(good)[~varying]] = False
        usable[start:stop] = good
        weights = None if by_voxel is None else by_voxel[:, start + np.flatnonzero(good)]
        for parts, values in (
            (columns, means[varying]),
            (noise, None if residual is None else residual.T[varying]),
        ):
            if values is None:
                continue
            values = values.astype(np.float32)
            if weights is None:
                parts.append(values)
            else:
                # Sums over blocks of voxels, so that no block stays.
                parts[:] = [weights @ values + (parts[0] if parts else 0.0)]
    rows = np.concatenate(columns)
    residuals = np.concatenate(noise) if noise else None
    if sampling is not None:
        weight = sampling @ usable.astype(np.float64)
        usable = weight >= COVERAGE
        rows = rows[usable] / weight[usable, None]
        if residuals is not None:
            residuals = residuals[usable] / weight[usable, None]
    if residuals is not None and settings["shrinkage"] == "diag":
        deviation = _noise_deviation(residuals, freedom)
        noisy = deviation > 0
        usable[np.flatnonzero(usable)[~noisy]] = False
        rows, residuals = rows[noisy] / deviation[noisy, None], None
    patterns = Patterns(
        rows=_with_missing(rows),
        stimuli=design.stimuli,
        measure=measure,
        design=design if measure in CROSS_VALIDATED else None,
        trials=(tuple(labels), tuple(runs)) if own_noise else None,
        residuals=None if residuals is None else _with_missing(residuals),
        shrinkage=settings["shrinkage"],
        degrees_of_freedom=freedom,
    )
    return patterns, usable


def _noise_deviation(residuals: np.ndarray, degrees_of_freedom: int) -> np.ndarray:
    """Return the SD of the noise of each row."""
    variance = residuals.var(axis=1, dtype=np.float64)
    return np.sqrt(variance * residuals.shape[1] / degrees_of_freedom)


def _with_missing(rows: np.ndarray) -> np.ndarray:
    """Return float32 rows with one of zeros at the end."""
    table = np.zeros((len(rows) + 1, rows.shape[1]), dtype=np.float32)
    table[:-1] = rows
    return table


def inside_mask(betas: xr.Dataset, mask: str | Path | None, *, where: str) -> np.ndarray:
    """Return which voxels of the betas lie in a mask.

    Parameters
    ----------
    betas
        ``betas`` store.
    mask
        Image in the space of the betas, on any grid: the voxel nearest to a beta's centre counts.
        None for all voxels.
    where
        File and subject, for errors.

    Raises
    ------
    InputError
        Where the image cannot be read, has more than three dimensions, or holds no voxel.
    """
    if mask is None:
        return np.ones(betas.sizes["voxel"], dtype=bool)
    import nibabel as nib

    try:
        image = nib.load(mask)
    except (OSError, nib.filebasedimages.ImageFileError) as error:
        raise InputError(
            f"searchlight.mask: {mask} cannot be read ({error}): name a NIfTI image"
        ) from error
    volume = np.asarray(image.dataobj)
    if volume.ndim < 3 or volume.size != np.prod(volume.shape[:3]):
        raise InputError(
            f"searchlight.mask: {mask} has shape {volume.shape}: name an image of one volume"
        )
    volume = volume.reshape(volume.shape[:3])
    index = np.stack([betas[axis].values for axis in "ijk"], axis=1)
    affine = np.linalg.inv(image.affine) @ np.asarray(betas.attrs["affine"], dtype=np.float64)
    at = np.rint(nib.affines.apply_affine(affine, index)).astype(int)
    within = ((at >= 0) & (at < volume.shape)).all(axis=1)
    at = np.where(within[:, None], at, 0)
    values = volume[tuple(at.T)]
    chosen = within & np.isfinite(values) & (values > 0)
    if not chosen.any():
        raise InputError(
            f"searchlight.mask: {mask} holds no voxel of {where}: pass a mask in space "
            f"{betas.attrs['space']}"
        )
    return chosen
