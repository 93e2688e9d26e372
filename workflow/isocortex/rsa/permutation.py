"""Permutation of stimulus labels: could any order of the stimuli have scored as high?"""

from __future__ import annotations

import itertools
import math

import numpy as np
from scipy.stats import rankdata

from isocortex import parallel
from isocortex.rsa.compare import EMBEDDED, correlate, embed
from isocortex.rsa.rdms import n_stimuli, pair_indices, to_matrices

FEWEST_TO_PERMUTE = 8
"""With fewer stimuli there are so few orders that small p-values are out of reach."""
_BLOCK_BYTES = 16 << 20


def draw_orders(n: int, permutations: int, *, seed: int) -> np.ndarray:
    """Return orders of n things, the given one first.

    Parameters
    ----------
    n
        How many things.
    permutations
        How many orders besides the given one; all that there are where there are not more.
    seed
        Of the draws.

    Returns
    -------
    numpy.ndarray
        Shape (n_orders, n).
    """
    if n < 13 and math.factorial(n) <= permutations + 1:
        return np.array(list(itertools.permutations(range(n))))
    rng = np.random.default_rng(seed)
    drawn = rng.permuted(np.tile(np.arange(n), (permutations, 1)), axis=1)
    return np.concatenate([np.arange(n)[None], drawn])


def order_flags(n_stimuli: int) -> list[str]:
    """Return that stimuli are too few for small p-values, with the number needed."""
    if n_stimuli >= FEWEST_TO_PERMUTE:
        return []
    return [
        f"{n_stimuli} stimuli: permutation p-values come from {math.factorial(n_stimuli)} orders; "
        f"at least {FEWEST_TO_PERMUTE} stimuli are needed for small ones"
    ]


def permute_means(
    models: np.ndarray,
    brain: np.ndarray,
    orders: np.ndarray,
    *,
    comparison: str,
    threads: int = 1,
) -> np.ndarray:
    """Return mean scores over subjects with the models' stimuli in other orders.

    Parameters
    ----------
    models
        RDMs, shape (n_predictors, n_pairs).
    brain
        RDMs, shape (n_subjects, n_regions, n_pairs); all NaN where a subject lacks a region,
        other pairs that are NaN in one subject are left out for all of that region.
    orders
        From `draw_orders`.
    comparison
        One of `isocortex.rsa.compare.COMPARISONS`.

    Returns
    -------
    numpy.ndarray
        Shape (n_orders, n_predictors, n_regions).
    """
    means = np.full((len(orders), len(models), brain.shape[1]), np.nan)
    for valid, regions in region_groups(brain):
        targets, rows = [], brain[:, regions]
        metric = comparison
        if comparison in EMBEDDED:
            for r in range(len(regions)):
                found = rows[np.isfinite(rows[:, r]).any(axis=1), r]
                unit = embed(found, comparison=comparison, valid=valid)
                targets.append(unit[np.isfinite(unit).all(axis=1)].mean(axis=0))
        values = models
        if comparison == "spearman" and valid.all():
            # Ranks of re-ordered pairs are re-ordered ranks.
            values, metric = rankdata(models, axis=1), "pearson"
        size = max(1, _BLOCK_BYTES // (8 * max(1, models.size)))
        blocks = [orders[start : start + size] for start in range(0, len(orders), size)]
        found = parallel.map_blocks(
            _permuted_block,
            blocks,
            values,
            np.array(targets) if targets else np.where(valid, rows, np.nan),
            valid,
            metric,
            threads=threads,
            label=f"permutations, {comparison}",
        )
        means[:, :, regions] = np.concatenate(list(found))
    return means


def region_groups(brain: np.ndarray) -> list[tuple[np.ndarray, list[int]]]:
    """Return which regions share a set of pairs that all of their subjects have.

    Parameters
    ----------
    brain
        Shape (n_subjects, n_regions, n_pairs); all NaN where a subject lacks a region.

    Returns
    -------
    list
        The pairs, bool (n_pairs,), and the regions; those that no subject has are in none.
    """
    found: dict[bytes, tuple[np.ndarray, list[int]]] = {}
    for r in range(brain.shape[1]):
        present = np.isfinite(brain[:, r]).any(axis=1)
        if present.any():
            valid = np.isfinite(brain[present, r]).all(axis=0)
            found.setdefault(valid.tobytes(), (valid, []))[1].append(r)
    return list(found.values())


def _permuted_block(
    orders: np.ndarray,
    models: np.ndarray,
    brain: np.ndarray,
    valid: np.ndarray,
    comparison: str,
) -> np.ndarray:
    """Return mean scores, (orders, models, regions).

    ``brain`` are mean embedded RDMs (region, feature), or RDMs (subject, region, pair) where a
    comparison is no inner product.
    """
    square = to_matrices(models)
    i, j = pair_indices(n_stimuli(models.shape[1]))
    permuted = square[:, orders[:, i], orders[:, j]].reshape(-1, models.shape[1])
    if brain.ndim == 2:
        means = embed(permuted, comparison=comparison, valid=valid) @ brain.T
    else:
        columns = [
            correlate(permuted, rows[np.isfinite(rows).any(axis=1)], comparison=comparison).mean(
                axis=1
            )
            for rows in brain.swapaxes(0, 1)
        ]
        means = np.stack(columns, axis=1)
    return means.reshape(len(models), len(orders), means.shape[1]).swapaxes(0, 1)


def permutation_p(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return p-values of the first of several orders, each cell's and family-wise.

    Parameters
    ----------
    means
        Shape (n_orders, ...), the given order first; NaN cells are no tests.

    Returns
    -------
    p : numpy.ndarray
        Share of orders, the given one among them, that score at least as high.
    p_fwe : numpy.ndarray
        Share of orders whose largest standardised score of any cell is at least the cell's.
    """
    tested = np.isfinite(means).all(axis=0)
    spread = np.where(tested, means, 0.0).std(axis=0)
    centre = np.where(tested, means, 0.0).mean(axis=0)
    scores = np.where(tested, (means - centre) / np.where(spread > 0, spread, 1.0), -np.inf)
    # The same sums in another order differ in their last digits.
    at_least = scores >= scores[:1] - 1e-9
    p = np.where(tested, at_least.mean(axis=0), np.nan)
    largest = scores.reshape(len(scores), -1).max(axis=1)
    largest = largest.reshape(-1, *(1,) * (means.ndim - 1))
    p_fwe = np.where(tested, (largest >= scores[:1] - 1e-9).mean(axis=0), np.nan)
    return p, p_fwe
