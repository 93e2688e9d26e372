"""Models at their best layer, and how they differ: over subjects and over stimuli."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from isocortex.encoding.inference import jackknife_test
from isocortex.multiple_tests import correct_p

# A stimulus is tested in one fold and trains the others, and moves the score as much by the one as
# by the other (the score is a sum over pairs of a tested and a training stimulus, each pair taken
# both ways). Held predictions show the first half alone: without signal, where pairs matter and
# not stimuli, the error is 1.4 times theirs, otherwise up to twice. At their own error 2 to 28 %
# of differences of equally good ridge regressions came out at p < .05, at twice that 0 to 5 %.
WIDENING = 2.0


@dataclass(frozen=True)
class ModelScores:
    """Scores of models at their best layer.

    Attributes
    ----------
    score
        Shape (models, regions, subjects), at the layer that is best for the other subjects.
    chosen
        Which predictor that layer is, the same shape; -1: none.
    best
        Which predictor is best on average over all subjects, shape (models, regions); -1: none.
    """

    score: np.ndarray
    chosen: np.ndarray
    best: np.ndarray


def select_layers(
    score: np.ndarray, models: Sequence[str], candidates: Sequence[str]
) -> ModelScores:
    """Score each model in each subject at the layer that is best for the other subjects.

    Parameters
    ----------
    score
        Shape (predictors, regions, subjects); NaN where there is none.
    models
        Model of each predictor.
    candidates
        The models in order.

    Notes
    -----
    The subject that is scored has no part in the choice, or else the model with most layers would
    win by chance. A model of several layers therefore has no score in a study of one subject; a
    model of one layer has.
    """
    n_regions, n_subjects = score.shape[1:]
    result = np.full((len(candidates), n_regions, n_subjects), np.nan)
    chosen = np.full(result.shape, -1)
    best = np.full(result.shape[:2], -1)
    known = np.isfinite(score)
    total, count = np.where(known, score, 0).sum(-1), known.sum(-1)
    for row, candidate in enumerate(candidates):
        layers = np.flatnonzero(np.asarray(models, dtype=object) == candidate)
        best[row] = _argmax(layers, total[layers], count[layers])
        for subject in range(n_subjects):
            here = known[layers, :, subject]
            own = np.where(here, score[layers, :, subject], 0)
            others = _argmax(layers, total[layers] - own, count[layers] - here)
            if len(layers) == 1:
                others = np.where(here[0], layers[0], -1)
            chosen[row, :, subject] = others
            values = score[others, np.arange(n_regions), subject]
            result[row, :, subject] = np.where(others >= 0, values, np.nan)
    return ModelScores(result, chosen, best)


def _argmax(layers: np.ndarray, total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Which of layers has the highest mean in each region; -1 where none has one."""
    mean = np.where(count > 0, total / np.maximum(count, 1), -np.inf)
    return np.where((count > 0).any(0), layers[mean.argmax(0)], -1)


def scores_without(
    score: np.ndarray, models: Sequence[str], candidates: Sequence[str]
) -> list[np.ndarray]:
    """`select_layers`' scores without each subject in turn, whom the choices then lack, too.

    Shape (models, regions, subjects) each, NaN for the subject that is left out.
    """
    left_out = []
    for subject in range(score.shape[-1]):
        others = score.copy()
        others[..., subject] = np.nan
        left_out.append(select_layers(others, models, candidates).score)
    return left_out


def subject_differences(
    score: np.ndarray, left_out: Sequence[np.ndarray], *, confidence: float = 0.95
) -> dict[str, np.ndarray]:
    """Differences between models' scores, tested over subjects.

    Parameters
    ----------
    score
        Shape (models, regions, subjects), of `select_layers`.
    left_out
        Of `scores_without`.
    confidence
        Coverage of the intervals.

    Returns
    -------
    dict
        difference, low, high, p, p_fdr, p_fwe of shape (models, models, regions), the first minus
        the second: two-sided tests, corrected over pairs and regions.

    Notes
    -----
    A subject's layer is chosen by the other subjects, so the scores of subjects depend on one
    another where layers are equally good: a paired t-test then finds up to 29 % of differences
    (20 subjects, 6 layers, no truth) at p < .05. The jackknife repeats the choices without each
    subject: it is the paired t-test where a layer is clearly best, and cautious where none is.
    """
    pairs = score[:, None] - score[None]
    without = np.stack([values[:, None] - values[None] for values in left_out], axis=-1)
    mean, margin, p = jackknife_test(pairs, _mean_over(without), confidence=confidence)
    return _corrected(mean, margin, p)


