"""Scores of predictors by one comparison, with noise ceilings, intervals and tests."""

from __future__ import annotations

import numpy as np

from isocortex import parallel
from isocortex.multiple_tests import correct_p
from isocortex.rsa.compare import correlate, noise_ceiling
from isocortex.rsa.crossvalidation import (
    FEWEST_TO_FIT,
    FEWEST_TO_RESAMPLE,
    bootstrap_crossvalidation,
    crossvalidate,
    mean_over_subjects,
    permuted_means,
)
from isocortex.rsa.hypotheses import (
    combine_variances,
    contrast_variances,
    interval,
    p_above,
    p_different,
)
from isocortex.rsa.inference import bootstrap_counts, bootstrap_scores
from isocortex.rsa.models import Predictors
from isocortex.rsa.permutation import draw_orders, permutation_p, permute_means, region_groups
from isocortex.rsa.rdms import n_stimuli as pairs_to_stimuli

_SAMPLES_A_BLOCK = 125
_BLOCK_BYTES = 32 << 20


def score_statistics(
    brain: np.ndarray,
    models: np.ndarray,
    *,
    comparison: str,
    over: str,
    samples: int,
    seed: int,
    predictors: Predictors | None = None,
    level: float = 0.95,
    permutations: int = 0,
    threads: int = 1,
) -> dict[str, np.ndarray]:
    """Return scores, noise ceilings, intervals and p-values by one comparison.

    Parameters
    ----------
    brain
        RDMs, shape (n_subjects, n_regions, n_pairs); all NaN where a subject lacks a region,
        otherwise pairs that are NaN in one subject are left out for all of that region.
    models
        RDMs, shape (n_layers, n_pairs). A layer that is not finite has no scores, and is no part
        of a fitted predictor.
    comparison
        One of `isocortex.rsa.compare.COMPARISONS`.
    over
        ``subjects``, ``stimuli``, ``both``, or ``none``: no intervals, no p-values.
    samples, seed
        Of the bootstrap.
    predictors
        What the layers make; each layer by itself where not given.
    level
        Coverage of the intervals.
    permutations
        Orders of the models' stimuli, 0 for none.

    Returns
    -------
    dict
        ``score`` (predictor, region, subject); ``mean``, ``interval_low``, ``interval_high``,
        ``p`` (one-sided against 0), ``p_permutation``, ``p_permutation_fwe`` (predictor, region);
        ``ceiling_low``, ``ceiling_high``, ``ceiling_cv_low``, ``ceiling_cv_high`` (region);
        ``difference``, ``difference_p`` (two-sided), ``difference_p_fdr``, ``difference_p_fwe``
        (predictor, other, region). NaN where fewer than 2 subjects have the region, means
        excepted, and intervals over stimuli.

    Notes
    -----
    Fitted predictors are scored on held-out stimuli and subjects; to be compared with one, a fixed
    predictor and the noise ceiling are taken on the same held-out stimuli.
    """
    n_subjects, n_regions, n_pairs = brain.shape
    n_stimuli = pairs_to_stimuli(n_pairs)
    if predictors is None:
        names = tuple(str(k) for k in range(len(models)))
        rows = tuple((k,) for k in range(len(models)))
        predictors = Predictors(names, names, names, ("fixed",) * len(models), rows)
    able = np.isfinite(models).all(axis=1) & (np.ptp(np.nan_to_num(models), axis=1) > 0)
    # Zeros take part in no fit; what they make by themselves is taken out of the results.
    models = np.where(able[:, None], models, 0.0)
    unable = [k for k, rows in enumerate(predictors.rows) if not able[list(rows)].any()]
    fitted = predictors.fitted
    fixed = [k for k in range(len(predictors.labels)) if k not in fitted]
    plain = models[[predictors.rows[k][0] for k in fixed]]
    present = np.isfinite(brain).any(axis=-1)
    counted = present.sum(axis=0)
    groups = region_groups(brain)
    by_subject, by_stimulus = _draws(n_subjects, n_stimuli, samples, seed)

    score = np.full((len(predictors.labels), n_regions, n_subjects), np.nan)
    ceiling = np.full((2, n_regions), np.nan)
    for r in range(n_regions):
        found = brain[present[:, r], r]
        if len(found):
            score[np.ix_(fixed, [r], np.flatnonzero(present[:, r]))] = correlate(
                plain, found, comparison=comparison
            )[:, None]
            ceiling[:, r] = noise_ceiling(found, comparison=comparison)
    held_out = _held_out(models, brain, predictors, groups, comparison=comparison, seed=seed)
    score[fitted] = held_out[fitted]
    score[unable] = held_out[unable] = np.nan
    ones = np.ones(n_subjects)
    mean, held_out_mean = mean_over_subjects(score, ones), mean_over_subjects(held_out, ones)

    drawn = _bootstrap(
        plain, brain, groups, by_subject, by_stimulus, over, comparison=comparison, threads=threads
    )
    drawn = {key: value[:, None] for key, value in drawn.items()}
    variance, differences, freedom = _variances(drawn, over, counted, n_stimuli)
    size = len(predictors.labels)
    of_mean = np.full((size, n_regions), np.nan)
    of_difference = np.full((size, size, n_regions), np.nan)
    if over != "none":
        of_mean[fixed] = variance[: len(fixed)]
        of_difference[np.ix_(fixed, fixed)] = differences[: len(fixed), : len(fixed)]
    if fitted and over != "none" and _can_fit(n_subjects, n_stimuli, over):
        again = {key: np.full((samples, 2, size + 2, n_regions), np.nan) for key in drawn}
        for _, regions in groups:
            found = bootstrap_crossvalidation(
                models,
                brain[:, regions],
                predictors,
                by_subject=by_subject,
                by_stimulus=by_stimulus,
                over=over,
                comparison=comparison,
                seed=seed,
                threads=threads,
            )
            for key, value in found.items():
                again[key][..., regions] = value
        variance, differences, _ = _variances(again, over, counted, n_stimuli)
        of_mean[fitted] = variance[fitted]
        of_difference[fitted] = differences[fitted, :size]
        of_difference[:, fitted] = differences[:size, fitted]

    difference = mean[:, None] - mean[None]
    difference[fitted] = held_out_mean[fitted, None] - held_out_mean[None, :size]
    difference[:, fitted] = held_out_mean[:size, None] - held_out_mean[None, fitted]
    low, high = interval(mean, of_mean, freedom, level=level)
    result = {
        "score": score,
        "mean": mean,
        "interval_low": low,
        "interval_high": high,
        "p": p_above(mean, of_mean, freedom),
        "ceiling_low": ceiling[0],
        "ceiling_high": ceiling[1],
        "ceiling_cv_low": held_out_mean[-2],
        "ceiling_cv_high": held_out_mean[-1],
        "difference": difference,
        "difference_p": p_different(difference, of_difference, freedom),
    }
    alone = counted < 2
    result["p"][:, alone] = np.nan
    result["difference_p"][:, :, alone] = np.nan
    result["difference_p"][np.arange(size), np.arange(size)] = np.nan
    for name, correction in (("fdr", "fdr"), ("fwe", "holm")):
        result[f"difference_p_{name}"] = _correct_pairs(result["difference_p"], correction)
    if permutations:
        means = _permutations(
            models, brain, predictors, groups, permutations, comparison, seed, threads
        )
        means[:, unable] = np.nan
        result["p_permutation"], result["p_permutation_fwe"] = permutation_p(means)
    return result


