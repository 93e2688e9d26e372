"""Which layer of which model fits each region: scores of all subjects, ceilings, inference."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from scipy import stats

from isocortex import parallel, store
from isocortex.errors import InputError
from isocortex.multiple_tests import CORRECTIONS, correct_p
from isocortex.rsa.compare import COMPARISONS, correlate, noise_ceiling
from isocortex.rsa.inference import (
    bootstrap_counts,
    bootstrap_scores,
    dual_bootstrap_variance,
)
from isocortex.rsa.rdms import BrainRDMs, ModelRDMs, align_models, load_rdms
from isocortex.rsa.rdms import n_stimuli as pairs_to_stimuli

logger = logging.getLogger(__name__)

FACTORS = ("auto", "subjects", "stimuli", "both")
STIMULI_TO_RESAMPLE = 20
"""Below so many stimuli ``auto`` takes them as fixed: their bootstrap is too coarse."""
FEWEST_STIMULI = 10
"""With fewer a sample of stimuli often has no score, and those that have one vary too little."""
_SAMPLES_A_TASK = 125


def compare_rdms(
    *,
    rdms: Sequence[str | Path],
    model_rdms: Sequence[str | Path],
    out: str | Path,
    comparisons: Sequence[str] = ("pearson", "spearman", "corr_cov"),
    bootstrap: Mapping[str, str | int] | None = None,
    correction: str = "holm",
    seed: int = 0,
    code: str = "",
    threads: int = 1,
) -> Path:
    """Compare the RDMs of all subjects' regions with all models' and write the ``scores`` store.

    Parameters
    ----------
    rdms, model_rdms
        Stores, one a subject and one a model.
    out
        The store to write.
    comparisons
        Some of `isocortex.rsa.compare.COMPARISONS`.
    bootstrap
        ``over``: ``subjects``, ``stimuli``, ``both`` (with the dual-bootstrap correction) or
        ``auto`` (both; only subjects below 20 stimuli, only stimuli with one subject);
        ``samples``: how many.
    correction
        ``holm``, ``fdr`` or ``none``, over the predictors and regions of one comparison.
    seed
        Of the bootstrap.

    Returns
    -------
    pathlib.Path
        The manifest.

    Raises
    ------
    InputError
        Where stimuli do not match, an RDM is constant, or an option is not known.

    Notes
    -----
    Intervals and p-values (one-sided, score over 0) are those of a t distribution with the
    bootstrap's variance, as rsatoolbox does it: degrees of freedom are one less than the number
    of subjects, of stimuli, or the smaller of both.
    """
    options = {"over": "auto", "samples": 1000, **(bootstrap or {})}
    for comparison in comparisons:
        if comparison not in COMPARISONS:
            raise InputError(
                f"rsa.comparisons: {comparison!r} is not one of {', '.join(COMPARISONS)}"
            )
    if options["over"] not in FACTORS:
        raise InputError(
            f"rsa.bootstrap.over: {options['over']!r} is not one of {', '.join(FACTORS)}"
        )
    if correction not in CORRECTIONS:
        raise InputError(f"rsa.correction: {correction!r} is not one of {', '.join(CORRECTIONS)}")
    brain = load_rdms(rdms)
    models = align_models(model_rdms, brain.stimuli, groups=brain.groups or None)
    _check_constant(brain, models)
    n_subjects, n_stimuli = len(brain.subjects), len(brain.stimuli)
    over = resolve_bootstrap(str(options["over"]), n_subjects=n_subjects, n_stimuli=n_stimuli)
    flags = []
    if brain.n_stimuli_dropped:
        flags.append(f"{brain.n_stimuli_dropped} stimuli that not all subjects saw were left out")
    if n_subjects < 2:
        flags.append("one subject: no noise ceiling and no p-value; at least 2 are needed")
    if over == "none":
        flags.append(f"{n_stimuli} stimuli: no intervals; at least {FEWEST_STIMULI} are needed")
    for flag in flags:
        logger.warning("%s", flag)

    parts = [
        score_statistics(
            brain.dissimilarity,
            models.dissimilarity,
            comparison=comparison,
            over=over,
            samples=int(options["samples"]),
            seed=seed,
            threads=threads,
        )
        for comparison in comparisons
    ]
    stacked = {key: np.stack([part[key] for part in parts]) for key in parts[0]}
    stacked["p_corrected"] = np.stack([correct_p(p, correction=correction) for p in stacked["p"]])
    best = np.full((len(parts), len(brain.regions)), "", dtype=object)
    for c, r in np.ndindex(best.shape):
        mean = stacked["mean"][c, :, r]
        if np.isfinite(mean).any():
            best[c, r] = models.predictors[int(np.nanargmax(mean))]

    cube = ("comparison", "predictor", "region")
    dims = {"score": (*cube, "subject"), "ceiling_low": ("comparison", "region")}
    dims["ceiling_high"] = dims["ceiling_low"]
    dataset = xr.Dataset(
        {key: (dims.get(key, cube), value) for key, value in stacked.items()}
        | {"best_predictor": (("comparison", "region"), best)},
        coords={
            "comparison": _text("comparison", comparisons),
            "predictor": _text("predictor", models.predictors),
            "model": _text("predictor", models.models),
            "layer": _text("predictor", models.layers),
            "region": _text("region", brain.regions),
            "subject": _text("subject", brain.subjects),
        },
        attrs={
            "measure": brain.measure,
            "task": brain.task,
            "bootstrap": over,
            "n_bootstrap": int(options["samples"]),
            "seed": seed,
            "correction": correction,
            "corrected_over": "predictors and regions of one comparison",
            "interval_level": 0.95,
            "n_stimuli": n_stimuli,
            "n_stimuli_dropped": brain.n_stimuli_dropped,
            "n_pairs_missing": {
                region: int((~valid_pairs(brain.dissimilarity[:, k])).sum())
                for k, region in enumerate(brain.regions)
            },
            "flags": flags,
        },
    )
    return store.write(dataset, out, spec="scores", sources=[*rdms, *model_rdms], code=code)


def resolve_bootstrap(over: str, *, n_subjects: int, n_stimuli: int) -> str:
    """Return what is resampled: ``subjects``, ``stimuli``, ``both``, or ``none``.

    With one subject only stimuli can be, if there are 10.

    Raises
    ------
    InputError
        Where stimuli are to be resampled and there are fewer than 10.
    """
    if over in ("stimuli", "both") and n_stimuli < FEWEST_STIMULI:
        raise InputError(
            f"rsa.bootstrap.over is {over} but there are {n_stimuli} stimuli, at least "
            f"{FEWEST_STIMULI} are needed: set it to subjects"
        )
    if n_subjects < 2:
        return "stimuli" if n_stimuli >= FEWEST_STIMULI else "none"
    if over == "auto":
        return "both" if n_stimuli >= STIMULI_TO_RESAMPLE else "subjects"
    return over


def _text(dim: str, values: Sequence[str]) -> tuple[str, np.ndarray]:
    return dim, np.array([str(v) for v in values], dtype=object)


def _check_constant(brain: BrainRDMs, models: ModelRDMs) -> None:
    """Raise `InputError` where an RDM is constant, so that no correlation is defined."""
    for s, r in np.argwhere(brain.present):
        if np.nanstd(brain.dissimilarity[s, r]) == 0:
            raise InputError(
                f"the RDM of region {brain.regions[r]} of subject {brain.subjects[s]} is constant: "
                "check its betas or leave the region out"
            )
    for name, vector in zip(models.predictors, models.dissimilarity):
        if not np.isfinite(vector).all() or np.std(vector) == 0:
            raise InputError(
                f"the RDM of {name} is constant or not finite: leave the layer out of "
                "features.models"
            )


def valid_pairs(brain: np.ndarray) -> np.ndarray:
    """Return the pairs that every subject who has the region has.

    Parameters
    ----------
    brain
        RDMs of one region, shape (n_subjects, n_pairs).
    """
    present = np.isfinite(brain).any(axis=1)
    return np.isfinite(brain[present]).all(axis=0)


def score_statistics(
    brain: np.ndarray,
    models: np.ndarray,
    *,
    comparison: str,
    over: str,
    samples: int,
    seed: int,
    threads: int = 1,
) -> dict[str, np.ndarray]:
    """Return scores, noise ceilings, intervals and p-values by one comparison.

    Parameters
    ----------
    brain
        RDMs, shape (n_subjects, n_regions, n_pairs); all NaN where a subject lacks a region,
        otherwise pairs that are NaN in one subject are left out for all of that region.
    models
        RDMs, shape (n_predictors, n_pairs).
    comparison
        One of `isocortex.rsa.compare.COMPARISONS`.
    over
        ``subjects``, ``stimuli``, ``both``, or ``none``: no intervals, no p-values.
    samples, seed
        Of the bootstrap.

    Returns
    -------
    dict
        ``score`` (predictor, region, subject); ``mean``, ``interval_low``, ``interval_high``,
        ``p`` (predictor, region), 95%, one-sided against 0; ``ceiling_low``, ``ceiling_high``
        (region). NaN where fewer than 2 subjects have the region, means excepted, and intervals
        over stimuli.
    """
    n_subjects, n_regions, n_pairs = brain.shape
    n_predictors, n_stimuli = len(models), pairs_to_stimuli(n_pairs)
    present = np.isfinite(brain).any(axis=-1)
    score = np.full((n_predictors, n_regions, n_subjects), np.nan)
    ceiling = np.full((2, n_regions), np.nan)
    masks: dict[bytes, list[int]] = {}
    for r in range(n_regions):
        masks.setdefault(valid_pairs(brain[:, r]).tobytes(), []).append(r)
        found = brain[present[:, r], r]
        score[:, r, present[:, r]] = correlate(models, found, comparison=comparison)
        ceiling[:, r] = noise_ceiling(found, comparison=comparison)
    mean = np.nanmean(score, axis=2)

    # The same draws for every region, comparison and kind of bootstrap: their differences are
    # then free of the draws' noise.
    rng = np.random.default_rng(seed)
    by_subject = bootstrap_counts(n_subjects, samples, rng=rng)
    by_stimulus = bootstrap_counts(n_stimuli, samples, rng=rng)
    ones = np.ones_like(by_subject)
    drawn: dict[str, np.ndarray] = {}
    if over in ("subjects", "both"):
        drawn["subjects"] = _weighted_mean(score[None], by_subject)
    if over in ("stimuli", "both"):
        drawn["stimuli"] = np.full((samples, n_predictors, n_regions), np.nan)
        if over == "both":
            drawn["both"] = drawn["stimuli"].copy()

        def resample(chunk: slice, regions: list[int]) -> None:
            who = present[:, regions].T
            found = brain[:, regions].transpose(1, 0, 2)[who]
            for part, scores in bootstrap_scores(
                models, found, by_stimulus[chunk], comparison=comparison
            ):
                rows = slice(chunk.start + part.start, chunk.start + part.stop)
                cube = np.full((len(scores), n_predictors, len(regions), n_subjects), np.nan)
                cube[:, :, who] = scores
                drawn["stimuli"][rows, :, regions] = _weighted_mean(cube, ones[rows])
                if "both" in drawn:
                    drawn["both"][rows, :, regions] = _weighted_mean(cube, by_subject[rows])

        import dask

        tasks = [
            dask.delayed(resample)(slice(s, min(s + _SAMPLES_A_TASK, samples)), regions)
            for regions in masks.values()
            for s in range(0, samples, _SAMPLES_A_TASK)
        ]
        with parallel.dask_workers(threads):
            dask.compute(*tasks)

    variances = {key: np.nanvar(value, axis=0, ddof=1) for key, value in drawn.items()}
    counted = np.maximum(present.sum(axis=0), 1)[None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        if over == "both":
            variance = dual_bootstrap_variance(
                variances["both"],
                variances["subjects"],
                variances["stimuli"],
                n_subjects=counted,
                n_stimuli=n_stimuli,
            )
            freedom = np.minimum(counted, n_stimuli) - 1
        elif over == "subjects":
            variance = variances["subjects"] * counted / (counted - 1.0)
            freedom = counted - 1
        elif over == "stimuli":
            variance = variances["stimuli"] * n_stimuli / (n_stimuli - 1.0)
            freedom = np.full_like(counted, n_stimuli - 1)
        else:
            variance, freedom = np.full_like(mean, np.nan), np.zeros_like(counted)
        error = np.sqrt(np.maximum(variance, np.finfo(np.float64).eps))
        error = np.where(freedom > 0, error, np.nan)
        freedom = np.maximum(freedom, 1)
        half = stats.t.ppf(0.975, freedom) * error
        p = stats.t.sf(mean / error, freedom)
    p[:, counted[0] < 2] = np.nan
    return {
        "score": score,
        "mean": mean,
        "interval_low": mean - half,
        "interval_high": mean + half,
        "p": p,
        "ceiling_low": ceiling[0],
        "ceiling_high": ceiling[1],
    }


def _weighted_mean(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return means over the last axis with the samples' subject counts, NaN scores left out.

    Parameters
    ----------
    scores
        Shape (n_samples or 1, n_predictors, n_regions, n_subjects).
    counts
        Shape (n_samples, n_subjects).
    """
    there = np.isfinite(scores)
    weights = counts.astype(np.float64)
    total = np.einsum("bprs,bs->bpr", np.where(there, scores, 0.0), weights)
    weight = np.einsum("bprs,bs->bpr", there.astype(np.float64), weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / np.where(weight > 0, weight, np.nan)
