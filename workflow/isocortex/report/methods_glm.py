"""The methods text of single-trial responses, out of the betas stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from isocortex.report.page import count, join


def response_sentences(betas: Sequence[xr.Dataset], cite: Any, version: Any) -> list[str]:
    """Say how responses were estimated, and what was chosen over subjects.

    Parameters
    ----------
    betas
        Betas stores of the study, at least one.
    cite
        Numbers references.
    version
        A package's name with its version.

    Returns
    -------
    list of str
        What the first store tells of itself, named as such where the others tell otherwise, then
        what holds for all.
    """
    attrs = betas[0].attrs
    texts = [str(ds.attrs.get("methods", "")).strip() for ds in betas]
    told = texts[0] or (
        f"Single-trial responses were estimated by {attrs['estimator']}, haemodynamic response: "
        f"{attrs.get('hrf', 'not recorded')}."
    )
    if len(set(texts)) > 1:
        told = (
            f"Subject {attrs['subject']}, task {attrs['task']} (the reports of the others say "
            f"where their numbers differ): {told}"
        )
    sentences = [
        told,
        f"Design matrices follow {version('nilearn')} {cite('nilearn', 'friston')}.",
    ]
    if any("each trial separately" in str(ds.attrs.get("estimator")) for ds in betas):
        sentences.append(
            "Models of single trials (least squares separate) follow "
            f"{cite('least_squares_separate')}."
        )
    fits = [fit for ds in betas for fit in _optimised(ds.attrs)]
    if fits:
        sentences.append(_chosen(fits, betas))
        sentences.append(
            "The recipe of noise components, regularisation and responses chosen by voxel is that "
            f"of GLMdenoise, fractional ridge regression and GLMsingle "
            f"{cite('glmdenoise', 'fractional', 'glmsingle')}."
        )
    if any(np.isfinite(ds["ncsnr"].values).any() for ds in betas):
        intervals = any("ncsnr_low" in ds for ds in betas)
        sentences.append(
            "Signal, noise and noise ceiling of single-trial responses are those of the Natural "
            f"Scenes Dataset {cite('nsd')}"
            + (
                ", with intervals of the random-effects analysis of variance, unequal numbers of "
                f"repeats by their harmonic mean {cite('harmonic_mean')}."
                if intervals
                else "."
            )
        )
    return sentences


def _optimised(attrs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What the optimised estimator put down, of all runs or of each half."""
    fits = [attrs, *(attrs.get("halves") or [])]
    return [fit for fit in fits if "noise_components" in fit]


def _chosen(fits: Sequence[Mapping[str, Any]], betas: Sequence[xr.Dataset]) -> str:
    """How many noise components each subject has."""
    different = sorted({int(fit["noise_components"]) for fit in fits})
    told = (
        join([str(n) for n in different])
        if len(different) <= 3
        else f"{different[0]} to {different[-1]}"
    )
    subjects = len({str(ds.attrs["subject"]) for ds in betas})
    halves = ", in each half of the runs" if len(fits) > len(betas) else ""
    return (
        f"Of {count(subjects, 'subject')}{halves}, the number of noise components that were taken "
        f"out of a run is {told}."
    )
