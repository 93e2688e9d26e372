"""The universal encoder of all subjects of a task, cross-validated over stimuli."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from isocortex import provenance, store
from isocortex.device import deterministic, select_device
from isocortex.encoding.design import (
    Responses,
    choose_voxels,
    open_responses,
    rows_of_stimuli,
    scatter,
)
from isocortex.encoding.fit_readout import (
    checkpoint_folder,
    loss_table,
    mean_over_folds,
    readable_layers,
)
from isocortex.encoding.folds import MIN_TEST_STIMULI
from isocortex.encoding.maps import write_maps
from isocortex.encoding.readouts.training import FeatureMaps, Trained
from isocortex.encoding.scores import normalise, pearson, r2
from isocortex.encoding.universal import (
    Responders,
    TrainedNetwork,
    UniversalVoxels,
    fit_embeddings,
    train_network,
)
from isocortex.errors import InputError

logger = logging.getLogger(__name__)

VALIDATION_PART = 6  # every so many training stimuli stop the training
BLOCK = 4096  # voxels that are read and scored at a time


@dataclass(frozen=True)
class StimulusFold:
    """Rows to fit to, to stop by and to test on, of all subjects alike."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def stimulus_folds(n_stimuli: int, *, folds: int = 5, seed: int = 0) -> list[StimulusFold]:
    """Deal stimuli to folds that hold for all subjects.

    A stimulus that one subject is tested on trains the network through no other subject either.

    Parameters
    ----------
    n_stimuli
        Number of different stimuli over all subjects.
    folds
        Number of folds, fewer where one would have less than three stimuli.
    seed
        Of the deal.

    Raises
    ------
    InputError
        Where there are too few stimuli for two folds.
    """
    n_folds = min(folds, n_stimuli // MIN_TEST_STIMULI)
    if n_folds < 2:
        raise InputError(
            f"{n_stimuli} different stimuli over all subjects: a universal encoder needs at least "
            f"{2 * MIN_TEST_STIMULI} to predict stimuli that it was not trained on"
        )
    order = np.random.default_rng(seed).permutation(n_stimuli)
    found = []
    for number in range(n_folds):
        rest = order[np.arange(n_stimuli) % n_folds != number]
        found.append(_split(rest, np.sort(order[number::n_folds])))
    return found


def _split(among: np.ndarray, test: np.ndarray) -> StimulusFold:
    """Part of the rows stops training."""
    validates = np.arange(len(among)) % VALIDATION_PART == 0
    return StimulusFold(np.sort(among[~validates]), np.sort(among[validates]), test)


class _Subject:
    """One subject's trials, by row of the features."""

    def __init__(self, responses: Responses, row_of: Mapping[str, int], n_folds: int) -> None:
        self.of = responses
        self.row = np.array([row_of[str(s)] for s in responses.samples["stimulus"]])
        run_names = list(dict.fromkeys(responses.samples["run"]))
        number = {name: index for index, name in enumerate(run_names)}
        self.run = np.array([number[name] for name in responses.samples["run"]])
        n_groups = min(n_folds, len(run_names))
        self.group = self.run * n_groups // len(run_names)
        shown = np.unique(np.stack([self.row, self.group]), axis=1)[0]
        # Runs are held out, too, where stimuli come again in other runs
        recur = len(np.unique(shown)) < len(shown)
        self.n_groups = n_groups if recur and n_groups > 1 else 0

    def samples(self, fold: StimulusFold, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Which samples train (or stop training), and which test: masks."""
        trains = np.isin(self.row, np.concatenate([fold.train, fold.validation]))
        tests = np.isin(self.row, fold.test)
        if self.n_groups and len(fold.test):
            held_out = self.group == number % self.n_groups
            trains, tests = trains & ~held_out, tests & held_out
        return trains, tests

    def blocks(self, trains: np.ndarray):
        """Blocks of voxels: which, and their responses centred within each run.

        The centre is the mean of the run's training samples, in a held-out run of all: no test
        sample shifts a training sample.
        """
        average = np.zeros((self.run.max() + 1, len(self.run)))
        for run in range(len(average)):
            mine = self.run == run
            used = mine & trains if (mine & trains).any() else mine
            average[run, used] = 1 / used.sum()
        for first in range(0, self.of.n_voxels, BLOCK):
            last = min(first + BLOCK, self.of.n_voxels)
            values = self.of.read(first, last).astype(np.float64)
            with np.errstate(invalid="ignore"):
                yield slice(first, last), values - (average @ values)[self.run]

    def responders(self, trains: np.ndarray) -> Responders:
        """Means over the training samples of each stimulus."""
        rows, place, counts = np.unique(self.row[trains], return_inverse=True, return_counts=True)
        average = np.zeros((len(rows), len(self.row)))
        average[place, np.flatnonzero(trains)] = 1 / counts[place]
        table = np.empty((len(rows), self.of.n_voxels), np.float32)
        for voxels, values in self.blocks(trains):
            table[:, voxels] = average @ values
        return Responders(rows, table, counts)

    def scores(self, prediction: np.ndarray, fold: StimulusFold, trains, tests) -> np.ndarray:
        """r and r2 of the test samples, shape (2, voxels)."""
        score = np.full((2, self.of.n_voxels), np.nan)
        if len(np.unique(self.row[tests])) < MIN_TEST_STIMULI:
            return score
        position = np.searchsorted(fold.test, self.row[tests])
        for voxels, values in self.blocks(trains):
            predicted = torch.from_numpy(prediction[position, voxels]).double()
            truth = torch.from_numpy(values[tests])
            usable = torch.isfinite(predicted).all(0) & torch.isfinite(truth).all(0)
            predicted, truth = (torch.where(usable, part, 0.0) for part in (predicted, truth))
            for row, measure in enumerate((pearson, r2)):
                score[row, voxels] = torch.where(usable, measure(predicted, truth), torch.nan)
        return score


def fit_universal(
    *,
    responses: Sequence[Path],
    features: Path,
    out: Path,
    maps: Path,
    name: str,
    new_subjects: Sequence[str] = (),
    layers: Sequence[str] | None = None,
    folds: int = 5,
    voxels: str = "responsive",
    regions: Sequence[Path] = (),
    region_labels: Path | None = None,
    dimension: int = 64,
    width: int = 64,
    heads: int = 1,
    frequencies: int = 4,
    epochs: int = 100,
    patience: int = 15,
    batch_size: int = 64,
    voxel_batch: int = 1024,
    learning_rate: float = 0.005,
    weight_decay: float = 0.01,
    precision: str = "auto",
    min_ceiling: float = 0.05,
    device: str = "auto",
    seed: int = 0,
    threads: int = 1,
    code: str = "",
) -> Path:
    """Write the store and the maps of one task's universal encoder.

    Parameters
    ----------
    responses, features
        Betas stores of the task's subjects; a features store.
    out, maps
        The store, and a folder for NIfTI maps of r and of r over its noise ceiling, by subject.
    name
        Of the encoder in the config.
    new_subjects
        Labels of subjects that have no part in training the network: their embeddings alone are
        fitted.
    layers
        Layers to read; by default all of the model.
    folds
        Of stimuli: as many networks are trained, and one on all stimuli for the embeddings.
    voxels
        Which are fitted, see `isocortex.encoding.design.choose_voxels`: the others have no score.
    regions, region_labels
        For `voxels`: a label image for each of the responses, in their order, and the table of
        index and name of all.
    dimension, width, heads, frequencies, epochs, patience, batch_size, voxel_batch
        See `isocortex.encoding.universal.train_network`; epochs, patience and batches also hold
        for the embeddings.
    learning_rate, weight_decay, precision
        As there.
    min_ceiling
        Least explainable share of variance for which scores are normalised.
    device
        `auto`, `cpu` or `cuda`.
    seed
        Of the deal of stimuli to folds, initial values and order of steps: the study's.
    threads
        Cores.
    code
        Code version, for the manifest.

    Returns
    -------
    Path
        The manifest of the store.

    Raises
    ------
    InputError
        Where a new subject is not there or nobody is left to train on, responses are not of
        trials, a stimulus has no features, or a subject has too few stimuli.

    Notes
    -----
    The network is trained on the subjects that are not new; then everyone's embeddings, new or
    not, are fitted with the network as it is, with early stopping of each voxel.
    Folds of stimuli hold for all subjects. Where a subject sees stimuli again in other runs, test
    trials also come from runs that did not train, as in `isocortex.encoding.fit_encoding`.
    The means over trials of all subjects' stimuli are held in memory at once.
    A killed job goes on where it was, as in `isocortex.encoding.fit_readout`.
    """
    where, out = select_device(device, key="encoding.device"), Path(out)
    opened = [open_responses(path) for path in responses]
    _check(opened, new_subjects, name)
    opened = [
        choose_voxels(
            of,
            voxels,
            min_ceiling=min_ceiling,
            regions=image,
            region_labels=region_labels,
            key=f"encoding.universal.{name}.voxels",
        )
        for of, image in zip(opened, regions or [None] * len(opened), strict=True)
    ]
    opened.sort(key=lambda of: of.subject)
    used = readable_layers(Path(features), UniversalVoxels, layers, name=name, section="universal")
    stimuli = sorted({str(s) for of in opened for s in of.samples["stimulus"]})
    row_of = {stimulus: row for row, stimulus in enumerate(stimuli)}
    split = stimulus_folds(len(stimuli), folds=folds, seed=seed)
    people = [_Subject(of, row_of, len(split)) for of in opened]
    # Last the fit to all stimuli, which tests nothing
    order = np.random.default_rng(seed).permutation(len(stimuli))
    split.append(_split(order, np.empty(0, int)))
    architecture = {
        "dimension": dimension,
        "width": width,
        "heads": heads,
        "frequencies": frequencies,
    }
    settings = {
        "epochs": epochs,
        "patience": patience,
        "batch_size": batch_size,
        "voxel_batch": voxel_batch,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "precision": precision,
        "seed": seed,
    }
    key = {
        "settings": settings | architecture | {"device": where.type, "folds": folds},
        "layers": list(used),
        "voxels": [provenance.digest_bytes(of.voxels.tobytes()) for of in opened],
        "new": sorted(new_subjects),
        "inputs": [store.manifest(of.path)["content"] for of in opened]
        + [store.manifest(Path(features))["content"]],
        "code": code,
    }
    states = checkpoint_folder(out, key)
    networks, scores, fitted = [], [], []
    with deterministic(threads):
        loaded, model = _load(Path(features), used, stimuli)
        for number, fold in enumerate(split):
            last = number == len(split) - 1
            label = f"{name}, " + ("all stimuli" if last else f"fold {number + 1}/{len(split) - 1}")
            network, fitted, score = _fit_fold(
                people,
                loaded,
                fold,
                number,
                new=new_subjects,
                device=where,
                label=label,
                states=states / f"fold-{number}",
                architecture=architecture,
                **settings,
            )
            networks.append(network)
            if not last:
                scores.append(score)
    score, explained = mean_over_folds(scores)
    result = _dataset(opened, used, score, explained, fitted, networks, min_ceiling)
    runs_held_out = [person.of.subject for person in people if person.n_groups]
    result.attrs |= {
        "space": str(opened[0].attrs["space"]),
        "affine": {of.subject: of.attrs["affine"] for of in opened},
        "shape": {of.subject: of.attrs["shape"] for of in opened},
        "task": opened[0].task,
        "model": model,
        "name": name,
        "subjects": [of.subject for of in opened],
        "new_subjects": sorted(new_subjects),
        "n_trials": {of.subject: len(of.used) for of in opened},
        "voxels": voxels,
        "n_voxels_left_out": {of.subject: of.stored.n_voxels - of.n_voxels for of in opened},
        "folds": f"{len(split) - 1} folds of {len(stimuli)} stimuli, the same for all subjects",
        "runs_held_out": runs_held_out,
        **settings,
        **architecture,
        "min_ceiling": min_ceiling,
        "device": where.type,
        "score_average": "plain mean over folds of the score of a fold's test trials",
    }
    _write_maps(Path(maps), result)
    sources = [*(of.path for of in opened), features, *regions]
    sources += [region_labels] if region_labels is not None else []
    manifest = store.write(result, out, spec="universal", sources=sources, code=code)
    shutil.rmtree(states.parent, ignore_errors=True)
    logger.info(
        "%s: %d subjects, %s; %d voxels, %d left out",
        name,
        len(opened),
        result.attrs["folds"],
        sum(of.n_voxels for of in opened),
        sum(result.attrs["n_voxels_left_out"].values()),
    )
    return manifest


def _check(opened: Sequence[Responses], new_subjects: Sequence[str], name: str) -> None:
    """Refuse what cannot be trained together."""
    labels = [of.subject for of in opened]
    for subject in new_subjects:
        if subject not in labels:
            raise InputError(
                f"subject {subject} in encoding.universal.{name}.new_subjects has no responses: "
                f"choose from {', '.join(labels)}"
            )
    if not set(labels) - set(new_subjects):
        raise InputError(
            f"encoding.universal.{name}.new_subjects names all subjects: leave at least one to "
            "train the network on"
        )
    for of in opened:
        if of.kind != "trials":
            raise InputError(
                f"encoding.universal.{name} predicts trials, but {of.path} has volumes: leave "
                "its task out of encoding.universal"
            )


def _load(
    features: Path, layers: Sequence[str], stimuli: Sequence[str]
) -> tuple[dict[str, np.ndarray], str]:
    """Feature maps in the order of the stimuli, by layer, and the name of the model."""
    loaded, model = {}, ""
    for layer in layers:
        data = store.open(features, "features", group=layer)
        rows = rows_of_stimuli(data, stimuli, features, "the study")
        loaded[layer] = np.asarray(data["activation"].values, np.float32)[rows]
        model = str(data.attrs["model"])
    return loaded, model


def _fit_fold(
    people: Sequence[_Subject],
    loaded: Mapping[str, np.ndarray],
    fold: StimulusFold,
    number: int,
    *,
    new: Sequence[str],
    device: torch.device,
    label: str,
    states: Path,
    architecture: Mapping[str, int],
    **settings: Any,
) -> tuple[TrainedNetwork, list[Trained], np.ndarray]:
    """Train on one fold; everyone's embeddings, r and r2 (2, locations)."""
    feature_maps = FeatureMaps(
        loaded, np.sort(np.concatenate([fold.train, fold.validation])), device=device
    )
    known, masks = [], []
    for person in people:
        masks.append(person.samples(fold, number))
        known.append(person.responders(masks[-1][0]))
        for what, rows in (("train", fold.train), ("stop training", fold.validation)):
            if not np.isin(rows, known[-1].rows).any():
                raise InputError(
                    f"{person.of.name} has no stimulus to {what} with in {label}: take the subject "
                    "out with exclude, or set folds of encoding.universal lower"
                )
    share = [i for i, person in enumerate(people) if person.of.subject not in new]
    rows = {"train_rows": fold.train, "validation_rows": fold.validation}
    network = train_network(
        feature_maps,
        [known[i] for i in share],
        **rows,
        **architecture,
        **settings,
        checkpoint=states / "network.pt",
        label=label,
    )
    fitted, scores = [], []
    for index, person in enumerate(people):
        one = fit_embeddings(
            network,
            feature_maps,
            known[index],
            known=share.index(index) if index in share else None,
            **rows,
            # Without a test the network describes all stimuli
            predict_rows=fold.test if len(fold.test) else fold.train,
            **settings,
            checkpoint=states / f"sub-{person.of.subject}",
            label=f"{label}, sub-{person.of.subject}",
        )
        fitted.append(one)
        scores.append(
            person.scores(one.prediction, fold, *masks[index])
            if len(fold.test)
            else np.full((2, person.of.n_voxels), np.nan)
        )
    return network, fitted, np.concatenate(scores, axis=1)


def _dataset(
    opened: Sequence[Responses],
    layers: Sequence[str],
    score: np.ndarray,
    explained: np.ndarray,
    fitted: Sequence[Trained],
    networks: Sequence[TrainedNetwork],
    min_ceiling: float,
) -> xr.Dataset:
    """What the store holds; subjects one after another."""
    ceiling = np.concatenate([of.ceiling for of in opened])
    by_location = {
        "score": score,
        "r2": explained,
        "score_normalised": normalise(score, ceiling, min_ceiling=min_ceiling),
        "r2_normalised": normalise(explained, ceiling, power=2, min_ceiling=min_ceiling),
        "noise_ceiling": ceiling,
    }
    variables = {key: ("location", value.astype(np.float32)) for key, value in by_location.items()}
    for key, dims in (
        ("embedding", ("component", "location")),
        ("layer_weight", ("layer", "location")),
    ):
        joined = np.concatenate([one.results[key] for one in fitted], axis=-1)
        variables[key] = (dims, joined.astype(np.float32))
    n_epochs = np.array([len(network.training_loss) for network in networks], np.int32)
    for key in ("training_loss", "validation_loss"):
        table = loss_table([getattr(network, key) for network in networks])
        variables[key] = (("fold", "epoch"), table)
    variables["n_epochs"] = ("fold", n_epochs)
    subjects = np.concatenate([np.full(of.n_voxels, of.subject, dtype=object) for of in opened])
    coords = {
        "layer": np.array(layers, dtype=object),
        "subject": ("location", subjects),
        **{
            axis: ("location", np.concatenate([of.coords[axis] for of in opened])) for axis in "ijk"
        },
    }
    result = scatter(xr.Dataset(variables, coords=coords), opened, dim="location")
    everyone = [np.full(of.stored.n_voxels, of.subject, dtype=object) for of in opened]
    return result.assign_coords(subject=("location", np.concatenate(everyone)))


def _write_maps(folder: Path, result: xr.Dataset) -> None:
    attrs = result.attrs
    for subject in attrs["subjects"]:
        mine = result.isel(location=np.flatnonzero(result["subject"].values == subject))
        mine = mine.assign_attrs({key: attrs[key][subject] for key in ("affine", "shape")})
        maps = {
            "stat-r_statmap": mine["score"].values,
            "stat-rnormalised_statmap": mine["score_normalised"].values,
        }
        stem = f"sub-{subject}_task-{attrs['task']}_universal-{attrs['name']}"
        write_maps(folder, stem, maps, mine, names=())
