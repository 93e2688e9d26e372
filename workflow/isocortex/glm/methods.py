"""The methods text that a fit writes about itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from isocortex.glm.estimators import Estimates
from isocortex.glm.prepare import PreparedRun


def describe_methods(
    runs: Sequence[PreparedRun],
    counts: Mapping[str, int],
    *,
    estimates: Estimates,
    hrf: str,
    drift: str,
    high_pass: float,
    drift_order: int,
    trials: str,
    estimator: str,
    lss_others: str,
    noise_model: str,
    scaling: str,
    repeats: str,
    split_half: bool,
    ceiling: bool,
) -> str:
    """Return the methods text of what was done.

    Parameters
    ----------
    runs
        The runs that were fitted.
    counts
        Voxels that were left out, by reason.
    estimates
        Of the estimator, which may add sentences of its own.
    hrf, drift, high_pass, drift_order, trials, estimator, lss_others, noise_model, scaling, \
repeats, split_half
        See `isocortex.glm.fit.fit_glm`.
    ceiling
        Whether there is a noise ceiling.
    """
    unit = {
        "single": "each trial",
        "block": "each block of successive events of one condition",
        "condition": "each condition",
    }[trials]
    starts = sorted({run.start_time for run in runs})
    squares = {
        "ols": "ordinary least squares",
        "ar1": "generalised least squares (autoregressive noise of first order, estimated voxel by "
        "voxel from the residuals of ordinary least squares by Yule-Walker and rounded to "
        "hundredths, as nilearn does)",
    }[noise_model]
    how = f" by {squares}"
    response = f"the {hrf} haemodynamic response (nilearn)"
    if estimator == "optimised":
        how, response = "", "a haemodynamic response chosen for each voxel"
    sentences = [
        f"Responses were estimated run by run ({len(runs)} run{'s' if len(runs) > 1 else ''})"
        f"{how} with one regressor for {unit} of a run, convolved with {response}, together with "
        f"{nuisance_text(runs, drift=drift, high_pass=high_pass, drift_order=drift_order)}."
    ]
    if estimator == "lss":
        others = {
            "together": "one regressor for all other trials of the run",
            "condition": "one regressor for the other trials of each condition",
        }[lss_others]
        sentences.append(
            f"Each response comes from a model of its own, with one regressor for {unit} and "
            f"{others} (least squares separate, Mumford et al. 2012); residuals, explained "
            "variance and z-values are those of the model with all trials."
        )
    sentences += estimates.methods
    percent = {
        "run": "Responses are in percent of each voxel's mean over the run.",
        "session": "Responses are in percent of each voxel's mean over the runs of the session"
        + (" that are in the same half." if split_half else "."),
    }[scaling]
    sentences += [
        f"Volumes were placed in time at {', '.join(f'{start:g}' for start in starts)} s plus "
        f"multiples of the repetition time of {runs[0].tr:g} s.",
        percent,
    ]
    if repeats == "average":
        sentences.append(
            "Responses to one stimulus were averaged within a session"
            + (" and half." if split_half else ".")
        )
    if split_half:
        sentences.append(
            "Odd and even runs were analysed as two halves that share no information but which "
            "voxels all runs have."
        )
    single = " of single trials" if repeats == "average" else ""
    sentences.append(
        f"The noise ceiling{single} follows Allen et al. (2022); its 95 % interval is that of a "
        "random-effects analysis of variance."
        if ceiling
        else "Fewer than two stimuli repeat, so there is no noise ceiling."
    )
    if sum(counts.values()):
        left_out = sum(counts.values())
        sentences.append(
            f"{left_out} voxel{'s were' if left_out > 1 else ' was'} left out "
            f"({counts['n_voxels_nan']} with NaN, {counts['n_voxels_constant']} constant, "
            f"{counts['n_voxels_nonpositive_mean']} without a positive mean)."
        )
    return " ".join(sentences)


def nuisance_text(
    runs: Sequence[PreparedRun], *, drift: str, high_pass: float, drift_order: int
) -> str:
    """Return what the model has beside responses: drift and confounds."""
    drifts = {
        "cosine": f"a cosine drift set (high-pass {high_pass:g} Hz)",
        "polynomial": f"a polynomial drift of order {drift_order}",
        "none": "a constant",
    }[drift]
    names = sorted({name for run in runs for name in run.confounds})
    return drifts + (f" and {len(names)} confounds ({_listed(names)})" if names else "")


def _listed(names: Sequence[str]) -> str:
    """Return names in words, those that are numbered from the first to the last."""
    series: dict[str, list[str]] = {}
    for name in names:
        series.setdefault(re.sub(r"\d+$", "", name) if name[-2:].isdigit() else name, []).append(
            name
        )
    return ", ".join(
        one[0] if len(one) == 1 else f"{one[0]} to {one[-1]}" for one in series.values()
    )