def _mean_over(values: np.ndarray) -> np.ndarray:
    """Mean of finite values over subjects, the last axis but one; NaN where there is none."""
    known = np.isfinite(values)
    count = known.sum(-2)
    return np.where(known, values, 0).sum(-2) / np.where(count > 0, count, np.nan)


def stimulus_influence(
    agreement: np.ndarray, units: np.ndarray, n_units: int
) -> tuple[np.ndarray, np.ndarray]:
    """One subject's score, and how resampling stimuli moves it.

    Parameters
    ----------
    agreement
        What each stimulus adds to the score, shape (regions, stimuli), see `agreement`.
    units
        What each stimulus is resampled with: itself, or its block of volumes; shape (stimuli,),
        below `n_units`.
    n_units
        Number of units of all subjects.

    Returns
    -------
    score, influence
        Shape (regions,) and (regions, units): the derivative of the weighted score with respect
        to each unit's weight, where weights are scaled to a mean of 1 over the subject's stimuli
        (blocks need not be of one length, nor need subjects have seen the same stimuli).
    """
    score = agreement.sum(-1, dtype=float)
    sums = np.zeros((n_units, len(agreement)))
    np.add.at(sums, units, agreement.T.astype(float))
    share = np.bincount(units, minlength=n_units) / len(units)
    return score, sums.T - score[:, None] * share


def stimulus_differences(
    found: Mapping[tuple[int, int], tuple[np.ndarray, np.ndarray]],
    shape: tuple[int, int, int],
    *,
    confidence: float = 0.95,
    widening: float = WIDENING,
) -> dict[str, np.ndarray]:
    """Differences between models' scores, tested over stimuli.

    Parameters
    ----------
    found
        Score and influence of `stimulus_influence`, by model and subject; NaN for regions without
        a score.
    shape
        Number of models, regions and subjects.
    confidence
        Coverage of the intervals.
    widening
        What the standard error is multiplied by: `WIDENING` for cross-validated predictions, 1 for
        predictions that nothing of what is tested has trained.

    Returns
    -------
    dict
        As of `subject_differences`.

    Notes
    -----
    The weighted score is linear in the weights, so that the variance over bootstrap samples of
    stimuli has a closed form, the infinitesimal jackknife (Efron 1982), and nothing is drawn. All
    subjects' shares in a stimulus move together. Predictions are held as they were fitted, although
    folds train on one another's test stimuli: see `WIDENING`.
    """
    import scipy.stats

    n_models, n_regions, n_subjects = shape
    mean, margin, p = np.full((3, n_models, n_models, n_regions), np.nan)
    for one in range(n_models):
        for other in range(n_models):
            who = [s for s in range(n_subjects) if {(one, s), (other, s)} <= found.keys()]
            if one == other or not who:
                continue
            difference = np.stack([found[one, s][0] - found[other, s][0] for s in who])
            moved = np.stack([found[one, s][1] - found[other, s][1] for s in who])
            known = np.isfinite(difference)
            n = known.sum(0)
            safe = np.maximum(n, 1)
            influence = np.where(known[..., None], moved, 0).sum(0) / safe[:, None]
            # a unit that none of these subjects has seen is none
            units = (np.where(known[..., None], moved, 0) != 0).any(0).sum(-1)
            freedom = np.maximum(units - 1, 1)
            error = widening * np.sqrt((influence**2).sum(-1) * units / freedom)
            value = np.where(n > 0, np.where(known, difference, 0).sum(0) / safe, np.nan)
            enough = (units > 2) & (n > 0) & (error > 0)
            t = np.abs(value) / np.where(enough, error, 1)
            mean[one, other] = value
            margin[one, other] = np.where(
                enough, error * scipy.stats.t.ppf(0.5 + confidence / 2, freedom), np.nan
            )
            p[one, other] = np.where(enough, 2 * scipy.stats.t.sf(t, freedom), np.nan)
    return _corrected(mean, margin, p)


def _corrected(mean: np.ndarray, margin: np.ndarray, p: np.ndarray) -> dict[str, np.ndarray]:
    """Intervals, and p-values corrected over the pairs of models and the regions."""
    n_models = len(mean)
    pairs = np.triu_indices(n_models, 1)
    mean, margin, p = (np.array(array) for array in (mean, margin, p))
    for array in (mean, margin, p):
        array[np.arange(n_models), np.arange(n_models)] = np.nan  # a model with itself
    result = {"difference": mean, "low": mean - margin, "high": mean + margin, "p": p}
    for key, correction in (("p_fdr", "fdr"), ("p_fwe", "holm")):
        values = np.full_like(p, np.nan)
        values[pairs] = correct_p(p[pairs], correction=correction)
        values[pairs[::-1]] = values[pairs]
        result[key] = values
    return result
