"""RDM stores: of a subject's regions from betas, of a model's layers from features."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from isocortex import parallel, store
from isocortex.bids import read_table
from isocortex.errors import InputError
from isocortex.rsa import noise as noise_models
from isocortex.rsa.dissimilarity import (
    CROSS_VALIDATED,
    MEAN_DISTANCES,
    MEASURES,
    WHITENED,
    crossnobis_distance,
    crossnobis_in_own_noise,
    poisson_cv_distance,
)
from isocortex.rsa.patterns import constant_patterns, mean_patterns
from isocortex.rsa.rdms import MINIMUM_STIMULI, pair_labels, to_vectors

logger = logging.getLogger(__name__)

AVERAGES = ("stimulus", "condition")
NOISE_SOURCES = ("residuals", "betas", "none")
MODEL_MEASURES = ("correlation", "cosine", "euclidean")
_MODEL_BLOCK = 1 << 16
_VOXELS_A_BLOCK = 1 << 10


def compute_rdms(
    *,
    betas: str | Path,
    regions: str | Path,
    region_labels: str | Path,
    out: str | Path,
    measure: str,
    average_by: str = "stimulus",
    min_voxels: int = 10,
    noise_normalisation: Mapping[str, str] | None = None,
    code: str = "",
    threads: int = 1,
) -> Path:
    """Compute the RDM of every region of one subject and write the ``rdms`` store.

    Parameters
    ----------
    betas
        ``betas`` store.
    regions
        NIfTI of integer labels on the grid of the betas.
    region_labels
        Table with columns ``index`` and ``name``.
    out
        The store to write.
    measure
        Between the mean patterns of stimuli over runs: ``correlation`` (1 - Pearson r),
        ``cosine`` (1 - cosine), ``euclidean`` (squared, over the number of voxels),
        ``mahalanobis`` (that in units of the noise) or ``poisson`` (symmetrised divergence of
        counts); cross-validated over runs: ``crossnobis`` (Mahalanobis) or ``poissoncv``.
    average_by
        ``stimulus`` or ``condition``: what a row of the RDM is.
    min_voxels
        A region must have at least as many usable voxels.
    noise_normalisation
        For mahalanobis and crossnobis: ``source`` (``residuals`` of the GLM, ``betas`` around
        the means of their stimulus and run, or ``none``) and ``shrinkage``
        (`isocortex.rsa.noise.SHRINKAGES`).

    Returns
    -------
    pathlib.Path
        The manifest.

    Raises
    ------
    InputError
        Where grids differ, a region has too few voxels, a pattern has no correlation or cosine,
        counts are negative, or runs or residuals are lacking.

    Notes
    -----
    Voxels that are NaN in any trial or residual, or constant, are left out of their region and
    counted in the store.
    """
    if measure not in MEASURES:
        raise InputError(f"rsa.measures: {measure!r} is not one of {', '.join(MEASURES)}")
    opened = store.open(betas, "betas")
    subject = str(opened.attrs["subject"])
    where = f"{betas} (sub-{subject})"
    labels = row_labels(opened, average_by, where=where)
    runs = [str(run) for run in opened["run"].values]
    names, member = _voxels_of_regions(opened, regions, region_labels, where=where)
    settings = {"source": "residuals", "shrinkage": "shrinkage_diag", **(noise_normalisation or {})}
    source = settings["source"] if measure in WHITENED else "none"
    check_measure(opened, labels, runs, measure, settings["source"], where=where)

    used = np.flatnonzero(member.any(axis=0))
    beta = opened["beta"][:, used].values
    residual = opened["residual"][:, used].values if source == "residuals" else None
    usable = usable_voxels(beta)
    if residual is not None:
        usable &= usable_voxels(residual)
    chosen = [np.flatnonzero(inside & usable) for inside in member[:, used]]
    for name, columns in zip(names, chosen):
        if len(columns) < min_voxels:
            raise InputError(
                f"region {name} has {len(columns)} usable voxels in {where}, fewer than "
                f"rsa.min_voxels = {min_voxels}: lower it or take the region out of the atlas"
            )
    dof = opened.attrs.get("degrees_of_freedom")
    validation = "leave one run out" if measure in CROSS_VALIDATED else "none"
    by_fold = source == "betas" and measure == "crossnobis"
    if by_fold:
        by_fold = noise_models.fold_freedom(labels, runs) > 0
        validation += ", noise from the " + ("other runs" if by_fold else "same runs")
        if not by_fold:
            logger.warning(
                "%s: without one of its runs no stimulus is repeated, so the noise is estimated "
                "from the betas that it normalises: distances are above 0 without a difference",
                where,
            )
    analysis = _Analysis(
        measure=measure,
        labels=tuple(labels),
        runs=tuple(runs),
        source=source,
        shrinkage=settings["shrinkage"],
        by_fold=by_fold,
        residual_freedom=int(dof) if isinstance(dof, int | float) and dof > 0 else None,
        where=where,
    )
    stimuli = sorted(set(labels))
    rdms = list(
        parallel.map_blocks(
            _region_rdm,
            list(zip(names, chosen)),
            beta,
            residual,
            analysis,
            threads=threads,
            label=f"RDMs of sub-{subject}",
        )
    )
    dissimilarity = np.array(rdms)
    missing = int(np.isnan(dissimilarity[0]).sum())
    if missing:
        logger.warning("%s: %d pairs have fewer than 2 runs in common", where, missing)
    if missing == dissimilarity.shape[1]:
        raise InputError(
            f"no two stimuli share 2 runs in {where}: {measure} is not possible; choose "
            "correlation in rsa.measures"
        )
    dropped = {name: int((row & ~usable).sum()) for name, row in zip(names, member[:, used])}
    for name, count in dropped.items():
        if count:
            logger.warning("%s: %d NaN or constant voxels of %s left out", where, count, name)
    first, second = pair_labels(stimuli)
    dataset = xr.Dataset(
        {
            "dissimilarity": (("region", "pair"), dissimilarity),
        },
        coords={
            "region": ("region", np.array(names, dtype=object)),
            "stimulus_i": ("pair", first),
            "stimulus_j": ("pair", second),
            "n_voxels": ("region", (member[:, used] & usable).sum(axis=1).astype(np.int32)),
        },
        attrs={
            "subject": subject,
            "task": opened.attrs["task"],
            "measure": measure,
            "noise_normalisation": "none"
            if source == "none"
            else f"{source}, {settings['shrinkage']}",
            "cross_validation": validation,
            "n_voxels_dropped": dropped,
            "n_pairs_missing": missing,
            "n_runs": len(set(runs)),
            "average_by": average_by,
            "groups": json.dumps(condition_groups(opened, average_by), sort_keys=True),
        },
    )
    return store.write(
        dataset, out, spec="rdms", sources=[betas, regions, region_labels], code=code
    )


def row_labels(betas: xr.Dataset, average_by: str, *, where: str) -> list[str]:
    """Return the label that each trial has in the RDM, checked.

    Parameters
    ----------
    betas
        ``betas`` store.
    average_by
        ``stimulus`` or ``condition``.
    where
        File and subject, for the error.
    """
    if average_by not in AVERAGES:
        raise InputError(f"rsa.average_by: {average_by!r} is not one of {', '.join(AVERAGES)}")
    labels = [str(label) for label in betas[average_by].values]
    empty = sum(label in ("", "n/a") for label in labels)
    if empty:
        raise InputError(
            f"{empty} trials in {where} have no {average_by}: fill the column in events.tsv or "
            f"set rsa.average_by to {AVERAGES[average_by == 'stimulus']}"
        )
    if len(set(labels)) < MINIMUM_STIMULI:
        raise InputError(
            f"{where} has {len(set(labels))} different values of {average_by}: RDMs need at "
            f"least {MINIMUM_STIMULI}; set rsa.average_by to "
            f"{AVERAGES[average_by == 'stimulus']} or add stimuli"
        )
    return labels


def usable_voxels(values: np.ndarray) -> np.ndarray:
    """Return which columns of (n_samples, n_voxels) are finite and not constant."""
    usable = np.empty(values.shape[1], dtype=bool)
    # In blocks, because residuals are large and what is computed of them here is as large.
    for start in range(0, len(usable), _VOXELS_A_BLOCK):
        block = values[:, start : start + _VOXELS_A_BLOCK]
        finite = np.isfinite(block).all(axis=0)
        # Not the SD: rounding leaves one of equal values, too.
        spread = np.ptp(np.where(finite, block, 0.0), axis=0)
        usable[start : start + _VOXELS_A_BLOCK] = finite & (spread > 0)
    return usable


def condition_groups(betas: xr.Dataset, average_by: str) -> dict[str, list[str]]:
    """Return the stimuli of each condition where rows are conditions (``average_by``)."""
    if average_by == "stimulus":
        return {}
    members: dict[str, set[str]] = {}
    for condition, stimulus in zip(betas["condition"].values, betas["stimulus"].values):
        members.setdefault(str(condition), set()).add(str(stimulus))
    return {name: sorted(found) for name, found in sorted(members.items())}


def check_measure(
    betas: xr.Dataset,
    labels: Sequence[str],
    runs: Sequence[str],
    measure: str,
    source: str,
    *,
    where: str,
    key: str = "rsa.measures",
) -> None:
    """Raise `InputError` where the data have no such measure, with what to choose instead.

    Parameters
    ----------
    betas
        ``betas`` store.
    labels, runs
        Of each trial.
    measure
        One of `MEASURES`.
    source
        Of the noise covariance.
    where
        File and subject, for the error.
    key
        Of the config, that the measure is from; the noise normalisation is beside it.
    """
    noise_key = f"{key.split('.')[0]}.noise_normalisation.source"
    if measure in CROSS_VALIDATED and len(set(runs)) < 2:
        raise InputError(
            f"{where} has one run: {measure} needs two or more; choose correlation in {key}"
        )
    if measure not in WHITENED:
        return
    if source not in NOISE_SOURCES:
        raise InputError(f"{noise_key}: {source!r} is not one of {', '.join(NOISE_SOURCES)}")
    if source == "none" and measure == "mahalanobis":
        raise InputError(
            f"{noise_key} is none, and mahalanobis is in units of the noise: choose euclidean in "
            f"{key}, or another source"
        )
    if source == "residuals" and not betas.sizes.get("time"):
        raise InputError(f"{where} holds no GLM residuals: set {noise_key} to betas or none")
    if source == "betas" and len(labels) <= len(set(labels)):
        raise InputError(
            f"no stimulus is repeated in {where}: set {noise_key} to residuals or none"
        )


@dataclass(frozen=True)
class _Analysis:
    """What the RDMs of all regions of a subject have in common."""

    measure: str
    labels: tuple[str, ...]
    runs: tuple[str, ...]
    source: str
    shrinkage: str
    by_fold: bool
    residual_freedom: int | None
    where: str


def _region_rdm(
    region: tuple[str, np.ndarray],
    beta: np.ndarray,
    residual: np.ndarray | None,
    analysis: _Analysis,
) -> np.ndarray:
    """Return the RDM of one region: its name and columns of the betas and residuals."""
    name, columns = region
    patterns = np.asarray(beta[:, columns], dtype=np.float64)
    measure, where = analysis.measure, f"region {name} in {analysis.where}"
    if measure.startswith("poisson") and (patterns < 0).any():
        raise InputError(
            f"betas of {where} are negative: {measure} is for counts; choose another of "
            "rsa.measures"
        )
    if analysis.source != "none" and not analysis.by_fold:
        noise = None if residual is None else residual[:, columns]
        patterns = _whitened(patterns, noise, analysis, where)
    if analysis.by_fold:
        return _in_own_noise(patterns, analysis, where)
    if measure == "crossnobis":
        return crossnobis_distance(patterns, analysis.labels, analysis.runs)[0]
    if measure == "poissoncv":
        return poisson_cv_distance(patterns, analysis.labels, analysis.runs)[0]
    means, stimuli, _ = mean_patterns(patterns, analysis.labels)
    undefined = {
        "correlation": ("constant", constant_patterns(means)),
        "cosine": ("zero", ~means.any(axis=1)),
    }
    kind, flat = undefined.get(measure, ("", np.zeros(1, dtype=bool)))
    if flat.any():
        raise InputError(
            f"the pattern of {stimuli[int(np.argmax(flat))]} is {kind} over {where}: no {measure} "
            "is defined; use the measure euclidean or leave the stimulus out"
        )
    return MEAN_DISTANCES[measure](means)


def _in_own_noise(patterns: np.ndarray, analysis: _Analysis, where: str) -> np.ndarray:
    """Return crossnobis distances in the noise of the trials, estimated anew in each fold."""
    freedom = noise_models.fold_freedom(analysis.labels, analysis.runs)
    _check_freedom(freedom, patterns.shape[1], analysis, where)
    try:
        return crossnobis_in_own_noise(
            patterns, analysis.labels, analysis.runs, method=analysis.shrinkage
        )[0]
    except np.linalg.LinAlgError as error:
        raise _not_invertible(where) from error


def _whitened(
    patterns: np.ndarray, residual: np.ndarray | None, analysis: _Analysis, where: str
) -> np.ndarray:
    """Return trials in units of the noise of a region, from residuals or the trials themselves."""
    if residual is not None:
        freedom = analysis.residual_freedom or len(residual) - 1
    else:
        residual, freedom = noise_models.measurement_residuals(
            patterns, analysis.labels, analysis.runs
        )
    _check_freedom(freedom, patterns.shape[1], analysis, where)
    covariance = noise_models.covariance(
        np.asarray(residual, dtype=np.float64),
        method=analysis.shrinkage,
        degrees_of_freedom=freedom,
    )
    try:
        return noise_models.whiten(patterns, covariance)
    except np.linalg.LinAlgError as error:
        raise _not_invertible(where) from error


def _check_freedom(freedom: int, n_voxels: int, analysis: _Analysis, where: str) -> None:
    """Raise `InputError` where noise has too few degrees of freedom for its covariance."""
    if freedom < 1:
        raise InputError(
            f"nothing is left of the betas of {where} without the means of their stimuli and "
            "runs: set rsa.noise_normalisation.source to residuals or none"
        )
    if analysis.shrinkage == "full" and freedom < n_voxels:
        raise InputError(
            f"{where} has {n_voxels} voxels and {freedom} degrees of freedom of noise: its full "
            "covariance cannot be inverted; set rsa.noise_normalisation.shrinkage to "
            "shrinkage_diag"
        )


def _not_invertible(where: str) -> InputError:
    return InputError(
        f"the noise covariance of {where} cannot be inverted: set "
        "rsa.noise_normalisation.shrinkage to shrinkage_diag"
    )


def _voxels_of_regions(
    betas: xr.Dataset, regions: str | Path, region_labels: str | Path, *, where: str
) -> tuple[list[str], np.ndarray]:
    """Return the regions' names and which voxels each has: bool, (n_regions, n_voxels)."""
    import nibabel as nib

    image = nib.load(regions)
    shape = tuple(int(n) for n in betas.attrs["shape"])
    if image.shape[:3] != shape or not np.allclose(image.affine, betas.attrs["affine"], atol=1e-3):
        raise InputError(
            f"{regions} is not on the grid of {where}: resample the atlas to its affine and shape"
        )
    volume = np.asarray(image.dataobj).reshape(shape)
    label = volume[betas["i"].values, betas["j"].values, betas["k"].values]
    rows = read_table(region_labels)
    if not rows or not {"index", "name"} <= set(rows[0]):
        raise InputError(f"{region_labels} lacks columns index and name: add them")
    names = [str(row["name"]) for row in rows]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{region_labels} names region {twice} twice: give each its own name")
    try:
        numbers = [int(row["index"]) for row in rows]
    except ValueError as error:
        raise InputError(
            f"{region_labels}: index is not a whole number ({error}): mend it"
        ) from error
    member = np.array([np.rint(label) == number for number in numbers])
    return names, member


