"""Encoding scores by region, over subjects."""

import csv
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from isocortex import bids, provenance, store
from isocortex.encoding.differences import (
    ModelScores,
    scores_without,
    select_layers,
    stimulus_differences,
    stimulus_influence,
    subject_differences,
)
from isocortex.encoding.families import family_relations
from isocortex.encoding.hierarchy import spatial_inference
from isocortex.encoding.inference import one_sample_inference
from isocortex.encoding.maps import legend, regions_of_voxels, write_map
from isocortex.errors import InputError
from isocortex.multiple_tests import CORRECTIONS, correct_p

logger = logging.getLogger(__name__)

INDIVIDUAL_SPACES = ("T1w", "bold", "boldref", "func", "scanner", "none")  # no common anatomy
DEPTHS = ("best", "mean")
MEANS = ("score", "score_normalised", "r2", "r2_normalised")
STIMULUS_BLOCK = 40.0  # s of a continuous task that are resampled together


def summarise_encoding(
    *,
    stores: Sequence[Path],
    joint: Sequence[Path] = (),
    readouts: Sequence[Path] = (),
    regions: Sequence[Path] = (),
    labels: Path | None = None,
    out: Path,
    table: Path,
    maps: Path,
    responsive_ceiling: float = 0.1,
    correction: str = "holm",
    confidence: float = 0.95,
    hierarchy: Sequence[str] = (),
    depth: str = "best",
    families: Mapping[str, Mapping[str, float]] | None = None,
    seed: int = 0,
    code: str = "",
) -> Path:
    """Write the study's encoding summary: store, table and group maps.

    Parameters
    ----------
    stores
        Encoding stores of all subjects and models of one task.
    joint, readouts
        Stores of its joint models and readouts: predictors `joint/<name>` and `readout/<name>`,
        whose model is that and whose layer is the name.
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
    hierarchy
        Regions from low to high: spatial scores are computed where there are any.
    depth
        Of a model in a region: `best`, the layer with the highest mean r, or `mean`, the mean
        over voxels of the number of their best layer.
    families
        A number above 0 for each model of a factor, such as its size.
    seed
        Of permutations of regions and models.
    code
        Code version, for the manifest.

    Returns
    -------
    Path
        The manifest of the store.

    Raises
    ------
    InputError
        Where regions are missing for a subject or lie on another grid, or the hierarchy names
        others.
    """
    families = families or {}
    if depth not in DEPTHS:
        raise InputError(f"unknown encoding.summary.depth {depth!r}: write best or mean")
    if correction not in CORRECTIONS:
        raise InputError(
            f"unknown correction {correction!r} in encoding.summary.correction: write one of "
            f"{', '.join(CORRECTIONS)}"
        )
    names = bids.read_labels(labels) if labels else {1: "all"}
    by_subject = {bids.entities(Path(path).name)[0].get("sub", ""): Path(path) for path in regions}
    for name in hierarchy:
        if name not in names.values():
            raise InputError(
                f"encoding.summary.hierarchy names {name!r}, which is no region: choose from "
                f"{', '.join(names.values())}"
            )
    opened = [
        *(store.open(path, "encoding") for path in stores),
        *(_as_layer(store.open(path, "encoding_joint"), "joint", "joint") for path in joint),
        *(_as_layer(store.open(path, "readout"), "readout", "name") for path in readouts),
    ]
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
    candidates = list(dict.fromkeys(model for model, _ in predictors))
    shape = (len(predictors), len(names), len(subjects))
    means = {key: np.full(shape, np.nan) for key in MEANS}
    depths = np.full((len(candidates), len(subjects), len(names)), np.nan)
    n_voxels = np.zeros(shape[1:], np.int32)
    without_ceiling, fewer_voxels = [], []
    region_of: dict[tuple, np.ndarray] = {}
    for data in opened:
        subject = str(data.attrs["subject"])
        column = subjects.index(subject)
        # Joint models and readouts may keep to voxels in regions
        grid = (subject, *(data[axis].values.tobytes() for axis in "ijk"))
        if grid not in region_of:
            region_of[grid] = (
                regions_of_voxels(by_subject[subject], data, data.attrs, where=f"subject {subject}")
                if labels
                else np.ones(data.sizes["voxel"], int)
            )
        ceiling = data["noise_ceiling"].values.astype(float)
        values = {key: data[key].values for key in MEANS if key in data}
        responsive = np.isfinite(values["score"]).any(0)
        if np.isfinite(ceiling).any():
            responsive &= np.nan_to_num(ceiling) ** 2 >= responsive_ceiling
        elif subject not in without_ceiling:
            without_ceiling.append(subject)
        model = str(data.attrs["model"])
        rows = [predictors.index((model, str(layer))) for layer in data["layer"].values]
        for index, label in enumerate(names):
            members = responsive & (region_of[grid] == label)
            # A readout may lack voxels that linear models have
            if members.sum() < n_voxels[index, column] and model not in fewer_voxels:
                fewer_voxels.append(model)
            n_voxels[index, column] = max(n_voxels[index, column], members.sum())
            if members.any():
                for key, array in values.items():
                    means[key][rows, index, column] = _mean(array[:, members])
                depths[candidates.index(model), column, index] = _depth(
                    values["score"][:, members], depth
                )
    score = means["score"]
    if fewer_voxels:
        logger.warning(
            "%s: fewer voxels in some region than other models, so their means are not of the same "
            "voxels: set encoding.min_ceiling to at most encoding.summary.responsive_ceiling",
            ", ".join(fewer_voxels),
        )

    mean, low, high, p = one_sample_inference(score, confidence=confidence)
    corrected = correct_p(p, correction=correction)
    n_subjects = np.isfinite(score).sum(-1).astype(np.int32)
    texts = [_label(model, layer) for model, layer in predictors]
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
        "models_with_fewer_voxels": fewer_voxels,
        "few_subjects": len(subjects) < 2,
    }
    if attrs["few_subjects"]:
        logger.warning("one subject: encoding scores have no p-values")
    _write_table(
        Path(table), predictors, names, mean, low, high, p, corrected, n_subjects, n_voxels, best
    )
    attrs["maps"] = _write_group_maps(
        Path(maps), *_mapped(opened, predictors), subjects, task=attrs["task"]
    )
    models = [model for model, _ in predictors]
    selected = select_layers(score, models, candidates)
    left_out = scores_without(score, models, candidates)
    further = _models(
        selected, left_out, predictors=predictors, candidates=candidates, confidence=confidence
    )
    regional = list(names.values())
    further |= _spatial(
        depths, regional, hierarchy, correction=correction, confidence=confidence, seed=seed
    )
    further |= _families(
        families,
        candidates,
        selected.score,
        left_out=left_out,
        spatial=further.get("spatial_score"),
        seed=seed,
    )
    over_stimuli = _over_stimuli(
        opened,
        selected,
        candidates,
        subjects,
        predictors=predictors,
        names=regional,
        confidence=confidence,
    )
    further |= over_stimuli
    attrs |= {
        "hierarchy": list(hierarchy),
        "depth": depth,
        "over_stimuli": bool(over_stimuli),
    }
    result = xr.Dataset(
        {
            **{
                key: (("predictor", "region", "subject"), values)
                for key, values in means.items()
                if not key.startswith("r2") or np.isfinite(values).any()
            },
            **further,
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
        sources=[*stores, *joint, *readouts, *regions, *([labels] if labels else [])],
        code=code,
    )


def _as_layer(data: xr.Dataset, kind: str, key: str) -> xr.Dataset:
    """A store of one prediction as an encoding store of one layer, named after it."""
    name = str(data.attrs[key])
    arrays = [array for array in MEANS if array in data]
    return (
        data[[*arrays, "noise_ceiling", *"ijk"]]
        .assign({array: data[array].expand_dims("layer") for array in arrays})
        .assign_coords(layer=np.array([name], dtype=object))
        .assign_attrs(model=f"{kind}/{name}")
    )


def _label(model: str, layer: str) -> str:
    """Label of a predictor: model/layer, joint/name or readout/name."""
    return model if model in (f"joint/{layer}", f"readout/{layer}") else f"{model}/{layer}"


def _depth(score: np.ndarray, depth: str) -> float:
    """How deep in a model the layer is that predicts a region best; NaN with a single layer."""
    scored = np.isfinite(score).any(0)
    if len(score) < 2 or not scored.any():
        return np.nan
    if depth == "mean":
        return float(np.nan_to_num(score[:, scored], nan=-np.inf).argmax(0).mean())
    return float(np.nan_to_num(_mean(score), nan=-np.inf).argmax())


def _models(
    selected: ModelScores,
    left_out: Sequence[np.ndarray],
    *,
    predictors: Sequence[tuple[str, str]],
    candidates: Sequence[str],
    confidence: float,
) -> dict[str, object]:
    """Arrays of models at their best layer, and of their differences over subjects."""
    layers = np.array([*(layer for _, layer in predictors), ""], dtype=object)  # -1 is none
    found = subject_differences(selected.score, left_out, confidence=confidence)
    return {
        "model_score": (("candidate", "region", "subject"), selected.score),
        "model_layer": (("candidate", "region"), layers[selected.best]),
        **_pairs("difference", found),
        "candidate": np.array(candidates, dtype=object),
        "other": np.array(candidates, dtype=object),
    }


def _pairs(prefix: str, found: Mapping[str, np.ndarray]) -> dict[str, tuple]:
    """Arrays over pairs of models under the names that the store has for them."""
    return {
        prefix if key == "difference" else f"{prefix}_{key}": (
            ("candidate", "other", "region"),
            values,
        )
        for key, values in found.items()
    }


def _spatial(
    depths: np.ndarray,
    names: Sequence[str],
    hierarchy: Sequence[str],
    *,
    correction: str,
    confidence: float,
    seed: int,
) -> dict[str, tuple]:
    """Arrays of spatial scores, where there is a hierarchy."""
    if not hierarchy:
        return {}
    place = np.array([hierarchy.index(n) + 1.0 if n in hierarchy else np.nan for n in names])
    score, mean, low, high, p = spatial_inference(depths, place, confidence=confidence, seed=seed)
    of_models = {
        "spatial_mean": mean,
        "spatial_low": low,
        "spatial_high": high,
        "spatial_p": p,
        "spatial_p_corrected": correct_p(p, correction=correction),
    }
    return {
        "region_place": ("region", place),
        "spatial_score": (("candidate", "subject"), score),
        **{key: ("candidate", values) for key, values in of_models.items()},
    }


def _families(
    families: Mapping[str, Mapping[str, float]],
    candidates: Sequence[str],
    score: np.ndarray,
    *,
    left_out: Sequence[np.ndarray],
    spatial: tuple | None,
    seed: int,
) -> dict[str, object]:
    """Arrays of how scores go with each factor, where there are any."""
    if not families:
        return {}
    keys = ("slope", "rho", "p", "p_models")
    value = np.array(
        [
            [float(of_models.get(candidate, np.nan)) for candidate in candidates]
            for of_models in families.values()
        ]
    )
    found = [family_relations(score, factor, left_out=left_out, seed=seed) for factor in value]
    arrays = {
        f"family_{key}": (("factor", "region"), np.stack(values))
        for key, values in zip(keys, zip(*found, strict=True), strict=True)
    }
    if spatial is not None:
        found = [family_relations(spatial[1], factor, seed=seed) for factor in value]
        arrays |= {
            f"family_spatial_{key}": ("factor", np.stack(values))
            for key, values in zip(keys, zip(*found, strict=True), strict=True)
        }
    return {
        **arrays,
        "family_value": (("factor", "candidate"), value),
        "factor": np.array(list(families), dtype=object),
    }


def _over_stimuli(
    opened: Iterable[xr.Dataset],
    selected: ModelScores,
    candidates: Sequence[str],
    subjects: Sequence[str],
    *,
    predictors: Sequence[tuple[str, str]],
    names: Sequence[str],
    confidence: float,
) -> dict[str, tuple]:
    """Arrays of differences over stimuli, where encoding stores say what each stimulus adds."""
    opened = [
        data
        for data in opened
        if "agreement" in data and set(names) <= set(map(str, data["region"].values))
    ]
    units = [_units(data) for data in opened]
    number: dict[str, int] = {}
    for of_store in units:
        for unit in of_store:
            number.setdefault(unit, len(number))
    found = {}
    for data, of_store in zip(opened, units, strict=True):
        model, subject = str(data.attrs["model"]), str(data.attrs["subject"])
        row, column = candidates.index(model), subjects.index(subject)
        layer = {
            predictors.index((model, str(name))): index
            for index, name in enumerate(data["layer"].values)
        }
        regions = list(map(str, data["region"].values))
        agreement = np.full((len(names), data.sizes["stimulus"]), np.nan)
        values = data["agreement"].values
        for index, name in enumerate(names):
            chosen = selected.chosen[row, index, column]
            if chosen in layer:
                agreement[index] = values[layer[chosen], regions.index(name)]
        which = np.array([number[unit] for unit in of_store])
        found[row, column] = stimulus_influence(agreement, which, len(number))
    if not found:
        return {}
    shape = (len(candidates), len(names), len(subjects))
    return _pairs("stimulus_difference", stimulus_differences(found, shape, confidence=confidence))


def _units(data: xr.Dataset) -> list[str]:
    """What each stimulus of a store is resampled with: itself, or its block of volumes."""
    stimuli = [str(stimulus) for stimulus in data["stimulus"].values]
    if data.attrs.get("kind") != "volumes":
        return stimuli
    size = max(1, round(STIMULUS_BLOCK / float(data.attrs["TR"])))
    units = []
    for stimulus in stimuli:
        run, _, volume = stimulus.rpartition("#")
        units.append(f"{run}#{int(volume) // size}")
    return units


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
                row_best = int(_label(model, layer) == best[column])
                tail = [n_subjects[row, column], text(n_voxels[column].mean()), row_best]
                writer.writerow([region, model, layer, *map(text, numbers), *tail])


def _mapped(opened, predictors) -> tuple[list, list]:
    """Stores and predictors, without joint models and readouts that keep to some voxels."""
    number = [int(np.isfinite(data["score"].values).any(0).sum()) for data in opened]
    most: dict[str, int] = {}
    for data, n in zip(opened, number, strict=True):
        most[data.attrs["subject"]] = max(most.get(data.attrs["subject"], 0), n)
    partial = {
        str(data.attrs["model"])
        for data, n in zip(opened, number, strict=True)
        if n < most[data.attrs["subject"]] and "/" in str(data.attrs["model"])
    }
    return (
        [data for data in opened if str(data.attrs["model"]) not in partial],
        [predictor for predictor in predictors if predictor[0] not in partial],
    )


def _write_group_maps(folder, opened, predictors, subjects, *, task) -> str:
    """Write the group's maps where there is one grid; return what was done, in words."""
    texts = [_label(model, layer) for model, layer in predictors]
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
