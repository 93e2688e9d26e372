"""Scores of fitted models on held-out stimuli and subjects, and noise ceilings to hold them to.

Stimuli and subjects are cut into folds. What is scored are the pairs of stimuli within one fold,
in the subjects of one fold; what models are fitted to are the pairs among the other stimuli, in the
other subjects. Pairs of a held-out and another stimulus are in neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isocortex import parallel
from isocortex.rsa.compare import KERNELS, correlate, pooling_scale
from isocortex.rsa.models import (
    Predictors,
    can_select,
    fit_metric,
    metric_vectors,
    solve,
    unit_rows,
)
from isocortex.rsa.rdms import MINIMUM_STIMULI, n_stimuli, pair_indices, to_matrices

FEWEST_TO_FIT = 2 * MINIMUM_STIMULI
"""Stimuli without which there are no two folds that can be scored."""
FEWEST_TO_RESAMPLE = 16
"""Stimuli without which a bootstrap sample seldom fills two folds."""
CUTS = 10
"""Random cuts into folds whose mean a held-out score is."""
_KEPT = 1 - np.exp(-1)
_SAMPLES_A_BLOCK = 20


@dataclass(frozen=True)
class Folds:
    """How stimuli and subjects are held out.

    Attributes
    ----------
    stimuli
        Fold of each stimulus, shape (n_stimuli,).
    subjects
        Fold of each subject, shape (n_designs, n_subjects); -1 where a design leaves one out.
    """

    stimuli: np.ndarray
    subjects: np.ndarray


def stimulus_folds(n: int) -> int:
    """Return the number of folds of n stimuli: 2 to 5, with 6 different ones of a sample each."""
    return int(np.clip(n * _KEPT // 6, 2, 5))


def subject_folds(n: int) -> int:
    """Return the number of folds of n subjects, as rsatoolbox 0.3.2 ``bootstrap_crossval``."""
    kept = n * _KEPT
    return 2 if kept < 6 else 3 if kept < 12 else 4 if kept < 20 else 5


def draw_folds(counts: np.ndarray, n_folds: int, *, rng: np.random.Generator) -> np.ndarray:
    """Return random folds of equal numbers of the things that were drawn, -1 for the others.

    Parameters
    ----------
    counts
        How often each thing was drawn, shape (n,); copies share a fold.
    """
    folds = np.full(len(counts), -1)
    drawn = np.flatnonzero(counts)
    folds[rng.permutation(drawn)] = np.arange(len(drawn)) % n_folds
    return folds


def held_out_scores(
    models: np.ndarray,
    brain: np.ndarray,
    predictors: Predictors,
    folds: Folds,
    *,
    comparison: str,
    stimulus_counts: np.ndarray | None = None,
    subject_counts: np.ndarray | None = None,
) -> np.ndarray:
    """Return the scores of predictors, and noise ceilings, on held-out stimuli and subjects.

    Parameters
    ----------
    models
        RDMs of all layers, shape (n_layers, n_pairs).
    brain
        RDMs, shape (n_subjects, n_regions, n_pairs); all NaN where a subject lacks a region, other
        pairs that are NaN in any RDM are left out of all.
    predictors
        What layers make.
    folds
        Of one set of stimuli, and of one or several sets of subjects.
    comparison
        One of `isocortex.rsa.compare.COMPARISONS`.
    stimulus_counts, subject_counts
        How often each stimulus and, per design, each subject is in the sample, shapes
        (n_stimuli,) and (n_designs, n_subjects); once each where not given.

    Returns
    -------
    numpy.ndarray
        Shape (n_designs, n_predictors + 2, n_regions, n_subjects): means over the folds of stimuli
        of each held-out subject's score. The last two are the lower and the upper noise ceiling
        (rsatoolbox ``cv_noise_ceiling``): the RDM pooled over the other subjects, and over all.
        NaN where no fold has 4 different stimuli.
    """
    n_subjects, n_regions, n_pairs = brain.shape
    n, designs = n_stimuli(n_pairs), len(folds.subjects)
    if stimulus_counts is None:
        stimulus_counts = np.ones(n, dtype=np.int64)
    if subject_counts is None:
        subject_counts = np.ones((designs, n_subjects))
    subject, region = np.nonzero(np.isfinite(brain).any(axis=-1))
    rows = brain[subject, region]
    everything = _Sampled(models, rows, stimulus_counts, comparison)

    # Which RDMs, how often, each fit and each pooled RDM is made of.
    sets = np.arange(int(folds.subjects.max()) + 1)
    others = (folds.subjects[:, None] != sets[:, None]) & (folds.subjects[:, None] >= 0)
    training = _by_region(subject_counts[:, None] * others, subject, region, n_regions)
    pooling = _by_region(subject_counts[:, None], subject, region, n_regions)

    fitted = predictors.fitted
    tests, trains = [], []
    for fold in range(int(folds.stimuli.max()) + 1):
        inside = folds.stimuli == fold
        test = everything.of(inside)
        train = everything.of(~inside & (folds.stimuli >= 0)) if fitted else None
        if test is not None and (train is not None or not fitted):
            tests.append(test)
            trains.append(train)
    out = np.full((designs, len(predictors.labels) + 2, n_regions, n_subjects), np.nan)
    if not tests:
        return out
    weights = _fit(predictors, trains, training, comparison) if fitted else {}
    fixed = [k for k, kind in enumerate(predictors.kinds) if kind == "fixed"]
    alone = training.sum(axis=0) == 0
    # Where in (designs, sets, regions) the prediction for each design and RDM is.
    own = folds.subjects[:, subject]
    place = (np.arange(designs)[:, None] * len(sets) + own) * n_regions + region
    above = np.arange(designs)[:, None] * n_regions + region
    scores = np.full((len(tests), designs, out.shape[1], len(rows)), np.nan)
    for k, test in enumerate(tests):
        predictions = [test.layers[[predictors.rows[m][0] for m in fixed]]]
        predictions += [
            np.nan_to_num(weights[m][k]) @ test.layers[list(predictors.rows[m])] for m in fitted
        ]
        predictions.append(_means(test.scaled, training))
        predictions.append(_means(test.whole, pooling))
        found = correlate(
            np.nan_to_num(np.concatenate(predictions)), test.rows, comparison=comparison
        )
        start = len(fixed)
        scores[k][:, fixed] = found[:start]
        for m in fitted:
            part = found[start : start + training.shape[1]]
            part[~np.isfinite(weights[m][k]).all(axis=1)] = np.nan
            scores[k][:, m] = part[place, np.arange(len(rows))]
            start += len(part)
        lower = found[start : start + training.shape[1]]
        lower[alone] = np.nan
        scores[k][:, -2] = lower[place, np.arange(len(rows))]
        scores[k][:, -1] = found[start + training.shape[1] :][above, np.arange(len(rows))]
    out[:, :, region, subject] = nanmean(scores, axis=0)
    out[np.broadcast_to((folds.subjects < 0)[:, None, None], out.shape)] = np.nan
    return out


@dataclass(frozen=True)
class _Part:
    """RDMs of some of the stimuli, repeated as drawn, pairs that all have."""

    layers: np.ndarray
    rows: np.ndarray
    scaled: np.ndarray
    whole: np.ndarray


class _Sampled:
    """RDMs of layers and subjects, to take stimuli from."""

    def __init__(
        self, models: np.ndarray, rows: np.ndarray, counts: np.ndarray, comparison: str
    ) -> None:
        # As in `isocortex.rsa.kernels`: a copy adds no dimension to a kernel.
        self._counts = np.minimum(counts, 1) if comparison == "riemann" else counts
        self._comparison = comparison
        self._sizes = np.cumsum([len(models), len(rows)])
        # One more column stands for pairs of two copies of a stimulus: those are no pairs, but
        # kernels need their distance.
        copies = 0.0 if comparison in KERNELS else np.nan
        stacked = np.concatenate([models, rows, pooling_scale(rows, comparison=comparison)])
        self._padded = np.pad(stacked, ((0, 0), (0, 1)), constant_values=copies)
        self._lookup = to_matrices(np.arange(stacked.shape[1]), diagonal=-1)

    def of(self, chosen: np.ndarray) -> _Part | None:
        """Return the RDMs of the chosen stimuli, bool (n_stimuli,); none below 4 different ones."""
        ids = np.repeat(np.flatnonzero(chosen), self._counts[chosen])
        if len(np.unique(ids)) < MINIMUM_STIMULI:
            return None
        i, j = pair_indices(len(ids))
        found = self._padded[:, self._lookup[ids[i], ids[j]]]
        found[:, ~np.isfinite(found).all(axis=0)] = np.nan
        layers, rows, whole = np.split(found, self._sizes)
        return _Part(layers, rows, pooling_scale(rows, comparison=self._comparison), whole)


def nanmean(values: np.ndarray, *, axis: int) -> np.ndarray:
    """Return means of the finite values along an axis, NaN where there are none."""
    known = np.isfinite(values)
    total = known.sum(axis=axis)
    return np.where(known, values, 0.0).sum(axis=axis) / np.where(total > 0, total, np.nan)


def _by_region(
    counts: np.ndarray, subject: np.ndarray, region: np.ndarray, n_regions: int
) -> np.ndarray:
    """Return how often each RDM is in each set of each region, (RDMs, designs x sets x regions).

    ``counts`` has shape (designs, sets, subjects).
    """
    member = np.zeros((len(subject), *counts.shape[:2], n_regions))
    member[np.arange(len(subject)), :, :, region] = counts[:, :, subject].transpose(2, 0, 1)
    return member.reshape(len(subject), -1)


def _means(values: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Return means over RDMs (rows of values), one a column of members; NaN without any."""
    members = members * np.isfinite(values).any(axis=1)[:, None]
    total = members.sum(axis=0)
    return members.T @ np.nan_to_num(values) / np.where(total > 0, total, np.nan)[:, None]


