"""RDMs as arrays: the order of pairs, reading stores of subjects and models, joining by id.

An RDM of n stimuli is kept as the vector of its n(n-1)/2 pairs, row by row of the upper triangle,
stimuli in the sorted order of their ids. Everything here joins by id, never by position.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from isocortex import store
from isocortex.errors import InputError

MINIMUM_STIMULI = 4


@dataclass(frozen=True)
class BrainRDMs:
    """RDMs of several subjects over one set of stimuli.

    Attributes
    ----------
    dissimilarity
        float64, shape (n_subjects, n_regions, n_pairs). NaN where a pair could not be measured,
        and throughout where a subject lacks a region.
    n_voxels
        int32, shape (n_subjects, n_regions); 0 where a subject lacks the region, -1 where it is
        not known.
    subjects, regions, stimuli
        Labels; subjects and stimuli sorted, regions in the order of the first store.
    task, measure
        As in the stores, the same in all of them.
    groups
        Members of each row of the RDMs where rows are conditions, else empty.
    n_stimuli_dropped
        Stimuli that not all subjects saw, left out.
    """

    dissimilarity: np.ndarray
    n_voxels: np.ndarray
    subjects: tuple[str, ...]
    regions: tuple[str, ...]
    stimuli: tuple[str, ...]
    task: str
    measure: str
    groups: Mapping[str, tuple[str, ...]]
    n_stimuli_dropped: int

    @property
    def present(self) -> np.ndarray:
        """Whether a subject has a region: bool, shape (n_subjects, n_regions)."""
        return np.isfinite(self.dissimilarity).any(axis=-1)


@dataclass(frozen=True)
class ModelRDMs:
    """RDMs of the layers of several models over one set of stimuli.

    Attributes
    ----------
    dissimilarity
        float64, shape (n_predictors, n_pairs).
    predictors, models, layers
        One text each per row; a predictor is named ``model/layer``.
    stimuli
        The stimuli, in the order that was asked for.
    """

    dissimilarity: np.ndarray
    predictors: tuple[str, ...]
    models: tuple[str, ...]
    layers: tuple[str, ...]
    stimuli: tuple[str, ...]


def pair_indices(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of the pairs of n stimuli, row by row of the upper triangle."""
    return np.triu_indices(n, 1)


