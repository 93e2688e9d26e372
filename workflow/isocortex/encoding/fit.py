"""Voxelwise encoding of one subject from the layers of one model."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from isocortex import provenance, store
from isocortex.device import deterministic, select_device
from isocortex.encoding.design import centre, design_of, open_responses
from isocortex.encoding.folds import CrossValidation, Fold
from isocortex.encoding.maps import legend, write_map
from isocortex.encoding.ridge import (
    InnerRidge,
    Ridge,
    gram,
    held_out_loss,
    inner_ridge,
    predict,
    ridge_from_features,
    ridge_from_gram,
    standardisation,
)
from isocortex.encoding.scores import high_enough, normalise, pearson
from isocortex.errors import InputError

logger = logging.getLogger(__name__)

PLAN_BYTES = 512 << 20  # decompositions that are kept while the voxels pass by


@dataclass(frozen=True)
class Plan:
    """All that one layer and fold need to know of the features."""

    layer: int
    fold: int
    inner: tuple[InnerRidge, ...]
    outer: Ridge

    @property
    def n_bytes(self) -> int:
        parts = [self.outer.rotation, self.outer.projection]
        parts += [part for split in self.inner for part in (split.rotation, split.stacked)]
        return sum(part.numel() * part.element_size() for part in parts)


class _Counts:
    """How many trials each stimulus has in a set of run groups."""

    def __init__(self, cv: CrossValidation) -> None:
        self.table = np.zeros((len(cv.groups), len(cv.stimuli)))
        np.add.at(self.table, (cv.group, cv.stimulus), 1)

    def __call__(self, groups: tuple[int, ...], stimuli: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self.table[list(groups)].sum(0)[stimuli])


class _Means:
    """Means over the trials of each stimulus in a set of run groups, for a block of voxels."""

    def __init__(self, cv: CrossValidation, trials: torch.Tensor) -> None:
        self.cv, self.trials = cv, trials
        self.cache: dict[tuple[int, ...], torch.Tensor] = {}

    def __call__(self, groups: tuple[int, ...], stimuli: np.ndarray) -> torch.Tensor:
        if groups not in self.cache:
            table = np.zeros((len(self.cv.stimuli), len(self.cv.stimulus)))
            among = np.flatnonzero(np.isin(self.cv.group, groups))
            table[self.cv.stimulus[among], among] = 1
            table /= np.maximum(table.sum(1, keepdims=True), 1)
            average = torch.from_numpy(table).to(self.trials)
            self.cache[groups] = average @ self.trials
        return self.cache[groups][torch.from_numpy(stimuli)]


def _decompose(
    features: torch.Tensor,
    inner_products: torch.Tensor | None,
    rows: np.ndarray,
    tests: np.ndarray,
    counts: torch.Tensor,
) -> Ridge:
    """Dual form where inner products of rows are given, primal form from features otherwise."""
    train, test = torch.from_numpy(rows), torch.from_numpy(tests)
    if inner_products is None:
        return ridge_from_features(features[train], features[test], counts)
    return ridge_from_gram(inner_products[train][:, train], inner_products[test][:, train], counts)


def make_plan(
    features: torch.Tensor,
    cv: CrossValidation,
    fold: Fold,
    alphas: torch.Tensor,
    *,
    layer: int,
    number: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Plan:
    """Standardise one layer's features on one fold's training trials and decompose them.

    Parameters
    ----------
    features
        Shape (stimuli, units), in the order of `cv.stimuli`.
    cv, fold
        The cross-validation and one fold of it.
    alphas
        Penalties.
    layer, number
        Kept in the plan: which layer and fold it is for.
    device, dtype
        Of the plan; decompositions are float64 on the CPU, so that they are the same whatever
        the device.
    """
    counts = _Counts(cv)
    rows = fold.train_stimuli
    centre, scale = standardisation(
        features[torch.from_numpy(rows)], counts(fold.train_groups, rows)
    )
    dual = features.shape[1] >= len(rows)
    inner_products = gram(features, centre, scale).cpu() if dual else None
    scaled = features if dual else ((features.double() - centre) * scale).cpu()
    tests = np.unique(cv.stimulus[fold.test_trials])
    outer = _decompose(scaled, inner_products, rows, tests, counts(fold.train_groups, rows))
    inner = []
    for split in fold.inner:
        ridge = _decompose(
            scaled,
            inner_products,
            split.train_stimuli,
            split.test_stimuli,
            counts(split.train_groups, split.train_stimuli),
        )
        shares = counts(split.test_groups, split.test_stimuli)
        inner.append(inner_ridge(ridge, shares, alphas, device=device, dtype=dtype))
    return Plan(layer, number, tuple(inner), outer.to(device, dtype))


def _score_block(
    block: torch.Tensor, cv: CrossValidation, plans: Sequence[Plan], alphas: torch.Tensor
) -> Iterable[tuple[int, torch.Tensor, torch.Tensor]]:
    """Score one block of voxels: layer, r and index of the penalty for each plan."""
    means = _Means(cv, block)
    targets: dict[int, tuple] = {}
    for plan in plans:
        fold = cv.folds[plan.fold]
        if plan.fold not in targets:
            targets.clear()  # plans come fold by fold: one fold's targets serve all layers
            inner = []
            for split, ridge in zip(fold.inner, plan.inner, strict=True):
                train = means(split.train_groups, split.train_stimuli)
                test = means(split.test_groups, split.test_stimuli)
                offset = (test - ridge.weights @ train) * ridge.root_share[:, None]
                inner.append((train, offset))
            _, position = np.unique(cv.stimulus[fold.test_trials], return_inverse=True)
            targets[plan.fold] = (
                inner,
                means(fold.train_groups, fold.train_stimuli),
                block[torch.from_numpy(fold.test_trials)],
                torch.from_numpy(position).to(block.device),
            )
        inner, train, test, position = targets[plan.fold]
        loss = sum(
            held_out_loss(ridge, rows, offset)
            for ridge, (rows, offset) in zip(plan.inner, inner, strict=True)
        )
        choice = loss.min(0).indices  # argmin over rows is many times slower
        prediction = predict(plan.outer, train, alphas, choice)
        yield plan.layer, pearson(prediction[position], test), choice


def cross_validated_scores(
    layers: Sequence[Callable[[], np.ndarray]],
    read_block: Callable[[int, int], np.ndarray],
    n_voxels: int,
    cv: CrossValidation,
    alphas: Sequence[float],
    *,
    voxel_batch: int = 1024,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[np.ndarray, np.ndarray]:
    """Held-out correlation and penalty of every voxel and layer.

    Parameters
    ----------
    layers
        Functions that load one layer's features each, shape (stimuli, units), rows in the order
        of `cv.stimuli`.
    read_block
        Gives the trials' responses of voxels first to last, shape (trials, last - first).
    n_voxels
        Number of voxels.
    cv
        The folds.
    alphas
        Penalties, for features z-scored over the training trials and divided by the root of
        their number. Each voxel and fold takes the one with the least squared error over the
        inner folds.
    voxel_batch
        Voxels that are worked on together.
    device, dtype
        Where and in which precision the voxels' share of the work is done.

    Returns
    -------
    score
        Pearson r over the test trials of a fold, plain mean over folds; shape (layers, voxels).
        NaN for voxels with a value that is not finite or that never varies.
    alpha
        Geometric mean over folds; same shape.

    Notes
    -----
    Responses are centred within each run over all of its trials. The test run shares no trial
    with the training runs; with one run it shifts all trials alike, which the intercept takes
    up: neither tells the training of the test. Scaling the responses would change nothing:
    neither the choice of the penalty nor r depends on it.
    r is averaged over folds, not computed over all folds together, because the means of the
    folds' training sets are anticorrelated with those of their test sets, which biases the
    pooled r downwards.
    """
    device = torch.device(device)
    grid = torch.tensor(list(alphas), dtype=torch.float64)
    total = np.zeros((len(layers), n_voxels))
    count = np.zeros((len(layers), n_voxels))
    log_alpha = np.zeros((len(layers), n_voxels))

    def run(plans: list[Plan]) -> None:
        plans = sorted(plans, key=lambda plan: plan.fold)
        on_device = grid.to(device, dtype)
        logs = grid.log().numpy()
        for first in tqdm(
            range(0, n_voxels, voxel_batch), desc="encoding", unit="block", disable=None
        ):
            last = min(first + voxel_batch, n_voxels)
            values, usable = centre(read_block(first, last), cv)
            block = torch.from_numpy(values).to(device, dtype).contiguous()
            for layer, r, choice in _score_block(block, cv, plans, on_device):
                r = r.double().cpu().numpy()
                scored = np.isfinite(r) & usable
                total[layer, first:last][scored] += r[scored]
                count[layer, first:last] += scored
                log_alpha[layer, first:last] += np.where(scored, logs[choice.cpu().numpy()], 0)

    pending: list[Plan] = []
    held = 0
    for index, load in enumerate(layers):
        features = torch.from_numpy(np.ascontiguousarray(load())).to(device)
        for number, fold in enumerate(cv.folds):
            plan = make_plan(
                features, cv, fold, grid, layer=index, number=number, device=device, dtype=dtype
            )
            pending.append(plan)
            held += plan.n_bytes
            if held > PLAN_BYTES:
                run(pending)
                pending, held = [], 0
    if pending:
        run(pending)
    with np.errstate(invalid="ignore"):
        return total / np.where(count, count, np.nan), np.exp(
            log_alpha / np.where(count, count, np.nan)
        )


def _penalties(alphas: Sequence[float] | Mapping[str, Any]) -> list[float]:
    """Sorted penalties of a list or of a logarithmic grid (minimum, maximum, number)."""
    if isinstance(alphas, Mapping):
        low, high = float(alphas["minimum"]), float(alphas["maximum"])
        if low >= high:
            raise InputError(
                f"minimum {low:g} is not below maximum {high:g} in encoding.alphas: swap them"
            )
        return np.geomspace(low, high, int(alphas["number"])).tolist()
    values = sorted({float(value) for value in alphas})
    if not values or values[0] <= 0:
        raise InputError("encoding.alphas needs at least one penalty, all above 0: correct them")
    return values


def fit_encoding(
    *,
    betas: Path,
    features: Path,
    out: Path,
    maps: Path,
    alphas: Sequence[float] | Mapping[str, Any],
    cross_validation: Mapping[str, Any],
    min_ceiling: float = 0.05,
    voxel_batch: int = 1024,
    device: str = "auto",
    seed: int = 0,
    threads: int = 1,
    code: str = "",
) -> Path:
    """Write the encoding store and the maps of one subject, task and model.

    Parameters
    ----------
    betas, features
        Stores.
    out
        The store.
    maps
        Folder for NIfTI maps: r of the best layer, the same over its noise ceiling, and which
        layer is best (1 for the first; the JSON beside it names them).
    alphas
        List of penalties, or a mapping minimum, maximum, number: a logarithmic grid.
    cross_validation
        over (run or session), new_stimuli, stimulus_folds, run_folds: see
        `cross_validation_folds`.
    min_ceiling
        Least explainable share of single-trial variance for which scores are normalised.
    voxel_batch
        Voxels that are worked on together.
    device
        `auto`, `cpu` or `cuda`.
    seed
        Of the deal of stimuli to folds: the study's.
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
        Where a stimulus has no features, there are too few stimuli, or there is no such device.

    Notes
    -----
    Scores are r with single trials, so the ceiling is that of single trials: the share of
    variance is ncsnr^2 / (ncsnr^2 + 1) (the betas' own noise_ceiling is for means over repeats),
    the highest correlation to be expected its root (Allen et al. 2022). Normalised scores can
    exceed 1 where the ceiling is uncertain; they are kept, counted and warned of.
    """
    where = select_device(device, key="encoding.device")
    penalties = _penalties(alphas)
    responses = open_responses(betas)
    design = design_of(responses, features, cross_validation=cross_validation, seed=seed)
    name, cv, n_voxels = responses.name, design.cv, responses.n_voxels
    layers = design.layers
    loaders = [functools.partial(design.load, layer) for layer in layers]

    with deterministic(threads):
        score, alpha = cross_validated_scores(
            loaders, responses.read, n_voxels, cv, penalties, voxel_batch=voxel_batch, device=where
        )

    ceiling = responses.ceiling
    enough = high_enough(ceiling, min_ceiling)
    normalised = normalise(score, ceiling, min_ceiling=min_ceiling)
    scored = np.isfinite(score).any(0)
    best = np.where(scored, np.nan_to_num(score, nan=-np.inf).argmax(0), -1).astype(np.int16)
    above = int((normalised > 1).sum())
    result_attrs = {
        "affine": responses.attrs["affine"],
        "shape": responses.attrs["shape"],
        "space": responses.attrs["space"],
        "subject": responses.subject,
        "task": responses.task,
        "model": design.model,
        "folds": cv.text,
        "seed": seed,
        "device": where.type,
        "alphas": penalties,
        "min_ceiling": min_ceiling,
        "score_average": "plain mean over folds of Pearson r over a fold's test trials",
        "n_trials": len(responses.used),
        "n_trials_without_stimulus": responses.n_samples - len(responses.used),
        "n_stimuli": len(cv.stimuli),
        "n_voxels_without_score": int((~scored).sum()),
        "n_voxels_ceiling_too_low": int((~enough).sum()),
        "n_scores_above_ceiling": above,
        "warning": f"{above} normalised scores are over 1: their noise ceilings are uncertain"
        if above
        else "",
    }
    if above:
        logger.warning("%s, model %s: %s", name, design.model, result_attrs["warning"])
    result = xr.Dataset(
        {
            "score": (("layer", "voxel"), score.astype(np.float32)),
            "score_normalised": (("layer", "voxel"), normalised.astype(np.float32)),
            "alpha": (("layer", "voxel"), alpha.astype(np.float32)),
            "best_layer": ("voxel", best),
            "noise_ceiling": ("voxel", ceiling.astype(np.float32)),
        },
        coords={
            "layer": np.array(layers, dtype=object),
            **{axis: ("voxel", responses.coords[axis]) for axis in "ijk"},
        },
        attrs=result_attrs,
    )
    _write_maps(Path(maps), result)
    logger.info("%s, model %s: %s; %d voxels", name, design.model, cv.text, n_voxels)
    return store.write(result, out, spec="encoding", sources=[betas, features], code=code)


def _write_maps(folder: Path, result: xr.Dataset) -> None:
    attrs = result.attrs
    voxels = np.stack([result[axis].values for axis in "ijk"], axis=1)
    best = result["best_layer"].values
    at_best = (np.maximum(best, 0), np.arange(len(best)))
    stem = (
        f"sub-{attrs['subject']}_task-{attrs['task']}_model-{attrs['model']}_"
        f"space-{attrs['space']}_"
    )
    for suffix, values, dtype in (
        ("stat-r_statmap", result["score"].values[at_best], np.float32),
        ("stat-rnormalised_statmap", result["score_normalised"].values[at_best], np.float32),
        ("desc-bestlayer_dseg", best + 1, np.int16),
    ):
        write_map(
            folder / f"{stem}{suffix}.nii.gz",
            values,
            voxels,
            shape=attrs["shape"],
            affine=attrs["affine"],
            dtype=dtype,
        )
    provenance.write_json(
        folder / f"{stem}desc-bestlayer_dseg.json", {"Levels": legend(result["layer"].values)}
    )
