"""CompCor: principal components of the voxels in which there is noise and no response."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nipype.algorithms.confounds import cosine_filter, regress_poly

HALF = 0.5
"""Criterion of fMRIPrep: as many components as explain half of the variance."""
_VOXELS_AT_A_TIME = 4096


@dataclass(frozen=True)
class Decomposition:
    """Principal components of one mask.

    Parameters
    ----------
    components
        (time, n_kept): of length one, zero in the volumes before the steady state.
    singular_values
        (rank,): of the filtered and standardised voxels, the largest first.
    variance_explained
        (rank,): share of the sum of squares.
    """

    components: np.ndarray
    singular_values: np.ndarray
    variance_explained: np.ndarray

    @property
    def n_kept(self) -> int:
        """Number of components that are columns of the table."""
        return self.components.shape[1]


def cosine_basis(n_volumes: int, *, repetition_time: float, period: float) -> np.ndarray:
    """Discrete cosines slower than a period, as nipype's CompCor takes them out.

    Parameters
    ----------
    n_volumes
        Length of the run.
    repetition_time, period
        Seconds.

    Returns
    -------
    numpy.ndarray
        (time, n), without the constant; no column where the run is shorter than half a period.
    """
    basis = cosine_filter(np.zeros((1, n_volumes)), repetition_time, period)[1]
    return basis if basis.size else np.zeros((n_volumes, 0))


def most_variable(series: np.ndarray, *, share: float = 0.02) -> np.ndarray:
    """Voxels of the largest temporal standard deviation (Behzadi et al. 2007: tCompCor).

    Parameters
    ----------
    series
        (voxel, time), from the steady state on.
    share
        Of the voxels; 2 % in fMRIPrep.

    Returns
    -------
    numpy.ndarray
        (voxel,) boolean: the voxels at and over the percentile, after a quadratic trend was taken
        out, as nipype's ``TCompCor`` chooses them.
    """
    spread = regress_poly(2, np.asarray(series))[0].std(axis=-1)
    spread[np.isnan(spread)] = 0
    return spread >= np.percentile(spread, int(np.round(100 * (1 - share))))


def noise_components(
    series: np.ndarray, basis: np.ndarray, *, criterion: float, n_dummy: int = 0
) -> Decomposition:
    """Principal components of filtered, standardised voxels.

    Parameters
    ----------
    series
        (voxel, time).
    basis
        (time - n_dummy, n): regressors that are taken out of each voxel together with its mean.
    criterion
        Below 1, the share of variance that the kept components explain together; else their
        number.
    n_dummy
        Volumes before the steady state, left out.

    Returns
    -------
    Decomposition
        Empty where there is no voxel.

    Notes
    -----
    The numbers are those of nipype's ``compute_noise_components`` (Behzadi et al. 2007) up to the
    sign, from the eigenvectors of the time by time matrix of products: a singular value
    decomposition of all voxels takes many times as long. The largest weight of each component is
    positive.
    """
    n = series.shape[1] - n_dummy
    directions = np.linalg.qr(np.column_stack([basis, np.ones(n)]))[0]
    products = np.zeros((n, n))
    for start in range(0, len(series), _VOXELS_AT_A_TIME):
        values = series[start : start + _VOXELS_AT_A_TIME, n_dummy:].astype(np.float64)
        # what is not a number, and what does not change, is no noise
        values[~(np.ptp(values, axis=1) > 0)] = 0
        values -= (values @ directions) @ directions.T
        spread = values.std(axis=1, keepdims=True)
        values /= np.where(spread > 0, spread, 1)
        products += values.T @ values
    squares, vectors = np.linalg.eigh(products)
    rank = min(n, len(series))
    squares = np.maximum(squares[::-1][:rank], 0)
    if not squares.sum() > 0:
        return Decomposition(np.zeros((n + n_dummy, 0)), np.zeros(0), np.zeros(0))
    explained = squares / squares.sum()
    n_kept = int(criterion)
    if criterion < 1:
        n_kept = int(np.searchsorted(np.cumsum(explained), criterion)) + 1
    # of what the filter took out there is no component
    n_kept = min(n_kept, int((explained > 1e-12).sum()))
    kept = vectors[:, ::-1][:, :n_kept]
    largest = kept[np.abs(kept).argmax(axis=0), np.arange(n_kept)]
    components = np.zeros((n + n_dummy, n_kept))
    components[n_dummy:] = kept * np.sign(largest)
    return Decomposition(components, np.sqrt(squares), explained)