def compute_model_rdms(
    *,
    features: str | Path,
    out: str | Path,
    model_measure: str = "correlation",
    code: str = "",
    threads: int = 1,
) -> Path:
    """Compute the RDM of every layer of a model and write the ``model_rdms`` store.

    Parameters
    ----------
    features
        ``features`` store.
    out
        The store to write.
    model_measure
        Over units: ``correlation`` (1 - Pearson r), ``cosine`` (1 - cosine) or ``euclidean``
        (squared, over the number of units).

    Raises
    ------
    InputError
        Where features are not finite, or a stimulus' features are constant (or zero).
    """
    if model_measure not in MODEL_MEASURES:
        raise InputError(
            f"rsa.model_measure: {model_measure!r} is not one of {', '.join(MODEL_MEASURES)}"
        )
    layers = store.groups(features)
    found = list(
        parallel.map_blocks(
            _layer_rdm, layers, str(features), model_measure, threads=threads, label="model RDMs"
        )
    )
    model, stimuli, _ = found[0]
    for layer, (_, others, _) in zip(layers, found):
        if others != stimuli:
            raise InputError(
                f"{features}: layer {layer} has other stimuli than {layers[0]}: extract again"
            )
    rows = [row for _, _, row in found]
    first, second = pair_labels(stimuli)
    dataset = xr.Dataset(
        {"dissimilarity": (("layer", "pair"), np.array(rows))},
        coords={
            "layer": ("layer", np.array(layers, dtype=object)),
            "stimulus_i": ("pair", first),
            "stimulus_j": ("pair", second),
        },
        attrs={"model": model, "measure": model_measure},
    )
    return store.write(dataset, out, spec="model_rdms", sources=[features], code=code)


