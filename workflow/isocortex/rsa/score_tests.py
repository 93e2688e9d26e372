"""Scores of predictors by one comparison, with noise ceilings, intervals and tests."""

from __future__ import annotations

import itertools

import numpy as np

from isocortex import parallel
from isocortex.multiple_tests import correct_p
from isocortex.rsa.ceilings import bootstrap_ceiling
from isocortex.rsa.compare import EMBEDDED, KERNELS, RANKED, correlate, noise_ceiling
from isocortex.rsa.crossvalidation import (
    CUTS,
    FEWEST_TO_FIT,
    FEWEST_TO_RESAMPLE,
    bootstrap_crossvalidation,
    crossvalidate,
    mean_over_samples,
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
from isocortex.rsa.inference import (
    bootstrap_counts,
    bootstrap_scores,
    debiased_variance,
    left_out_counts,
)
from isocortex.rsa.models import Predictors, fit_layers
from isocortex.rsa.permutation import draw_orders, permutation_p, permute_means, region_groups
from isocortex.rsa.rdms import n_stimuli as pairs_to_stimuli

CEILING_SAMPLES = 250
"""Bootstrap samples of noise ceilings that have to be sorted, or decomposed, in each sample."""
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
    variance: str = "dual",
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
    variance
        With ``both``, of the scores of fixed predictors and of their differences: ``dual``
        (rsatoolbox's) or ``debiased``, see `isocortex.rsa.inference.debiased_variance`.

    Returns
    -------
    dict
        ``score`` (predictor, region, subject); ``mean``, ``interval_low``, ``interval_high``,
        ``p`` (one-sided against 0, where `zero_is_chance`), ``p_ceiling`` (two-sided against the
        lower noise ceiling),
        ``p_permutation``, ``p_permutation_fwe`` (predictor, region); ``ceiling_low``,
        ``ceiling_high``, their intervals ``ceiling_low_low`` to ``ceiling_high_high``,
        ``ceiling_cv_low``, ``ceiling_cv_high`` (region);
        ``difference``, ``difference_p`` (two-sided), ``difference_p_fdr``, ``difference_p_fwe``
        (predictor, other, region); of fitted predictors ``weight`` (predictor, region, layer),
        fitted to all subjects and stimuli. NaN where fewer than 2 subjects have the region, means
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
    bounds = _bootstrap_ceilings(
        brain, by_subject, by_stimulus, tuple(drawn), comparison=comparison, threads=threads
    )
    drawn = {key: np.concatenate([drawn[key], bounds[key]], axis=1)[:, None] for key in drawn}
    of_values, differences, freedom = _variances(drawn, over, counted, n_stimuli)
    size = len(predictors.labels)
    own_freedom = np.broadcast_to(freedom, (size, n_regions)).astype(np.float64)
    pair_freedom = np.broadcast_to(freedom, (size, size, n_regions)).astype(np.float64)
    of_mean, of_gap = np.full((2, size, n_regions), np.nan)
    of_difference = np.full((size, size, n_regions), np.nan)
    of_ceiling = np.full((2, n_regions), np.nan)
    if over != "none":
        of_mean[fixed], of_ceiling = of_values[: len(fixed)], of_values[-2:]
        of_gap[fixed] = differences[: len(fixed), -2]
        of_difference[np.ix_(fixed, fixed)] = differences[: len(fixed), : len(fixed)]
    if over == "both" and variance == "debiased":
        left_out = _left_out(plain, brain, groups, comparison=comparison)
        found = _debiased(drawn, left_out, counted, n_stimuli)
        of_mean[fixed], own_freedom[fixed] = found[0]
        of_difference[np.ix_(fixed, fixed)], pair_freedom[np.ix_(fixed, fixed)] = found[1]
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
        of_values, differences, _ = _variances(again, over, counted, n_stimuli)
        of_mean[fitted], of_gap[fitted] = of_values[fitted], differences[fitted, -2]
        of_difference[fitted] = differences[fitted, :size]
        of_difference[:, fitted] = differences[:size, fitted]

    difference = mean[:, None] - mean[None]
    difference[fitted] = held_out_mean[fitted, None] - held_out_mean[None, :size]
    difference[:, fitted] = held_out_mean[:size, None] - held_out_mean[None, fitted]
    gap = mean - ceiling[0]
    gap[fitted] = held_out_mean[fitted] - held_out_mean[-2]
    low, high = interval(mean, of_mean, own_freedom, level=level)
    ends = interval(ceiling, of_ceiling, freedom, level=level)
    result = {
        "score": score,
        "mean": mean,
        "interval_low": low,
        "interval_high": high,
        "p": p_above(mean, of_mean, own_freedom),
        "p_ceiling": p_different(gap, of_gap, freedom),
        "ceiling_low": ceiling[0],
        "ceiling_high": ceiling[1],
        "ceiling_low_low": ends[0][0],
        "ceiling_low_high": ends[1][0],
        "ceiling_high_low": ends[0][1],
        "ceiling_high_high": ends[1][1],
        "ceiling_cv_low": held_out_mean[-2],
        "ceiling_cv_high": held_out_mean[-1],
        "difference": difference,
        "difference_p": p_different(difference, of_difference, pair_freedom),
    }
    alone = counted < 2
    result["p"][:, alone] = result["p_ceiling"][:, alone] = np.nan
    result["p"][:, ~zero_is_chance(brain, comparison)] = np.nan
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
    if fitted:
        result["weight"] = np.full((size, n_regions, len(models)), np.nan)
        for k, r in itertools.product(fitted, np.flatnonzero(counted)):
            rows = list(predictors.rows[k])
            result["weight"][k, r, rows] = fit_layers(
                models[rows],
                brain[present[:, r], r],
                kind=predictors.kinds[k],
                comparison=comparison,
            )
    return result


def zero_is_chance(brain: np.ndarray, comparison: str) -> np.ndarray:
    """Return in which regions unrelated RDMs score 0 on average, so that 0 can be tested against.

    Not by kernels, whose similarities are all of one sign, and not by cosines of RDMs without
    negative values, which are above 0 by themselves; cross-validated dissimilarities have negative
    values where there is nothing.

    Parameters
    ----------
    brain
        RDMs, shape (n_subjects, n_regions, n_pairs).
    comparison
        One of `isocortex.rsa.compare.COMPARISONS`.

    Returns
    -------
    numpy.ndarray
        bool, shape (n_regions,).
    """
    if comparison in KERNELS:
        return np.zeros(brain.shape[1], dtype=bool)
    if comparison in ("cosine", "cosine_cov"):
        return (np.nan_to_num(brain) < 0).any(axis=(0, 2))
    return np.ones(brain.shape[1], dtype=bool)


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
            drawn["subjects"][:, :, regions] = mean_over_samples(cube, by_subject)
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


def _bootstrap_ceilings(
    brain: np.ndarray,
    by_subject: np.ndarray,
    by_stimulus: np.ndarray,
    kinds: tuple[str, ...],
    *,
    comparison: str,
    threads: int,
) -> dict[str, np.ndarray]:
    """Return both noise ceilings in bootstrap samples, by what is drawn: (sample, 2, region).

    NaN after `CEILING_SAMPLES` where each sample takes long.
    """
    n_regions, samples = brain.shape[1], len(by_subject)
    drawn = {kind: np.full((samples, 2, n_regions), np.nan) for kind in kinds}
    slow = comparison in RANKED or comparison not in EMBEDDED
    used = min(samples, CEILING_SAMPLES) if slow else samples
    blocks = [
        (slice(start, min(start + _SAMPLES_A_BLOCK, used)), region)
        for region in range(n_regions)
        for start in range(0, used if kinds else 0, _SAMPLES_A_BLOCK)
    ]
    found = parallel.map_blocks(
        _ceiling_block,
        blocks,
        brain,
        by_subject,
        by_stimulus,
        kinds,
        comparison,
        threads=threads,
        label=f"bootstrap of noise ceilings, {comparison}",
    )
    for (chunk, region), part in zip(blocks, found):
        for kind, ceilings in part.items():
            drawn[kind][chunk, :, region] = ceilings
    return drawn


def _ceiling_block(
    block: tuple[slice, int],
    brain: np.ndarray,
    by_subject: np.ndarray,
    by_stimulus: np.ndarray,
    kinds: tuple[str, ...],
    comparison: str,
) -> dict[str, np.ndarray]:
    chunk, region = block
    present = np.isfinite(brain[:, region]).any(axis=-1)
    rows, subjects = brain[present, region], by_subject[chunk][:, present]
    found = {}
    if present.sum() < 2:
        return found
    if "subjects" in kinds:
        found["subjects"] = bootstrap_ceiling(rows, subjects, None, comparison=comparison)
    if "stimuli" in kinds:
        counts = np.stack([np.ones_like(subjects), subjects][: 2 if "both" in kinds else 1])
        both = bootstrap_ceiling(rows, counts, by_stimulus[chunk], comparison=comparison)
        found |= dict(zip(("stimuli", "both"), both))
    return found


def _variances(
    drawn: dict[str, np.ndarray], over: str, counted: np.ndarray, n_stimuli: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return variances of means and of their differences, and the degrees of freedom."""
    parts = {key: contrast_variances(value, cuts=CUTS) for key, value in drawn.items()}
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


def _left_out(
    models: np.ndarray,
    brain: np.ndarray,
    groups: list[tuple[np.ndarray, list[int]]],
    *,
    comparison: str,
) -> np.ndarray:
    """Return scores without each stimulus: (stimulus, predictor, region, subject)."""
    n_subjects, n_regions, n_pairs = brain.shape
    counts = left_out_counts(pairs_to_stimuli(n_pairs))
    found = np.full((len(counts), len(models), n_regions, n_subjects), np.nan)
    for _, regions in groups:
        rows = brain[:, regions].swapaxes(0, 1)
        who = np.isfinite(rows).any(axis=-1)
        for part, scores in bootstrap_scores(models, rows[who], counts, comparison=comparison):
            cube = np.full((*scores.shape[:2], *who.shape), np.nan)
            cube[:, :, who] = scores
            found[part][:, :, regions] = cube
    return found


def _debiased(
    drawn: dict[str, np.ndarray], left_out: np.ndarray, counted: np.ndarray, n_stimuli: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return variances and degrees of freedom of scores, and of their differences."""
    size = left_out.shape[1]
    parts = {key: contrast_variances(value[:, :, :size]) for key, value in drawn.items()}
    enough = counted > 1

    def of(kind: int, row: slice | int, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        variance, freedom = debiased_variance(
            *(parts[key][kind][row] for key in ("both", "subjects", "stimuli")),
            scores,
            n_subjects=np.maximum(counted, 2),
            n_stimuli=n_stimuli,
        )
        smallest = np.finfo(np.float64).eps
        return np.where(enough, np.maximum(variance, smallest), np.nan), freedom

    pairs = [of(1, k, left_out[:, k : k + 1] - left_out) for k in range(size)]
    variances, freedoms = (np.array(values) for values in zip(*pairs))
    return of(0, slice(None), left_out), (variances, freedoms)


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
