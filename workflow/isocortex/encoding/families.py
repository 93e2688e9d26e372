"""How encoding goes with what distinguishes a family of models: size, training, data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isocortex.encoding.inference import jackknife_test, permutation_p, t_test

FEWEST_MODELS = 3


def family_relations(
    values: np.ndarray,
    factor: np.ndarray,
    *,
    left_out: Sequence[np.ndarray] | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Relation of a score with a factor over models, per subject and then over subjects.

    Parameters
    ----------
    values
        Scores, shape (models, ..., subjects); NaN where there is none.
    factor
        Above 0, shape (models,); NaN for models that are not of the family.
    left_out
        The values without each subject in turn, where subjects' values depend on one another, see
        `differences.subject_differences`.
    seed
        Of the permutations, see `inference.permutation_p`.

    Returns
    -------
    slope, rho, p, p_models
        Shape (...): mean over subjects of the change of the score by a tenfold factor, and of the
        Spearman correlation; p of the two-sided test of the slopes over subjects (t-test, or
        jackknife with `left_out`; these models, any subject; NaN with one); p of permuting the
        models, of the Spearman correlation of the mean over the subjects that have all models
        (any model like these, these subjects). NaN with fewer than three models.
    """
    from scipy.stats import rankdata

    of_family = np.isfinite(factor)
    x = np.log10(np.asarray(factor, float)[of_family])

    def by_subject(values: np.ndarray) -> np.ndarray:
        return np.moveaxis(np.asarray(values, float), 0, -1)[..., of_family]

    values = by_subject(values)
    slopes = _slopes(values, x)
    slope, _, p = t_test(slopes)
    if left_out is not None:
        without = [t_test(_slopes(by_subject(part), x))[0] for part in left_out]
        slope, _, p = jackknife_test(slopes, np.stack(without, axis=-1))
    rhos = np.full(slopes.shape, np.nan)
    for place in zip(*np.nonzero(np.isfinite(slopes)), strict=True):
        known = np.isfinite(values[place])
        rhos[place] = _pearson(rankdata(x[known]), rankdata(values[place][known]))
    rho = t_test(rhos)[0]
    p_models = np.full(slope.shape, np.nan)
    for place in np.ndindex(slope.shape):
        complete = np.isfinite(values[place]).all(-1)
        if len(x) >= FEWEST_MODELS and np.ptp(x) > 0 and complete.any():
            mean = values[place][complete].mean(0)
            p_models[place] = permutation_p(rankdata(mean), rankdata(x), seed=seed)
    return slope, rho, p, p_models


def _slopes(values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Slope over the last axis of known values on x; NaN with too few or with one x alone."""
    known = np.isfinite(values)
    count = np.maximum(known.sum(-1, keepdims=True), 1)
    centred = np.where(known, x - np.where(known, x, 0).sum(-1, keepdims=True) / count, 0)
    spread = (centred**2).sum(-1)
    enough = (known.sum(-1) >= FEWEST_MODELS) & (spread > 1e-12)
    product = (centred * np.where(known, values, 0)).sum(-1)
    return np.where(enough, product / np.where(enough, spread, 1), np.nan)


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson correlation; 0 where a side is constant."""
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else 0.0