def _layer_rdm(layer: str, features: str, measure: str) -> tuple[str, list[str], np.ndarray]:
    """Return the model's name, the sorted stimuli and the RDM of one layer."""
    opened = store.open(features, "features", group=layer)
    names = [str(s) for s in opened["stimulus"].values]
    order = np.argsort(np.array(names), kind="stable")
    stimuli = [names[k] for k in order]
    if len(set(stimuli)) < len(stimuli):
        raise InputError(f"{features}: layer {layer} has a stimulus twice: extract again")
    activation = opened["activation"].values.reshape(len(names), -1)[order]
    rdm = _feature_rdm(activation, stimuli, measure, where=f"{features} ({layer})")
    return str(opened.attrs["model"]), stimuli, rdm


def _feature_rdm(
    activation: np.ndarray, stimuli: Sequence[str], measure: str, *, where: str
) -> np.ndarray:
    """Return the RDM of (n_stimuli, n_units), in blocks of units so that no copy is made."""
    n, n_units = activation.shape
    finite = np.isfinite(activation).all(axis=1)
    if not finite.all():
        raise InputError(
            f"{where}: features of {stimuli[int(np.argmin(finite))]} are not finite: check the "
            "image and the model's weights"
        )
    blocks = [slice(s, s + _MODEL_BLOCK) for s in range(0, n_units, _MODEL_BLOCK)]
    kernel = np.zeros((n, n))
    if measure == "euclidean":
        for block in blocks:
            x = activation[:, block].astype(np.float64)
            x -= x.mean(axis=0)
            kernel += x @ x.T
        own = np.diag(kernel)
        return to_vectors(own[:, None] + own[None, :] - 2 * kernel) / n_units
    # Correlation is the cosine of patterns without their mean.
    mean = activation.mean(axis=1, dtype=np.float64)[:, None] if measure == "correlation" else 0.0
    for block in blocks:
        x = activation[:, block].astype(np.float64) - mean
        kernel += x @ x.T
    norm = np.sqrt(np.diag(kernel))
    flat = norm <= 1e-7 * np.sqrt(n_units) * np.maximum(np.abs(activation).max(axis=1), 1e-30)
    if flat.any():
        raise InputError(
            f"{where}: features of {stimuli[int(np.argmax(flat))]} are "
            f"{'constant' if measure == 'correlation' else 'zero'}, no {measure} is defined: set "
            "rsa.model_measure to euclidean or leave the layer out"
        )
    return 1.0 - to_vectors(kernel / np.outer(norm, norm))
