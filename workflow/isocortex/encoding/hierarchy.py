"""Whether deeper layers predict regions that are higher in the cortical hierarchy."""

from __future__ import annotations

import numpy as np

from isocortex.encoding.inference import one_sample_inference, permutation_p

FEWEST_REGIONS = 3
PERFECT = (
    0.99  # what a correlation of 1, common over few regions, counts as: its Fisher z is infinite
)


def spatial_scores(depth: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Correlation over regions of a model's depth with the place in the hierarchy.

    Parameters
    ----------
    depth
        Which layer of the model predicts a region best, as a number, shape (..., regions); NaN
        where unknown.
    place
        Of the regions in the hierarchy, shape (regions,); NaN where they have none.

    Returns
    -------
    numpy.ndarray
        Shape (...): Pearson correlation over the regions that have both; NaN with fewer than
        three. A depth that is the same everywhere goes with no hierarchy: its score is 0.

    Notes
    -----
    The "spatial score" of Raugel et al. (2025).
    """
    depth, place = np.asarray(depth, float), np.asarray(place, float)
    both = np.isfinite(depth) & np.isfinite(place)
    count = both.sum(-1)
    safe = np.maximum(count, 1)[..., None]

    def centred(values: np.ndarray) -> np.ndarray:
        values = np.where(both, values, 0)
        return np.where(both, values - values.sum(-1, keepdims=True) / safe, 0)

    x, y = centred(depth), centred(np.broadcast_to(place, depth.shape))
    scale = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    varies = scale > 1e-12
    r = np.where(varies, (x * y).sum(-1) / np.where(varies, scale, 1), 0)
    return np.where(count >= FEWEST_REGIONS, r, np.nan)


def spatial_inference(
    depth: np.ndarray, place: np.ndarray, *, confidence: float = 0.95, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Spatial scores, their mean over subjects, its interval and p-value.

    Parameters
    ----------
    depth
        Shape (models, subjects, regions), see `spatial_scores`.
    place
        Shape (regions,).
    confidence
        Coverage of the interval.
    seed
        Of the permutations, see `inference.permutation_p`.

    Returns
    -------
    scores, mean, low, high, p
        Scores of shape (models, subjects), others (models,). Over subjects a one-sided t-test of
        Fisher z (see `inference.one_sample_inference`; of at most `PERFECT`). With one subject
        regions are permuted, and there is no interval.
    """
    scores = spatial_scores(depth, place)
    mean, low, high, p = one_sample_inference(
        np.clip(scores, -PERFECT, PERFECT), confidence=confidence
    )
    for model, of_subjects in enumerate(scores):
        known = np.flatnonzero(np.isfinite(of_subjects))
        if len(known) == 1:
            values = depth[model, known[0]]
            both = np.isfinite(values) & np.isfinite(place)
            p[model] = permutation_p(values[both], place[both], alternative="greater", seed=seed)
    return scores, mean, low, high, p