def _fit(
    predictors: Predictors, parts: list[_Part], training: np.ndarray, comparison: str
) -> dict[int, np.ndarray]:
    """Return of each fitted predictor the weights of its layers, (folds, fits, layers)."""
    metric = fit_metric(comparison)
    kinds = {predictors.kinds[k] for k in predictors.fitted}
    agreements: dict[bool, list[np.ndarray]] = {True: [], False: []}
    grams, able = [], []
    for part in parts:
        valid = np.isfinite(part.rows).all(axis=0) & np.isfinite(part.layers).all(axis=0)
        layers = metric_vectors(part.layers, comparison=metric, valid=valid)
        rows = unit_rows(metric_vectors(part.rows, comparison=metric, valid=valid))
        grams.append(layers @ layers.T)
        agreements[True].append(_means((layers @ rows.T).T, training))
        if "selected" in kinds and metric != comparison:
            scores = correlate(part.layers, part.rows, comparison=comparison)
            agreements[False].append(_means(scores.T, training))
            able.append(np.diag(can_select(part.layers[:, valid], scores).astype(np.float64)))
    weights = {}
    for k in predictors.fitted:
        layers, kind = list(predictors.rows[k]), predictors.kinds[k]
        own = kind == "selected" and metric != comparison
        agreement = np.array(agreements[not own])[:, :, layers]
        inner = np.array(able if own else grams)[:, layers][:, :, layers]
        inner = np.broadcast_to(inner[:, None], (*agreement.shape, len(layers)))
        found = solve(
            inner.reshape(-1, *inner.shape[2:]), agreement.reshape(-1, len(layers)), kind=kind
        )
        weights[k] = found.reshape(agreement.shape)
    return weights


