"""Prediction of one subject's responses from a model's feature maps through a readout."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
import xarray as xr

from isocortex import bids, provenance, store
from isocortex.device import deterministic, select_device
from isocortex.encoding.design import (
    Design,
    Responses,
    centre,
    choose_voxels,
    design_of,
    open_responses,
    scatter,
)
from isocortex.encoding.folds import CrossValidation, Fold
from isocortex.encoding.maps import regions_of_voxels, write_maps
from isocortex.encoding.readouts import KINDS, FeatureMaps, Readout, Trained, train
from isocortex.encoding.scores import high_enough, normalise, pearson, r2
from isocortex.errors import InputError

logger = logging.getLogger(__name__)

VALIDATION_SHARE = 0.2  # of the stimuli, where no inner split of the folds keeps stimuli apart
RESIDENT_BYTES = 512 << 20  # feature maps of a layer up to this size are kept in memory
SCORE_BLOCK = 4096  # voxels that are scored at a time
FIELD = ("x", "y", "size", "shift")


def fit_readout(
    *,
    responses: Path,
    features: Path,
    out: Path,
    maps: Path,
    name: str,
    kind: str,
    cross_validation: Mapping[str, Any],
    layers: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    folds: int | None = None,
    field_of_view: float | None = None,
    voxels: str = "responsive",
    regions: Path | None = None,
    region_labels: Path | None = None,
    epochs: int = 200,
    patience: int = 15,
    batch_size: int = 64,
    voxel_batch: int = 1024,
    learning_rate: float = 0.01,
    weight_decay: float = 0.0,
    precision: str = "auto",
    min_ceiling: float = 0.05,
    delays: Sequence[float] | None = None,
    device: str = "auto",
    seed: int = 0,
    threads: int = 1,
    code: str = "",
    **continuous: Any,
) -> Path:
    """Write the readout store and the maps of one subject, task and readout.

    Parameters
    ----------
    responses, features
        A betas or a timeseries store; a features store.
    out, maps
        The store, and a folder for NIfTI maps: r, the same over its noise ceiling, which layer
        weighs most (1 for the first) and, where the kind has them, x, y and size of the field and
        its mean shift by the content.
    name, kind
        Of the readout: in the config, and in `isocortex.encoding.readouts.KINDS`.
    cross_validation
        See `design_of`.
    layers
        Layers to read; by default all of the model that the kind can read.
    options
        Of the kind: see its class.
    folds
        Most outer folds to train, taken evenly from all; by default all of them.
    field_of_view
        Width of the image in degrees of visual angle: fields are in degrees then, otherwise in
        shares of the image's width.
    voxels
        Which are fitted, see `choose_voxels`: the others have no score.
    regions, region_labels
        Label image on the grid of the responses and its table of index and name, for kinds that
        use regions and for `voxels`.
    epochs, patience, batch_size, voxel_batch, learning_rate, weight_decay, precision
        See `isocortex.encoding.readouts.train`.
    min_ceiling
        Least explainable share of variance for which scores are normalised.
    delays, continuous
        Of volumes: see `isocortex.encoding.volumes.volume_design`.
    device
        `auto`, `cpu` or `cuda`.
    seed
        Of the deal of stimuli to folds, initial values and order of rows: the study's.
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
        Where there is no such kind, option, layer or device, a stimulus has no features, or
        regions are missing or on another grid.

    Notes
    -----
    What stops training and what chooses between initial values are rows of the training fold:
    the first inner split of the folds, or a fifth of the stimuli where that split does not keep
    stimuli apart. Test samples have no part in either, nor in standardising the features.
    A killed job goes on where it was: states are kept in a hidden folder beside the store until
    that is written.
    """
    if kind not in KINDS:
        raise InputError(
            f"unknown kind {kind!r} of readout {name!r}: choose from {', '.join(sorted(KINDS))}"
        )
    readout, out = KINDS[kind], Path(out)
    where = select_device(device, key="encoding.device")
    options = readout.complete(options or {}, key=f"encoding.readouts.{name}.options")
    of = choose_voxels(
        open_responses(responses),
        voxels,
        min_ceiling=min_ceiling,
        regions=regions,
        region_labels=region_labels,
        key=f"encoding.readouts.{name}.voxels",
    )
    used = readable_layers(Path(features), readout, layers, name=name)
    design = design_of(
        of,
        features,
        cross_validation=cross_validation,
        seed=seed,
        delays=delays,
        layers=used,
        **continuous,
    )
    labels, region_names = _regions(of, regions, region_labels)
    settings = {
        "epochs": epochs,
        "patience": patience,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "precision": precision,
    }
    key = {
        "settings": settings | {"voxel_batch": voxel_batch, "seed": seed, "device": where.type},
        "design": [list(used), dict(cross_validation), delays, continuous, folds],
        "kind": [kind, options],
        "inputs": [store.manifest(path)["content"] for path in (responses, features)],
        "regions": [int(label) for label in labels] if labels is not None else None,
        "voxels": provenance.digest_bytes(of.voxels.tobytes()),
        "code": code,
    }
    states = checkpoint_folder(out, key)
    numbers = _chosen(len(design.cv.folds), folds)
    trained: list[Trained] = []
    scores = []
    with deterministic(threads):
        loaded = _load_maps(design, states)
        for place, number in enumerate(numbers):
            one, score = _fit_fold(
                of,
                design.cv,
                design.cv.folds[number],
                loaded,
                readout,
                options,
                labels,
                voxel_batch=voxel_batch,
                device=where,
                seed=seed,
                checkpoint=states / f"fold-{number}",
                label=f"{name}, sub-{of.subject}, fold {place + 1}/{len(numbers)}",
                **settings,
            )
            trained.append(one)
            scores.append(score)
    score, explained = (mean_over_folds([fold[index] for fold in scores]) for index in (0, 1))
    arrays = _arrays(trained, field_of_view)
    normalised = normalise(score, of.ceiling, min_ceiling=min_ceiling)
    above = int((normalised > 1).sum())
    warning = f"{above} normalised scores are over 1: their noise ceilings are uncertain"
    if above:
        logger.warning("%s, readout %s: %s", of.name, name, warning)
    weight = arrays["layer_weight"]
    preferred = np.where(
        np.isfinite(weight).any(0), np.nan_to_num(weight, nan=-1).argmax(0), -1
    ).astype(np.int16)
    by_voxel = {
        "score": score,
        "r2": explained,
        "score_normalised": normalised,
        "noise_ceiling": of.ceiling,
        **{key: arrays[key] for key in FIELD if key in arrays},
    }
    n_epochs = [fold.n_epochs for fold in trained]
    coords = {
        "layer": np.array(used, dtype=object),
        **{axis: ("voxel", values) for axis, values in of.coords.items()},
    }
    variables = {key: ("voxel", values.astype(np.float32)) for key, values in by_voxel.items()}
    variables |= {
        "layer_weight": (("layer", "voxel"), weight.astype(np.float32)),
        "preferred_layer": ("voxel", preferred),
        "training_loss": (
            ("fold", "epoch"),
            loss_table([fold.training_loss for fold in trained]),
        ),
        "validation_loss": (
            ("fold", "epoch"),
            loss_table([fold.validation_loss for fold in trained]),
        ),
        "n_epochs": ("fold", np.array(n_epochs, np.int32)),
    }
    if trained[0].attention is not None:
        attention = np.nanmean(np.stack([fold.attention for fold in trained]), 0)
        variables["attention"] = (("query", "row", "column"), attention.astype(np.float32))
        by_region = region_names is not None and len(attention) == len(region_names)
        if options.get("queries") != "region" or not by_region:
            queries = [f"voxel {place}" for place in of.voxels[: len(attention)]]
        else:
            queries = region_names
        coords["query"] = np.array(queries, dtype=object)
    attrs = {
        **{key: of.attrs[key] for key in ("affine", "shape", "space")},
        "subject": of.subject,
        "task": of.task,
        "model": design.model,
        "name": name,
        "kind": kind,
        "options": options,
        **settings,
        "folds": design.cv.text,
        "folds_trained": [int(number) for number in numbers],
        "field_units": "degrees of visual angle" if field_of_view else "share of image width",
        "seed": seed,
        "device": where.type,
        "min_ceiling": min_ceiling,
        "score_average": "plain mean over folds of the score of a fold's test samples",
        "samples": of.kind,
        "n_samples": len(of.used),
        "voxels": voxels,
        "n_voxels_left_out": of.stored.n_voxels - of.n_voxels,
        "n_voxels_without_score": int((~np.isfinite(score)).sum()),
        "n_voxels_ceiling_too_low": int((~high_enough(of.ceiling, min_ceiling)).sum()),
        "n_scores_above_ceiling": above,
        "warning": warning if above else "",
    }
    result = scatter(xr.Dataset(variables, coords=coords, attrs=attrs), [of])
    _write_maps(Path(maps), result)
    logger.info(
        "%s, readout %s: %s; %d voxels, %d left out",
        of.name,
        name,
        design.cv.text,
        of.n_voxels,
        of.stored.n_voxels - of.n_voxels,
    )
    sources = [path for path in (responses, features, regions, region_labels) if path is not None]
    manifest = store.write(result, out, spec="readout", sources=sources, code=code)
    shutil.rmtree(states.parent, ignore_errors=True)
    return manifest


def readable_layers(
    features: Path,
    kind: type[Readout],
    layers: Sequence[str] | None,
    *,
    name: str,
    section: str = "readouts",
) -> tuple[str, ...]:
    """The layers that a readout reads: those asked for, or all of the model that it can.

    Raises
    ------
    InputError
        Where a layer is not there, has no space or tokens though the kind needs them, or none is
        left.
    """
    there = store.groups(features)
    for layer in layers or ():
        if layer not in there:
            raise InputError(
                f"layer {layer!r} of encoding.{section}.{name} is not in {features}: it has "
                + ", ".join(there)
            )
    found = []
    for layer in layers or there:
        shape = store.open(features, "features", group=layer)["activation"].shape[1:]
        if kind.reads(tuple(shape)):
            found.append(layer)
        elif layers:
            raise InputError(
                f"layer {layer!r} of encoding.{section}.{name} has no {kind.needs} (its shape is "
                f"{tuple(shape)}), which kind {kind.name!r} needs: leave it out or set the model's "
                "pooling off"
            )
    if not found:
        raise InputError(
            f"no layer in {features} has {kind.needs}, which kind {kind.name!r} of "
            f"encoding.{section}.{name} needs: extract layers with maps, without pooling"
        )
    return tuple(found)


def _load_maps(design: Design, scratch: Path) -> dict[str, np.ndarray]:
    """Maps of all layers; large ones in a file of the scratch folder, read as they are needed."""
    loaded = {}
    for number, layer in enumerate(design.layers):
        values = np.ascontiguousarray(design.load_maps(layer), dtype=np.float32)
        if values.nbytes > RESIDENT_BYTES:
            scratch.mkdir(parents=True, exist_ok=True)
            path = scratch / f"layer-{number}.npy"
            np.save(path, values)
            values = np.load(path, mmap_mode="c")  # writeable, as torch wants it; never written
        loaded[layer] = values
    return loaded


def _fit_fold(
    of: Responses,
    cv: CrossValidation,
    fold: Fold,
    loaded: Mapping[str, np.ndarray],
    readout: type[Readout],
    options: Mapping[str, Any],
    labels: np.ndarray | None,
    *,
    device: torch.device,
    seed: int,
    **settings: Any,
) -> tuple[Trained, tuple[np.ndarray, np.ndarray]]:
    """Train on one fold; r and r2 of its test samples."""
    train_rows, validation_rows = validation_split(cv, fold, seed=seed)
    average, counts = _row_means(cv, fold.train_groups)
    feature_maps = FeatureMaps(loaded, train_rows, device=device)

    def make(voxels: slice, generator: torch.Generator) -> Readout:
        return readout(
            feature_maps.shapes,
            voxels.stop - voxels.start,
            generator=generator,
            regions=labels[voxels] if labels is not None else None,
            **options,
        )

    def read_targets(first: int, last: int) -> np.ndarray:
        values, usable = centre(of.read(first, last), cv)
        return np.where(usable, average @ values, np.nan)

    tested, position = np.unique(cv.stimulus[fold.test_trials], return_inverse=True)
    trained = train(
        make,
        feature_maps,
        read_targets,
        of.n_voxels,
        train_rows=train_rows,
        validation_rows=validation_rows,
        predict_rows=tested,
        weights=counts,
        seed=seed,
        **settings,
    )
    score = np.full((2, of.n_voxels), np.nan)
    for first in range(0, of.n_voxels, SCORE_BLOCK):
        last = min(first + SCORE_BLOCK, of.n_voxels)
        values, _ = centre(of.read(first, last), cv)
        truth = torch.from_numpy(values[fold.test_trials])
        predicted = torch.from_numpy(trained.prediction[position, first:last]).double()
        usable = torch.isfinite(predicted).all(0)
        predicted = torch.where(usable, predicted, 0.0)
        for row, measure in enumerate((pearson, r2)):
            value = torch.where(usable, measure(predicted, truth), torch.nan)
            score[row, first:last] = value.numpy()
    return trained, (score[0], score[1])


def validation_split(
    cv: CrossValidation, fold: Fold, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit to and rows to stop by, both of the training fold, with no row in both.

    The first inner split where it keeps stimuli apart; otherwise a fifth of the training
    stimuli, dealt by `seed`.
    """
    if fold.inner:
        split = fold.inner[0]
        if not np.intersect1d(split.train_stimuli, split.test_stimuli).size:
            return np.sort(split.train_stimuli), np.sort(split.test_stimuli)
    order = np.random.default_rng(seed).permutation(fold.train_stimuli)
    n_validation = max(1, round(VALIDATION_SHARE * len(order)))
    return np.sort(order[n_validation:]), np.sort(order[:n_validation])


