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

    def relations(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Slope and Spearman correlation of each subject."""
        slopes, rhos = np.full((2, *values.shape[:-1]), np.nan)
        for place in np.ndindex(values.shape[:-1]):
            known = np.isfinite(values[place])
            if known.sum() >= FEWEST_MODELS and np.ptp(x[known]) > 0:
                y, of = values[place][known], x[known]
                slopes[place] = np.cov(of, y)[0, 1] / of.var(ddof=1)
                rhos[place] = _pearson(rankdata(of), rankdata(y))
        return slopes, rhos

    def by_subject(values: np.ndarray) -> np.ndarray:
        return np.moveaxis(np.asarray(values, float), 0, -1)[..., of_family]

    values = by_subject(values)
    slopes, rhos = relations(values)
    slope, _, p = t_test(slopes)
    if left_out is not None:
        without = [t_test(relations(by_subject(part))[0])[0] for part in left_out]
        slope, _, p = jackknife_test(slopes, np.stack(without, axis=-1))
    rho = t_test(rhos)[0]
    p_models = np.full(slope.shape, np.nan)
    for place in np.ndindex(slope.shape):
        complete = np.isfinite(values[place]).all(-1)
        if len(x) >= FEWEST_MODELS and np.ptp(x) > 0 and complete.any():
            mean = values[place][complete].mean(0)
            p_models[place] = permutation_p(rankdata(mean), rankdata(x), seed=seed)
    return slope, rho, p, p_models


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson correlation; 0 where a side is constant."""
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else 0.0