def mean_over_subjects(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return means over the last axis, weighted, NaN scores left out.

    Parameters
    ----------
    scores
        Shape (..., n_subjects).
    counts
        How often each subject is in the sample; broadcasts to the scores.
    """
    known = np.isfinite(scores)
    weights = counts * known
    total = weights.sum(axis=-1)
    summed = (np.where(known, scores, 0.0) * weights).sum(axis=-1)
    return summed / np.where(total > 0, total, np.nan)


def mean_over_samples(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return means over samples of the subjects, weighted, NaN scores left out.

    Parameters
    ----------
    scores
        The same in all samples, shape (..., n_subjects).
    counts
        How often each subject is in each sample, shape (n_samples, n_subjects).

    Returns
    -------
    numpy.ndarray
        Shape (n_samples, ...): `mean_over_subjects` of each sample, as two matrix products, so
        that scores are not repeated by sample.
    """
    counts = np.asarray(counts, dtype=np.float64)
    flat = scores.reshape(-1, scores.shape[-1])
    known = np.isfinite(flat)
    total = counts @ known.T.astype(np.float64)
    means = counts @ np.where(known, flat, 0.0).T
    means /= np.where(total > 0, total, np.nan)
    return means.reshape(len(counts), *scores.shape[:-1])


def crossvalidate(
    models: np.ndarray,
    brain: np.ndarray,
    predictors: Predictors,
    *,
    comparison: str,
    seed: int,
    repeats: int = CUTS,
) -> np.ndarray:
    """Return `held_out_scores` of all subjects, means over several random cuts into folds.

    Parameters
    ----------
    models, brain, predictors, comparison
        As in `held_out_scores`.
    seed
        Of the folds.
    repeats
        How many cuts.

    Returns
    -------
    numpy.ndarray
        Shape (n_predictors + 2, n_regions, n_subjects).
    """
    n_subjects, n = len(brain), n_stimuli(brain.shape[-1])
    found = []
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, repeat])
        folds = _cut(np.ones(n, np.int64), np.ones((1, n_subjects), np.int64), rng)
        found.append(held_out_scores(models, brain, predictors, folds, comparison=comparison)[0])
    return nanmean(np.array(found), axis=0)