def _row_means(
    cv: CrossValidation, groups: tuple[int, ...]
) -> tuple[scipy.sparse.csr_array, np.ndarray]:
    """What averages samples of some groups over each row (rows, samples), and their numbers."""
    samples = np.flatnonzero(np.isin(cv.group, groups))
    rows = cv.stimulus[samples]
    counts = np.bincount(rows, minlength=len(cv.stimuli))
    shape = (len(cv.stimuli), len(cv.stimulus))
    return scipy.sparse.csr_array((1 / counts[rows], (rows, samples)), shape=shape), counts


def _chosen(n_folds: int, most: int | None) -> list[int]:
    """Numbers of the folds to train, evenly over all."""
    count = n_folds if most is None else min(most, n_folds)
    return [index * n_folds // count for index in range(count)]


def _regions(
    of: Responses, image: Path | None, table: Path | None
) -> tuple[np.ndarray | None, list[str] | None]:
    """Region of each voxel, from 0 in the order of the table, -1 for none; the names."""
    if image is None or table is None:
        return None, None
    names = bids.read_labels(table)
    place = {label: number for number, label in enumerate(names)}
    label = regions_of_voxels(image, of.coords, of.attrs, where=of.name)
    return np.array([place.get(int(value), -1) for value in label]), list(names.values())


def checkpoint_folder(out: Path, key: Mapping[str, Any]) -> Path:
    """Folder of states beside the store for exactly this training; those of others are removed."""
    folder = out.parent / f".{out.stem}.checkpoints"
    text = json.dumps(key, sort_keys=True, default=str)
    states = folder / provenance.digest_bytes(text.encode())[:16]
    if folder.is_dir():
        for other in folder.iterdir():
            if other != states:
                shutil.rmtree(other, ignore_errors=True)
    return states


def mean_over_folds(values: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over folds of what is finite, NaN where nothing is."""
    stacked = np.stack(values).astype(float)
    known = np.isfinite(stacked)
    count = known.sum(0)
    total = np.where(known, stacked, 0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _arrays(trained: Sequence[Trained], field_of_view: float | None) -> dict[str, np.ndarray]:
    """Arrays of the readouts, means over folds, fields in degrees where the view is known."""
    arrays = {
        key: mean_over_folds([fold.results[key] for fold in trained]) for key in trained[0].results
    }
    for key in FIELD:
        if field_of_view and key in arrays:
            arrays[key] = arrays[key] * field_of_view
    return arrays


def loss_table(curves: Sequence[np.ndarray]) -> np.ndarray:
    """Losses by fold and epoch, shape (folds, epochs), NaN after a fold's last."""
    table = np.full((len(curves), max([1, *map(len, curves)])), np.nan)
    for row, curve in zip(table, curves, strict=True):
        row[: len(curve)] = curve
    return table


def _write_maps(folder: Path, result: xr.Dataset) -> None:
    attrs = result.attrs
    stem = f"sub-{attrs['subject']}_task-{attrs['task']}_readout-{attrs['name']}"
    maps = {
        "stat-r_statmap": result["score"].values,
        "stat-rnormalised_statmap": result["score_normalised"].values,
        "stat-r2_statmap": result["r2"].values,
        **{f"stat-{key}_statmap": result[key].values for key in FIELD if key in result},
        "desc-preferredlayer_dseg": (result["preferred_layer"].values + 1).astype(np.int16),
    }
    write_maps(folder, stem, maps, result, names=result["layer"].values)
