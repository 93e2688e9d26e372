"""Encoding scores by region, over subjects."""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from isocortex import bids, provenance, store
from isocortex.encoding.maps import legend, regions_of_voxels, write_map
from isocortex.errors import InputError
from isocortex.multiple_tests import CORRECTIONS, correct_p

logger = logging.getLogger(__name__)

INDIVIDUAL_SPACES = ("T1w", "bold", "boldref", "func", "scanner", "none")  # no common anatomy


def one_sample_inference(
    scores: np.ndarray, *, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean, interval and p-value of correlations over subjects.

    Parameters
    ----------
    scores
        Correlations (r, never r2, whose mean is above 0 by chance alone), shape (..., subjects);
        NaN for subjects without a score.
    confidence
        Coverage of the interval.

    Returns
    -------
    mean, low, high, p
        Shape (...). Mean and t interval of Fisher z, transformed back to r; p of the one-sided
        one-sample t-test of z above 0. With fewer than two subjects interval and p are NaN.
    """
    import scipy.stats  # here, because fitting a subject should not wait for its import

    z = np.arctanh(np.clip(np.asarray(scores, float), -1 + 1e-9, 1 - 1e-9))
    n = np.isfinite(z).sum(-1)
    enough = n > 1
    safe = np.maximum(n, 1)
    mean = np.where(n > 0, np.nansum(z, -1) / safe, np.nan)
    deviation = np.nansum((z - mean[..., None]) ** 2, -1)
    error = np.sqrt(deviation / np.maximum(n - 1, 1) / safe)
    freedom = np.maximum(n - 1, 1)
    margin = np.where(enough, error * scipy.stats.t.ppf(0.5 + confidence / 2, freedom), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = mean / error
    # No spread at all: certain where the mean is above 0, no evidence otherwise
    t = np.where(error > 0, t, np.where(mean > 0, np.inf, -np.inf))
    p = np.where(enough, scipy.stats.t.sf(t, freedom), np.nan)
    return np.tanh(mean), np.tanh(mean - margin), np.tanh(mean + margin), p


def summarise_encoding(
    *,
    stores: Sequence[Path],
    regions: Sequence[Path] = (),
    labels: Path | None = None,
    out: Path,
    table: Path,
    maps: Path,
    responsive_ceiling: float = 0.1,
    correction: str = "holm",
    confidence: float = 0.95,
    code: str = "",
) -> Path:
    """Write the study's encoding summary: store, table and group maps.

    Parameters
    ----------
    stores
        Encoding stores of all subjects and models of one task.
    regions
        One label image a subject, on the grid of its stores; its name holds `sub-<label>`.
    labels
        Table of index and name of the regions. Without regions and labels (voxels that are on no
        grid) all voxels are one region, `all`.
    out
        The store.
    table
        Tab-separated: one row a predictor and region.
    maps
        Folder for NIfTI maps of the group: mean r of the best predictor, and which one is best.
        Written where all subjects share a grid in a common space; a JSON file says so otherwise.
    responsive_ceiling
        Voxels count whose explainable share of single-trial variance is at least this. Subjects
        without repeats, hence without ceilings, count with all voxels, and are listed in attrs.
    correction
        `holm`, `fdr` or `none`, over all predictors and regions.
    confidence
        Coverage of the interval.
    code
        Code version, for the manifest.

    Returns
    -------
    Path
        The manifest of the store.

    Raises
    ------
    InputError
        Where regions are missing for a subject or lie on another grid.
    """
    if correction not in CORRECTIONS:
        raise InputError(
            f"unknown correction {correction!r} in encoding.summary.correction: write one of "
            f"{', '.join(CORRECTIONS)}"
        )
    names = bids.read_labels(labels) if labels else {1: "all"}
    by_subject = {bids.entities(Path(path).name)[0].get("sub", ""): Path(path) for path in regions}
    opened = [store.open(path, "encoding") for path in stores]
    if not opened:
        raise InputError("no encoding stores to summarise: name at least one subject and model")
    subjects = list(dict.fromkeys(str(data.attrs["subject"]) for data in opened))
    missing = [subject for subject in subjects if subject not in by_subject]
    if labels and missing:
        raise InputError(f"no regions for subject {missing[0]}: add its label image")
    predictors = list(
        dict.fromkeys(
            (str(data.attrs["model"]), str(layer))
            for data in opened
            for layer in data["layer"].values
        )
    )
    shape = (len(predictors), len(names), len(subjects))
    score, normalised = np.full(shape, np.nan), np.full(shape, np.nan)
    n_voxels = np.zeros(shape[1:], np.int32)
    without_ceiling = []
    region_of: dict[str, np.ndarray] = {}
    for data in opened:
        subject = str(data.attrs["subject"])
        column = subjects.index(subject)
        if subject not in region_of:
            region_of[subject] = (
                regions_of_voxels(by_subject[subject], data, data.attrs, where=f"subject {subject}")
                if labels
                else np.ones(data.sizes["voxel"], int)
            )
        ceiling = data["noise_ceiling"].values.astype(float)
        responsive = np.isfinite(data["score"].values).any(0)
        if np.isfinite(ceiling).any():
            responsive &= np.nan_to_num(ceiling) ** 2 >= responsive_ceiling
        elif subject not in without_ceiling:
            without_ceiling.append(subject)
        values, over_ceiling = data["score"].values, data["score_normalised"].values
        rows = [
            predictors.index((str(data.attrs["model"]), str(layer)))
            for layer in data["layer"].values
        ]
        for index, label in enumerate(names):
            members = responsive & (region_of[subject] == label)
            n_voxels[index, column] = members.sum()
            if members.any():
                score[rows, index, column] = _mean(values[:, members])
                normalised[rows, index, column] = _mean(over_ceiling[:, members])

    mean, low, high, p = one_sample_inference(score, confidence=confidence)
    corrected = correct_p(p, correction=correction)
    n_subjects = np.isfinite(score).sum(-1).astype(np.int32)
    texts = [f"{model}/{layer}" for model, layer in predictors]
    ranking = np.nan_to_num(mean, nan=-np.inf)
    best = [
        texts[int(ranking[:, index].argmax())] if np.isfinite(mean[:, index]).any() else ""
        for index in range(len(names))
    ]
    by_predictor = ("predictor", "region")
    attrs = {
        "task": str(opened[0].attrs["task"]),
        "test": "one-sided one-sample t-test over subjects of Fisher z of the mean r",
        "interval_level": confidence,
        "interval": f"{100 * confidence:g}% t interval of Fisher z, as r",
        "correction": correction
        if correction == "none"
        else f"{correction} over {int(np.isfinite(p).sum())} predictors x regions",
        "responsive_ceiling": responsive_ceiling,
        "subjects_without_ceiling": without_ceiling,
        "few_subjects": len(subjects) < 2,
    }
    if attrs["few_subjects"]:
        logger.warning("one subject: encoding scores have no p-values")
    _write_table(
        Path(table), predictors, names, mean, low, high, p, corrected, n_subjects, n_voxels, best
    )
    attrs["maps"] = _write_group_maps(
        Path(maps), opened, subjects, texts, attrs["task"], predictors
    )
    result = xr.Dataset(
        {
            "score": (("predictor", "region", "subject"), score),
            "score_normalised": (("predictor", "region", "subject"), normalised),
            "mean": (by_predictor, mean),
            "interval_low": (by_predictor, low),
            "interval_high": (by_predictor, high),
            "p": (by_predictor, p),
            "p_corrected": (by_predictor, corrected),
            "n_subjects": (by_predictor, n_subjects),
            "best_predictor": ("region", np.array(best, dtype=object)),
            "n_voxels": (("region", "subject"), n_voxels),
        },
        coords={
            "predictor": np.array(texts, dtype=object),
            "model": ("predictor", np.array([model for model, _ in predictors], dtype=object)),
            "layer": ("predictor", np.array([layer for _, layer in predictors], dtype=object)),
            "region": np.array(list(names.values()), dtype=object),
            "subject": np.array(subjects, dtype=object),
        },
        attrs=attrs,
    )
    return store.write(
        result,
        out,
        spec="encoding_summary",
        sources=[*stores, *regions, *([labels] if labels else [])],
        code=code,
    )


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over voxels of finite values, shape (layers,); NaN where there is none."""
    finite = np.isfinite(values)
    count = finite.sum(1)
    total = np.where(finite, values, 0).sum(1, dtype=float)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _write_table(
    path, predictors, names, mean, low, high, p, corrected, n_subjects, n_voxels, best
) -> None:
    """One row a predictor and region; n/a for what is not defined."""

    def text(value: float) -> str:
        return f"{value:.6g}" if np.isfinite(value) else "n/a"

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(
            [
                "region",
                "model",
                "layer",
                "r",
                "interval_low",
                "interval_high",
                "p",
                "p_corrected",
                "n_subjects",
                "mean_n_voxels",
                "best",
            ]
        )
        for column, region in enumerate(names.values()):
            for row, (model, layer) in enumerate(predictors):
                numbers = [array[row, column] for array in (mean, low, high, p, corrected)]
                row_best = int(f"{model}/{layer}" == best[column])
                tail = [n_subjects[row, column], text(n_voxels[column].mean()), row_best]
                writer.writerow([region, model, layer, *map(text, numbers), *tail])


def _write_group_maps(folder, opened, subjects, texts, task, predictors) -> str:
    """Write the group's maps where there is one grid; return what was done, in words."""
    folder.mkdir(parents=True, exist_ok=True)
    first = opened[0].attrs
    same = all(
        data.attrs["space"] == first["space"]
        and list(data.attrs["shape"]) == list(first["shape"])
        and np.allclose(data.attrs["affine"], first["affine"], atol=1e-3)
        for data in opened
    )
    if not same or first["space"] in INDIVIDUAL_SPACES:
        text = f"no group maps: subjects have no common grid (space {first['space']})"
        provenance.write_json(folder / f"task-{task}_maps.json", {"Description": text})
        logger.warning(text)
        return text
    size = int(np.prod(first["shape"]))
    total = np.zeros((len(predictors), size))
    count = np.zeros((len(predictors), size), int)
    for data in opened:
        voxels = np.ravel_multi_index([data[axis].values for axis in "ijk"], first["shape"])
        for layer, values in zip(data["layer"].values, data["score"].values, strict=True):
            row = predictors.index((str(data.attrs["model"]), str(layer)))
            finite = np.isfinite(values)
            total[row, voxels[finite]] += values[finite]
            count[row, voxels[finite]] += 1
    # Only voxels that every subject has: otherwise maps change with who happens to cover them
    everywhere = np.flatnonzero((count == len(subjects)).all(0))
    mean = total[:, everywhere] / len(subjects)
    best = mean.argmax(0)
    voxels = np.stack(np.unravel_index(everywhere, first["shape"]), axis=1)
    stem = f"task-{task}_space-{first['space']}_"
    geometry = {"shape": first["shape"], "affine": first["affine"]}
    write_map(folder / f"{stem}stat-r_statmap.nii.gz", mean.max(0), voxels, **geometry)
    path = folder / f"{stem}desc-bestpredictor_dseg.nii.gz"
    write_map(path, best + 1, voxels, dtype=np.int16, **geometry)
    provenance.write_json(folder / f"{stem}desc-bestpredictor_dseg.json", {"Levels": legend(texts)})
    return f"mean over {len(subjects)} subjects at {len(everywhere)} voxels that all have"
