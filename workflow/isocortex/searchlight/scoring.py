"""RDMs of neighbourhoods and their agreement with models, a batch at a time, none kept."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from isocortex.rsa import noise
from isocortex.rsa.compare import COMPARISONS, correlate, embed
from isocortex.rsa.dissimilarity import (
    correlation_distance,
    cosine_distance,
    crossnobis_in_own_noise,
    crossnobis_of_run_means,
    euclidean_distance,
    poisson_cv_of_run_means,
    poisson_distance,
)
from isocortex.rsa.patterns import CrossvalidationDesign, constant_patterns
from isocortex.rsa.rdms import pair_indices
from isocortex.rsa.transforms import Transform

_BATCH_BYTES = 8 << 20
_LARGE_MEAN = 1e-3
"""Share of the square of a pattern that its variance over a sphere must be at least for float32."""


class Neighbourhoods(Protocol):
    """What `isocortex.searchlight.Spheres` and `isocortex.searchlight.Discs` are."""

    missing: int

    @property
    def n_centres(self) -> int: ...

    @property
    def full(self) -> int | np.ndarray: ...

    def members(self, block: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True, eq=False)
class Patterns:
    """Patterns of one subject as rows of voxels (or vertices), ready to be gathered.

    Attributes
    ----------
    rows
        Floating, shape (n_voxels + 1, n_columns): stimuli or, where runs are cross-validated,
        runs by stimuli (stimuli vary fastest). The last row, of zeros, stands for voxels that are
        not there.
    stimuli
        Labels, sorted.
    measure
        One of `isocortex.rsa.MEASURES`.
    design
        Of the cross-validation, where the measure has one.
    trials
        Stimulus and run of each column, where columns are trials: crossnobis in the noise of the
        trials themselves, which is estimated in each fold of each neighbourhood.
    residuals
        Shape (n_voxels + 1, n_samples), rows as above, where the noise covariance is estimated
        anew in each neighbourhood; None where the rows are in the units that distances are to
        have.
    shrinkage, degrees_of_freedom
        Of that covariance, see `isocortex.rsa.covariance`.
    """

    rows: np.ndarray
    stimuli: tuple[str, ...]
    measure: str = "correlation"
    design: CrossvalidationDesign | None = None
    trials: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    residuals: np.ndarray | None = None
    shrinkage: str = "shrinkage_diag"
    degrees_of_freedom: int | None = None

    def rdms(self, members: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Return the RDMs of neighbourhoods.

        Parameters
        ----------
        members
            Shape (n_centres, n_places): rows, n_voxels where there is none.
        sizes
            Voxels in each.

        Returns
        -------
        numpy.ndarray
            Shape (n_centres, n_pairs), in the precision of the rows. NaN throughout where the
            measure is not defined: a pattern is constant (correlation) or zero (cosine), or the
            noise covariance cannot be inverted.
        """
        if self.measure == "correlation":
            return self._correlation(members, sizes)
        if self.trials is not None:
            return self._in_own_noise(members)
        gathered = self.rows.take(members, axis=0)
        undefined = np.zeros(len(members), dtype=bool)
        if self.residuals is not None:
            undefined = self._whiten(gathered, members)
        if self.design is not None:
            cross_validated = {
                "crossnobis": crossnobis_of_run_means,
                "poissoncv": poisson_cv_of_run_means,
            }[self.measure]
            shape = (*gathered.shape[:2], len(self.design.runs), len(self.stimuli))
            rdms = cross_validated(
                gathered.reshape(shape), self.design, voxels_first=True, n_voxels=sizes
            )
        else:
            patterns = np.swapaxes(gathered, -1, -2)
            if self.measure == "cosine":
                undefined |= ~patterns.any(axis=-1).all(axis=-1)
                with np.errstate(invalid="ignore", divide="ignore"):
                    rdms = cosine_distance(patterns)
            elif self.measure == "poisson":
                rdms = poisson_distance(patterns, n_voxels=sizes)
            else:
                rdms = euclidean_distance(patterns, n_voxels=sizes)
        rdms[undefined] = np.nan
        return rdms

    @cached_property
    def _with_ones(self) -> np.ndarray:
        """The rows and a column of ones: one product gives the sums over voxels, too."""
        kind = self.rows.dtype
        table = np.zeros((len(self.rows), self.rows.shape[1] + 1), dtype=kind)
        centred = self.rows[:-1] - self.rows[:-1].mean(axis=0, dtype=np.float64)
        # No correlation changes by it, and float32 holds more of what is left.
        table[:-1, :-1] = centred / (np.abs(centred).max(initial=0.0) or 1.0)
        table[:-1, -1] = 1.0
        return table

    def _correlation(self, members: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Return 1 - r: products of patterns less those of their means, scaled."""
        table = self._with_ones
        gathered = table.take(members, axis=0)
        products = np.swapaxes(gathered, -1, -2) @ gathered
        kernel, total = products[:, :-1, :-1], products[:, :-1, -1]
        own = np.diagonal(kernel, axis1=1, axis2=2)
        mean = total / np.maximum(sizes, 1)[:, None].astype(table.dtype)
        variance = own - total * mean
        poor = (variance <= _LARGE_MEAN * own).any(axis=1)
        scale = 1.0 / np.sqrt(np.where(variance > 0, variance, 1.0))
        i, j = pair_indices(len(self.stimuli))
        n = products.shape[-1]
        rdms = products.reshape(len(products), -1).take(i * n + j, axis=1)
        rdms -= total.take(i, axis=1) * mean.take(j, axis=1)
        rdms *= scale.take(i, axis=1)
        rdms *= scale.take(j, axis=1)
        np.subtract(1.0, rdms, out=rdms)
        for k in np.flatnonzero(poor):
            # Means much larger than what varies: take them off before the product.
            patterns = table[members[k, members[k] < len(table) - 1], :-1].T.astype(np.float64)
            flat = constant_patterns(patterns).any()
            rdms[k] = np.nan if flat else correlation_distance(patterns)
        return rdms

    def _in_own_noise(self, members: np.ndarray) -> np.ndarray:
        """Return crossnobis distances from trials, one neighbourhood after the other."""
        n = len(self.stimuli)
        rdms = np.full((len(members), n * (n - 1) // 2), np.nan, dtype=self.rows.dtype)
        for rdm, row in zip(rdms, members):
            trials = self.rows[row[row < len(self.rows) - 1]].T
            with contextlib.suppress(np.linalg.LinAlgError):
                rdm[:] = crossnobis_in_own_noise(trials, *self.trials, method=self.shrinkage)[0]
        return rdms

    def _whiten(self, gathered: np.ndarray, members: np.ndarray) -> np.ndarray:
        """Whiten gathered patterns in place; return where the covariance cannot be inverted."""
        there = members < len(self.rows) - 1
        covariance = noise.covariance(
            np.swapaxes(self.residuals.take(members, axis=0), -1, -2),
            method=self.shrinkage,
            degrees_of_freedom=self.degrees_of_freedom,
            present=there,
        )
        failed = np.zeros(len(members), dtype=bool)
        for k in range(len(members)):
            try:
                gathered[k] = noise.whiten(gathered[k].T, covariance[k]).T
            except np.linalg.LinAlgError:
                failed[k] = True
        return failed


@dataclass(frozen=True, eq=False)
class Models:
    """Model RDMs and how a neighbourhood's RDM is compared with them.

    Attributes
    ----------
    rdms
        float64, shape (n_models, n_pairs).
    comparison
        One of `isocortex.rsa.COMPARISONS`.
    transform
        What is done to the RDMs of the brain and of the models first, if anything.
    """

    rdms: np.ndarray
    comparison: str = "pearson"
    transform: Transform | None = None

    def __post_init__(self) -> None:
        if self.comparison not in COMPARISONS:
            raise ValueError(
                f"comparison is {self.comparison!r}: choose one of {', '.join(COMPARISONS)}"
            )

    @cached_property
    def _transformed(self) -> np.ndarray:
        rdms = np.asarray(self.rdms, dtype=np.float64)
        return rdms if self.transform is None else self.transform.apply(rdms)

    @cached_property
    def _weights(self) -> np.ndarray:
        """What RDMs are multiplied by: (n_pairs, n_models); NaN for a model without spread."""
        return np.ascontiguousarray(embed(self._transformed, comparison=self.comparison).T)

    def scores(self, rdms: np.ndarray) -> np.ndarray:
        """Compare RDMs with all models.

        Parameters
        ----------
        rdms
            Floating, shape (n_centres, n_pairs), the caller's no more: it may be written over.
            NaN throughout where there is none; NaN in some pairs where no neighbourhood has them.

        Returns
        -------
        numpy.ndarray
            float32, shape (n_centres, n_models); NaN where an RDM or a model has no spread.
        """
        out = np.full((len(rdms), len(self.rdms)), np.nan, dtype=np.float32)
        if self.transform is not None:
            rdms = self.transform.apply(rdms)
        finite = np.isfinite(rdms)
        known = finite.any(axis=1)
        if not known.any():
            return out
        whole = finite.all(axis=1)
        if whole.all():
            out[:] = self._whole_scores(rdms)
        elif whole.any():
            out[whole] = self._whole_scores(rdms[whole])
        if (known & ~whole).any():
            out[known & ~whole] = self._general(rdms[known & ~whole])
        return out

    def _whole_scores(self, rdms: np.ndarray) -> np.ndarray:
        if self.comparison == "pearson":
            rdms -= rdms.mean(axis=1, keepdims=True)
        elif self.comparison == "spearman":
            return _rank_scores(rdms, self._weights)
        elif self.comparison != "cosine":
            return self._general(rdms)
        norm = np.sqrt(np.einsum("cp,cp->c", rdms, rdms))[:, None]
        scores = rdms @ self._weights.astype(rdms.dtype)
        return np.divide(scores, norm, out=np.full_like(scores, np.nan), where=norm > 1e-30)

    def _general(self, rdms: np.ndarray) -> np.ndarray:
        return correlate(rdms, self._transformed, comparison=self.comparison)


def _rank_scores(rdms: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Spearman scores of RDMs with models whose ranks are centred and of unit norm.

    The bits of a float32 sort like an integer, so that a value and its place in the RDM are one
    64-bit key: numpy sorts those several times faster than it argsorts.
    """
    n_pairs = rdms.shape[1]
    # -0.0 and 0.0 are equal, their bits are not.
    bits = (rdms.astype(np.float32) + np.float32(0.0)).view(np.int32)
    bits ^= (bits >> 31) & 0x7FFFFFFF
    keys = bits.astype(np.int64)
    keys <<= 32
    keys |= np.arange(n_pairs)
    keys.sort(axis=1)
    place = keys & 0xFFFFFFFF
    keys >>= 32
    tied = keys[:, 1:] == keys[:, :-1]
    some = tied.any(axis=1)
    ranks = np.arange(n_pairs, dtype=np.float32) - np.float32((n_pairs - 1) / 2)
    norm = np.full(len(rdms), np.sqrt((float(n_pairs) ** 3 - n_pairs) / 12.0))
    by_place = np.empty(rdms.shape, dtype=np.float32)
    place += np.arange(len(rdms))[:, None] * n_pairs
    by_place.ravel()[place] = ranks
    if some.any():
        mean_rank = _tied_ranks(tied[some])
        by_place.ravel()[place[some]] = mean_rank
        norm[some] = np.sqrt(np.einsum("cp,cp->c", mean_rank, mean_rank, dtype=np.float64))
    scores = by_place @ weights.astype(np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        return scores / np.where(norm > 0, norm, np.nan)[:, None]


def _tied_ranks(tied: np.ndarray) -> np.ndarray:
    """Return centred mean ranks of sorted values from which ones equal the value before."""
    n = tied.shape[1] + 1
    place = np.arange(n, dtype=np.float32)
    edge = np.ones((len(tied), 1), dtype=bool)
    first = np.maximum.accumulate(np.where(np.concatenate([edge, ~tied], axis=1), place, 0), axis=1)
    last_here = np.where(np.concatenate([~tied, edge], axis=1), place, n)
    last = np.minimum.accumulate(last_here[:, ::-1], axis=1)[:, ::-1]
    return 0.5 * (first + last) - np.float32((n - 1) / 2)


def score_block(
    block: slice,
    neighbourhoods: Neighbourhoods,
    patterns: Patterns,
    models: Models,
    min_voxels: int = 1,
    min_fraction: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Score every neighbourhood of a block of centres against every model.

    Parameters
    ----------
    block
        Which centres.
    neighbourhoods
        What lies around each centre.
    patterns
        The subject's.
    models
        Their RDMs and the comparison.
    min_voxels, min_fraction
        A neighbourhood with fewer usable voxels, or a smaller share of a whole neighbourhood's,
        gets no score.

    Returns
    -------
    scores : numpy.ndarray
        float32, shape (n_models, n_centres), NaN where there is none.
    sizes : numpy.ndarray
        int32, usable voxels of each neighbourhood.
    """
    start, stop, _ = block.indices(neighbourhoods.n_centres)
    scores = np.full((len(models.rdms), stop - start), np.nan, dtype=np.float32)
    sizes = np.zeros(stop - start, dtype=np.int32)
    full = neighbourhoods.full
    places = int(np.max(full, initial=1))
    length = batch_length(places, patterns)
    for first in range(start, stop, length):
        batch = slice(first, min(first + length, stop))
        here = slice(batch.start - start, batch.stop - start)
        members, held = neighbourhoods.members(batch)
        sizes[here] = held
        whole = full[batch] if np.ndim(full) else full
        enough = held >= np.maximum(min_voxels, min_fraction * whole - 1e-9)
        if enough.all():
            scores[:, here] = models.scores(patterns.rdms(members, held)).T
        elif enough.any():
            chosen = np.flatnonzero(enough)
            scores[:, batch.start - start + chosen] = models.scores(
                patterns.rdms(members[chosen], held[chosen])
            ).T
    return scores, sizes


def batch_length(places: int, patterns: Patterns) -> int:
    """Return how many centres are worked on at a time: it bounds the memory of a thread."""
    n, columns = len(patterns.stimuli), patterns.rows.shape[1]
    item = patterns.rows.dtype.itemsize
    # Gathered patterns and a centred copy; a kernel; the vectors, their keys and ranks.
    each = item * (2 * places * columns + 2 * n * n) + 16 * n * n
    if patterns.residuals is not None:
        each += 4 * (3 * places * patterns.residuals.shape[1] + 4 * places**2)
    return max(1, _BATCH_BYTES // each)