def bootstrap_crossvalidation(
    models: np.ndarray,
    brain: np.ndarray,
    predictors: Predictors,
    *,
    by_subject: np.ndarray,
    by_stimulus: np.ndarray,
    over: str,
    comparison: str,
    seed: int,
    threads: int = 1,
) -> dict[str, np.ndarray]:
    """Fit and score predictors again in every bootstrap sample (rsatoolbox's dual bootstrap).

    Copies of a stimulus or a subject share a fold, and a sample is cut into folds twice at random:
    what the two agree on does not come from the cut.

    Parameters
    ----------
    models, brain, predictors, comparison
        As in `held_out_scores`.
    by_subject, by_stimulus
        How often each was drawn, shapes (n_samples, n_subjects) and (n_samples, n_stimuli).
    over
        ``subjects``, ``stimuli`` or ``both``, which gives all three.
    seed
        Of the folds.

    Returns
    -------
    dict
        By what was resampled: means over subjects, shape (n_samples, 2, n_predictors + 2,
        n_regions).
    """
    samples = len(by_subject)
    blocks = [
        slice(start, min(start + _SAMPLES_A_BLOCK, samples))
        for start in range(0, samples, _SAMPLES_A_BLOCK)
    ]
    parts = list(
        parallel.map_blocks(
            _bootstrap_block,
            blocks,
            models,
            brain,
            predictors,
            by_subject,
            by_stimulus,
            over,
            comparison,
            seed,
            threads=threads,
            label=f"bootstrap of fitted models, {comparison}",
        )
    )
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _bootstrap_block(
    block: slice,
    models: np.ndarray,
    brain: np.ndarray,
    predictors: Predictors,
    by_subject: np.ndarray,
    by_stimulus: np.ndarray,
    over: str,
    comparison: str,
    seed: int,
) -> dict[str, np.ndarray]:
    ones = np.ones_like(by_subject[0])
    drawn: dict[str, list[np.ndarray]] = {}
    for sample in range(block.start, block.stop):
        rng = np.random.default_rng([seed, sample])
        twice: dict[str, list[np.ndarray]] = {}
        for _ in range(2):
            work = []
            if over in ("subjects", "both"):
                work.append((np.ones_like(by_stimulus[0]), {"subjects": by_subject[sample]}))
            if over in ("stimuli", "both"):
                designs = {"stimuli": ones}
                if over == "both":
                    designs["both"] = by_subject[sample]
                work.append((by_stimulus[sample], designs))
            for stimulus_counts, designs in work:
                subject_counts = np.array(list(designs.values()))
                scores = held_out_scores(
                    models,
                    brain,
                    predictors,
                    _cut(stimulus_counts, subject_counts, rng),
                    comparison=comparison,
                    stimulus_counts=stimulus_counts,
                    subject_counts=subject_counts,
                )
                for name, counts, one in zip(designs, subject_counts, scores):
                    twice.setdefault(name, []).append(mean_over_subjects(one, counts))
        for name, means in twice.items():
            drawn.setdefault(name, []).append(np.array(means))
    return {name: np.array(values) for name, values in drawn.items()}


def permuted_means(
    orders: np.ndarray,
    models: np.ndarray,
    brain: np.ndarray,
    predictors: Predictors,
    comparison: str,
    seed: int,
) -> np.ndarray:
    """Return the means over subjects of `held_out_scores` with the models' stimuli re-ordered.

    Parameters
    ----------
    orders
        Shape (n_orders, n_stimuli). All are cut into the same folds.
    models, brain, predictors, comparison, seed
        As in `crossvalidate`.

    Returns
    -------
    numpy.ndarray
        Shape (n_orders, n_predictors + 2, n_regions).
    """
    square = to_matrices(models)
    i, j = pair_indices(square.shape[-1])
    found = []
    for order in orders:
        scores = crossvalidate(
            square[:, order[i], order[j]],
            brain,
            predictors,
            comparison=comparison,
            seed=seed,
            repeats=1,
        )
        found.append(mean_over_subjects(scores, np.ones(len(brain))))
    return np.array(found)


def _cut(
    stimulus_counts: np.ndarray, subject_counts: np.ndarray, rng: np.random.Generator
) -> Folds:
    n_subjects = subject_counts.shape[1]
    sets = subject_folds(n_subjects)
    return Folds(
        draw_folds(stimulus_counts, stimulus_folds(len(stimulus_counts)), rng=rng),
        np.array([draw_folds(counts, sets, rng=rng) for counts in subject_counts]),
    )