def pair_labels(stimuli: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of the first and second stimulus of every pair, as object arrays."""
    names = np.array([str(s) for s in stimuli], dtype=object)
    i, j = pair_indices(len(names))
    return names[i], names[j]


def to_matrices(vectors: np.ndarray, *, diagonal: float = 0.0) -> np.ndarray:
    """Return square symmetric matrices from pair vectors.

    Parameters
    ----------
    vectors
        Shape (..., n_pairs).
    diagonal
        What stands on the diagonals.

    Returns
    -------
    numpy.ndarray
        Shape (..., n, n), the dtype of the vectors.
    """
    vectors = np.asarray(vectors)
    n = n_stimuli(vectors.shape[-1])
    i, j = pair_indices(n)
    square = np.full((*vectors.shape[:-1], n, n), diagonal, dtype=vectors.dtype)
    square[..., i, j] = vectors
    square[..., j, i] = vectors
    return square


def to_vectors(matrices: np.ndarray) -> np.ndarray:
    """Return pair vectors (..., n_pairs) from the upper triangles of matrices (..., n, n)."""
    i, j = pair_indices(matrices.shape[-1])
    return matrices[..., i, j]


def n_stimuli(n_pairs: int) -> int:
    """Return the number of stimuli whose pairs are ``n_pairs``; `ValueError` if there is none."""
    n = round((1 + np.sqrt(1 + 8 * n_pairs)) / 2)
    if n < 2 or n * (n - 1) // 2 != n_pairs:
        raise ValueError(f"{n_pairs} is not n(n-1)/2 for any number of stimuli n")
    return n


def stimuli_of(dataset: xr.Dataset) -> tuple[str, ...]:
    """Return the sorted stimulus ids of an ``rdms`` or ``model_rdms`` store."""
    return tuple(sorted({*dataset["stimulus_i"].values, *dataset["stimulus_j"].values}))


def select_pairs(dataset: xr.Dataset, stimuli: Sequence[str]) -> np.ndarray:
    """Return a store's dissimilarities between the given stimuli, in their order.

    Parameters
    ----------
    dataset
        An ``rdms`` or ``model_rdms`` store, its pairs in any order.
    stimuli
        Ids, all in the store.

    Returns
    -------
    numpy.ndarray
        float64, shape (rows of the store, n_pairs).
    """
    names = stimuli_of(dataset)
    index = {name: k for k, name in enumerate(names)}
    values = dataset["dissimilarity"].values.astype(np.float64)
    square = np.full((len(values), len(names), len(names)), np.nan)
    i = np.array([index[s] for s in dataset["stimulus_i"].values])
    j = np.array([index[s] for s in dataset["stimulus_j"].values])
    square[:, i, j] = values
    square[:, j, i] = values
    chosen = np.array([index[s] for s in stimuli])
    return to_vectors(square[:, chosen[:, None], chosen[None, :]])


def load_rdms(paths: Sequence[str | Path]) -> BrainRDMs:
    """Read the RDMs of several subjects, over the stimuli that all of them have.

    Parameters
    ----------
    paths
        ``rdms`` stores, one a subject, of one task and measure.

    Raises
    ------
    InputError
        Where stores differ in task or measure, a subject comes twice, or fewer than
        4 stimuli are common to all subjects.
    """
    if not paths:
        raise InputError("no RDM stores were given: name at least one subject")
    stores = [store.open(path, "rdms") for path in paths]
    subjects = [str(s.attrs["subject"]) for s in stores]
    order = np.argsort(np.array(subjects), kind="stable")
    stores = [stores[k] for k in order]
    files = [Path(paths[k]) for k in order]
    subjects = [subjects[k] for k in order]
    for k, subject in enumerate(subjects[1:], start=1):
        if subject == subjects[k - 1]:
            raise InputError(f"subject {subject} comes twice ({files[k]}): keep one of its stores")
    for key in ("task", "measure"):
        for file, opened in zip(files, stores):
            if opened.attrs[key] != stores[0].attrs[key]:
                raise InputError(
                    f"{key} is {opened.attrs[key]!r} in {file} and {stores[0].attrs[key]!r} in "
                    f"{files[0]}: compare RDMs of one {key} only"
                )
    stimuli = sorted(set.intersection(*(set(stimuli_of(s)) for s in stores)))
    everything = set.union(*(set(stimuli_of(s)) for s in stores))
    if len(stimuli) < MINIMUM_STIMULI:
        raise InputError(
            f"only {len(stimuli)} stimuli are common to subjects {', '.join(subjects)}: at least "
            f"{MINIMUM_STIMULI} are needed; exclude the subject that saw others"
        )
    regions = list(dict.fromkeys(str(r) for s in stores for r in s["region"].values))
    n_pairs = len(stimuli) * (len(stimuli) - 1) // 2
    dissimilarity = np.full((len(stores), len(regions), n_pairs), np.nan)
    n_voxels = np.zeros((len(stores), len(regions)), dtype=np.int32)
    groups: dict[str, set[str]] = {}
    for k, opened in enumerate(stores):
        rows = [regions.index(str(r)) for r in opened["region"].values]
        dissimilarity[k, rows] = select_pairs(opened, stimuli)
        n_voxels[k, rows] = opened["n_voxels"].values if "n_voxels" in opened else -1
        for name, members in json.loads(opened.attrs.get("groups", "{}")).items():
            groups.setdefault(name, set()).update(members)
    return BrainRDMs(
        dissimilarity=dissimilarity,
        n_voxels=n_voxels,
        subjects=tuple(subjects),
        regions=tuple(regions),
        stimuli=tuple(stimuli),
        task=str(stores[0].attrs["task"]),
        measure=str(stores[0].attrs["measure"]),
        groups={name: tuple(sorted(groups[name])) for name in sorted(groups) if name in stimuli},
        n_stimuli_dropped=len(everything) - len(stimuli),
    )


def align_models(
    paths: Sequence[str | Path],
    stimuli: Sequence[str],
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> ModelRDMs:
    """Read the RDMs of several models over the brain's stimuli, joined by id.

    Parameters
    ----------
    paths
        ``model_rdms`` stores, one a model.
    stimuli
        Ids of the brain RDMs' rows; those that only the models have are left out.
    groups
        Where the brain's rows are conditions: the stimuli of each. The models' dissimilarity of
        two conditions is then the mean over the pairs of their stimuli.

    Raises
    ------
    InputError
        Where a model lacks a stimulus of the brain, or comes twice.

    Notes
    -----
    A model given as RDMs may have the conditions themselves as stimuli; it is taken as it is.
    """
    if not paths:
        raise InputError(
            "no model RDMs were given: name at least one model in features.models or "
            "input.model_rdms"
        )
    members = {s: tuple(groups[s]) if groups else (s,) for s in stimuli}
    wanted = tuple(sorted({m for names in members.values() for m in names}))
    average = np.array([[name in members[s] for name in wanted] for s in stimuli], dtype=float)
    average /= average.sum(axis=1, keepdims=True)
    position = {name: k for k, name in enumerate(wanted)}
    order = np.array([position[members[s][0]] for s in stimuli])

    rows: list[np.ndarray] = []
    models: list[str] = []
    layers: list[str] = []
    for path in paths:
        opened = store.open(path, "model_rdms")
        model = str(opened.attrs["model"])
        if model in models:
            raise InputError(f"model {model} comes twice ({path}): keep one of its stores")
        known = stimuli_of(opened)
        if groups and set(stimuli) <= set(known):
            rows.append(select_pairs(opened, stimuli))
        else:
            _check_stimuli(opened, path, known, wanted, stimuli if groups else ())
            square = to_matrices(select_pairs(opened, wanted))
            if groups:
                rows.append(to_vectors(average @ square @ average.T))
            else:
                rows.append(to_vectors(square[:, order[:, None], order[None, :]]))
        names = [str(name) for name in opened["layer"].values]
        models += [model] * len(names)
        layers += names
    return ModelRDMs(
        dissimilarity=np.concatenate(rows),
        predictors=tuple(f"{m}/{n}" for m, n in zip(models, layers)),
        models=tuple(models),
        layers=tuple(layers),
        stimuli=tuple(stimuli),
    )


def _check_stimuli(
    opened: xr.Dataset,
    path: str | Path,
    known: Sequence[str],
    wanted: Sequence[str],
    conditions: Sequence[str],
) -> None:
    """Raise `InputError` where a model lacks stimuli that subjects saw."""
    missing = sorted(set(wanted) - set(known))
    if not missing:
        return
    if str(opened.attrs["measure"]) != "given":
        raise InputError(
            f"{path} has no features of {len(missing)} stimuli that subjects saw "
            f"({', '.join(missing[:3])}): add their files to the stimuli"
        )
    instead = f", or of all conditions ({', '.join(conditions[:3])})" if conditions else ""
    raise InputError(
        f"the given RDMs of model {opened.attrs['model']} lack {len(missing)} of {len(wanted)} "
        f"stimuli that subjects saw ({', '.join(missing[:3])}); their ids are as in "
        f"{', '.join(known[:3])}: correct the ids or the files that input.model_rdms names, so "
        f"that they are of all stimuli{instead}"
    )