def _draws(
    n_subjects: int, n_stimuli: int, samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return how often subjects and stimuli are drawn.

    The same for every region, comparison and kind of bootstrap: their differences are then free of
    the draws' noise.
    """
    rng = np.random.default_rng(seed)
    by_subject = bootstrap_counts(n_subjects, samples, rng=rng)
    return by_subject, bootstrap_counts(n_stimuli, samples, rng=rng)


def _can_fit(n_subjects: int, n_stimuli: int, over: str = "subjects") -> bool:
    fewest = FEWEST_TO_FIT if over == "subjects" else FEWEST_TO_RESAMPLE
    return n_subjects > 1 and n_stimuli >= fewest


def _held_out(
    models: np.ndarray,
    brain: np.ndarray,
    predictors: Predictors,
    groups: list[tuple[np.ndarray, list[int]]],
    *,
    comparison: str,
    seed: int,
) -> np.ndarray:
    """Return scores on held-out stimuli and subjects, (predictors and 2 ceilings, region, subject).

    NaN where subjects or stimuli are too few to hold some out.
    """
    n_subjects, n_regions, n_pairs = brain.shape
    found = np.full((len(predictors.labels) + 2, n_regions, n_subjects), np.nan)
    if _can_fit(n_subjects, pairs_to_stimuli(n_pairs)):
        for _, regions in groups:
            found[:, regions] = crossvalidate(
                models, brain[:, regions], predictors, comparison=comparison, seed=seed
            )
    return found


def _bootstrap(
    models: np.ndarray,
    brain: np.ndarray,
    groups: list[tuple[np.ndarray, list[int]]],
    by_subject: np.ndarray,
    by_stimulus: np.ndarray,
    over: str,
    *,
    comparison: str,
    threads: int,
) -> dict[str, np.ndarray]:
    """Return mean scores of bootstrap samples (sample, predictor, region), by what is drawn."""
    n_subjects, n_regions, _ = brain.shape
    kinds = {"both": ("subjects", "stimuli", "both"), "none": ()}.get(over, (over,))
    shape = (len(by_subject), len(models), n_regions)
    drawn = {kind: np.full(shape, np.nan) for kind in kinds}
    if "subjects" in drawn:
        for valid, regions in groups:
            rows = np.where(valid, brain[:, regions], np.nan).reshape(-1, brain.shape[2])
            known = np.isfinite(rows).any(axis=1)
            scores = np.full((len(models), len(rows)), np.nan)
            scores[:, known] = correlate(models, rows[known], comparison=comparison)
            cube = scores.reshape(len(models), n_subjects, len(regions)).swapaxes(1, 2)
            drawn["subjects"][:, :, regions] = mean_over_subjects(
                cube[None], by_subject[:, None, None]
            )
    if "stimuli" in drawn:
        size = _BLOCK_BYTES // (8 * max(1, len(models)) * n_subjects * n_regions)
        size = max(1, min(_SAMPLES_A_BLOCK, size))
        blocks = [
            (slice(start, min(start + size, len(by_subject))), regions)
            for _, regions in groups
            for start in range(0, len(by_subject), size)
        ]
        found = parallel.map_blocks(
            _bootstrap_block,
            blocks,
            models,
            brain,
            by_subject,
            by_stimulus,
            over == "both",
            comparison,
            threads=threads,
            label=f"bootstrap, {comparison}",
        )
        for (chunk, regions), (stimuli, both) in zip(blocks, found):
            drawn["stimuli"][chunk, :, regions] = stimuli
            if both is not None:
                drawn["both"][chunk, :, regions] = both
    return drawn


def _bootstrap_block(
    block: tuple[slice, list[int]],
    models: np.ndarray,
    brain: np.ndarray,
    by_subject: np.ndarray,
    by_stimulus: np.ndarray,
    both: bool,
    comparison: str,
) -> tuple[np.ndarray, np.ndarray | None]:
    chunk, regions = block
    rows = brain[:, regions].swapaxes(0, 1)
    who = np.isfinite(rows).any(axis=-1)
    subjects, counts = by_subject[chunk], by_stimulus[chunk]
    shape = (len(counts), len(models), len(regions))
    stimuli, together = np.full(shape, np.nan), np.full(shape, np.nan) if both else None
    for part, scores in bootstrap_scores(models, rows[who], counts, comparison=comparison):
        cube = np.full((*scores.shape[:2], *who.shape), np.nan)
        cube[:, :, who] = scores
        stimuli[part] = mean_over_subjects(cube, np.ones(brain.shape[0]))
        if together is not None:
            together[part] = mean_over_subjects(cube, subjects[part, None, None])
    return stimuli, together


def _variances(
    drawn: dict[str, np.ndarray], over: str, counted: np.ndarray, n_stimuli: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return variances of means and of their differences, and the degrees of freedom."""
    parts = {key: contrast_variances(value) for key, value in drawn.items()}
    found = [
        combine_variances(
            {key: value[k] for key, value in parts.items()},
            over=over,
            n_subjects=counted,
            n_stimuli=n_stimuli,
        )
        for k in (0, 1)
    ]
    return found[0][0], found[1][0], found[0][1]


def _correct_pairs(p: np.ndarray, correction: str) -> np.ndarray:
    """Return p-values of differences corrected over the pairs of each region."""
    upper = np.triu_indices(len(p), 1)
    corrected = np.full(p.shape, np.nan)
    for r in range(p.shape[2]):
        found = correct_p(p[upper[0], upper[1], r], correction=correction)
        corrected[upper[0], upper[1], r] = corrected[upper[1], upper[0], r] = found
    return corrected


def _permutations(
    models: np.ndarray,
    brain: np.ndarray,
    predictors: Predictors,
    groups: list[tuple[np.ndarray, list[int]]],
    permutations: int,
    comparison: str,
    seed: int,
    threads: int,
) -> np.ndarray:
    """Return mean scores with the models' stimuli in other orders, (order, predictor, region)."""
    n_subjects, n_regions, n_pairs = brain.shape
    fitted = predictors.fitted
    fixed = [k for k in range(len(predictors.labels)) if k not in fitted]
    orders = draw_orders(pairs_to_stimuli(n_pairs), permutations, seed=seed)
    means = np.full((len(orders), len(predictors.labels), n_regions), np.nan)
    means[:, fixed] = permute_means(
        models[[predictors.rows[k][0] for k in fixed]],
        brain,
        orders,
        comparison=comparison,
        threads=threads,
    )
    if fitted and _can_fit(n_subjects, pairs_to_stimuli(n_pairs)):
        for _, regions in groups:
            blocks = [orders[start : start + 50] for start in range(0, len(orders), 50)]
            found = parallel.map_blocks(
                permuted_means,
                blocks,
                models,
                brain[:, regions],
                predictors,
                comparison,
                seed,
                threads=threads,
                label=f"permutations of fitted models, {comparison}",
            )
            found = np.concatenate(list(found))[:, fitted]
            means[np.ix_(np.arange(len(orders)), fitted, regions)] = found
    return means
