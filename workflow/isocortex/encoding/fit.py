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
from isocortex.encoding.components import principal_components
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
from isocortex.encoding.scores import high_enough, normalise, pearson, r2
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


@dataclass(frozen=True)
class LinearFit:
    """What a cross-validated fit gives, each of shape (layers, voxels), NaN without a score.

    Attributes
    ----------
    score, r2
        Held-out Pearson r and coefficient of determination, plain means over folds.
    alpha
        Penalty, geometric mean over folds.
    """

    score: np.ndarray
    r2: np.ndarray
    alpha: np.ndarray


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
    pca: int | None = None,
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
    pca
        Principal components of the fold's training rows to keep; None: all features.
    """
    counts = _Counts(cv)
    scaled, inner_products = scaled_features(
        features, fold.train_stimuli, counts(fold.train_groups, fold.train_stimuli), pca=pca
    )
    rows = fold.train_stimuli
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


def scaled_features(
    features: torch.Tensor, rows: np.ndarray, counts: torch.Tensor, *, pca: int | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Features z-scored (and reduced) by what their training rows say, or their inner products.

    Parameters
    ----------
    features
        Shape (stimuli, units).
    rows, counts
        Training rows, and the number of samples that each stands for.
    pca
        Principal components of the training rows to keep.

    Returns
    -------
    scaled, inner_products
        Inner products of all rows, float64, where there are more units than training rows (the
        dual form); else None, and `scaled` is what the primal form takes.
    """
    train = torch.from_numpy(rows)
    centre_, scale = standardisation(features[train], counts)
    dual = features.shape[1] >= len(rows)
    inner_products = gram(features, centre_, scale).cpu() if dual else None
    scaled = features if dual else ((features.double() - centre_) * scale).cpu()
    if pca is not None:
        given = scaled if inner_products is None else inner_products
        scaled = principal_components(
            given, train, counts, number=pca, inner_products=inner_products is not None
        )
        inner_products = None
    return scaled, inner_products


@dataclass(frozen=True)
class _Targets:
    """One fold's responses of a block of voxels, as ridge regression takes them.

    `inner` has a pair for each inner split: the training rows and the held-out offset; `total`
    is the squared error of predicting the training mean, summed over inner splits.
    """

    inner: list[tuple[torch.Tensor, torch.Tensor]]
    total: torch.Tensor
    train: torch.Tensor
    test: torch.Tensor
    position: torch.Tensor


def _targets_of_folds(
    block: torch.Tensor, cv: CrossValidation, plans: Sequence[Plan]
) -> Iterable[tuple[int, Plan, _Targets]]:
    """Each plan's number, the plan and its fold's targets; plans come fold by fold."""
    means = _Means(cv, block)
    held, targets = -1, None
    for index, plan in enumerate(plans):
        fold = cv.folds[plan.fold]
        if plan.fold != held:  # one fold's targets serve all layers
            inner = []
            for split, ridge in zip(fold.inner, plan.inner, strict=True):
                train = means(split.train_groups, split.train_stimuli)
                test = means(split.test_groups, split.test_stimuli)
                offset = (test - ridge.weights @ train) * ridge.root_share[:, None]
                inner.append((train, offset))
            _, position = np.unique(cv.stimulus[fold.test_trials], return_inverse=True)
            targets = _Targets(
                inner,
                sum(offset.square().sum(0) for _, offset in inner),
                means(fold.train_groups, fold.train_stimuli),
                block[torch.from_numpy(fold.test_trials)],
                torch.from_numpy(position).to(block.device),
            )
            held = plan.fold
        yield index, plan, targets


def _inner_loss(plan: Plan, targets: _Targets) -> torch.Tensor:
    """Squared error over the inner splits, shape (penalties, voxels)."""
    return sum(
        held_out_loss(ridge, rows, offset)
        for ridge, (rows, offset) in zip(plan.inner, targets.inner, strict=True)
    )


def fit_layers(
    layers: Sequence[Callable[[], np.ndarray]],
    read_block: Callable[[int, int], np.ndarray],
    n_voxels: int,
    cv: CrossValidation,
    alphas: Sequence[float],
    *,
    regions: np.ndarray | None = None,
    pca: int | None = None,
    predictions: np.ndarray | None = None,
    voxel_batch: int = 1024,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LinearFit:
    """Held-out scores and penalty of every voxel and layer.

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
    regions
        Label of each voxel: one penalty for all voxels of a label, by the mean over voxels of
        the squared error as a share of the error of the mean. Voxels of label 0, and all where
        None, choose for themselves.
    pca
        Principal components to keep, fitted on each fold's training rows; None: all features.
    predictions
        Shape (layers, trials, voxels), float32: filled with the held-out predictions, intercept
        and all; left as it is where there are none. May be a memory map.
    voxel_batch
        Voxels that are worked on together.
    device, dtype
        Where and in which precision the voxels' share of the work is done.

    Returns
    -------
    LinearFit
        NaN for voxels with a value that is not finite or that never varies.

    Notes
    -----
    Responses are centred within each run over all of its trials (see `design.centre`). Scaling
    them would change nothing: neither the choice of the penalty nor r depends on it.
    r is averaged over folds, not computed over all folds together, because the means of the
    folds' training sets are anticorrelated with those of their test sets, which biases the
    pooled r downwards.
    """
    device = torch.device(device)
    grid = torch.tensor(list(alphas), dtype=torch.float64)
    on_device = grid.to(device, dtype)
    logs = grid.log().numpy()
    shape = (len(layers), n_voxels)
    total, total_r2, log_alpha, count = (np.zeros(shape) for _ in range(4))
    names, region = (
        (np.array([0]), np.zeros(n_voxels, int))
        if regions is None
        else np.unique(np.concatenate([[0], regions]), return_inverse=True)
    )
    region = region[-n_voxels:]  # 0 of the labels comes first and is none

    def blocks(label: str) -> Iterable[tuple[int, int, torch.Tensor, np.ndarray]]:
        starts = range(0, n_voxels, voxel_batch)
        for first in tqdm(starts, desc=label, unit="block", disable=None):
            last = min(first + voxel_batch, n_voxels)
            values, usable = centre(read_block(first, last), cv)
            yield first, last, torch.from_numpy(values).to(device, dtype).contiguous(), usable

    def choose_by_region(plans: list[Plan]) -> list[torch.Tensor]:
        losses = [
            torch.zeros((len(grid), len(names)), dtype=torch.float64, device=device) for _ in plans
        ]
        for first, last, block, usable in blocks("penalties of regions"):
            label = torch.from_numpy(region[first:last]).to(device)
            usable_ = torch.from_numpy(usable).to(device)
            for index, plan, targets in _targets_of_folds(block, cv, plans):
                counted = usable_ & (targets.total > 0)
                share = _inner_loss(plan, targets) / torch.where(counted, targets.total, 1.0)
                share = torch.where(counted, share, 0.0).double()
                # a product, because sums into shared places have no fixed order on a GPU
                losses[index] += share @ torch.nn.functional.one_hot(label, len(names)).double()
        return [loss.min(0).indices for loss in losses]

    def run(plans: list[Plan]) -> None:
        plans = sorted(plans, key=lambda plan: plan.fold)
        of_regions = choose_by_region(plans) if len(names) > 1 else None
        for first, last, block, usable in blocks("encoding"):
            label = torch.from_numpy(region[first:last]).to(device)
            alone = of_regions is None or bool((label == 0).any())
            for index, plan, targets in _targets_of_folds(block, cv, plans):
                choice = None
                if alone:  # argmin over rows is many times slower than min
                    choice = _inner_loss(plan, targets).min(0).indices
                if of_regions is not None:
                    shared = of_regions[index][label]
                    choice = shared if choice is None else torch.where(label > 0, shared, choice)
                prediction = predict(plan.outer, targets.train, on_device, choice)
                prediction = prediction + plan.outer.weights @ targets.train
                prediction = prediction[targets.position]
                r = pearson(prediction, targets.test).double().cpu().numpy()
                explained = r2(prediction, targets.test).double().cpu().numpy()
                scored = np.isfinite(r) & usable
                total[plan.layer, first:last][scored] += r[scored]
                total_r2[plan.layer, first:last][scored] += explained[scored]
                count[plan.layer, first:last] += scored
                chosen = logs[choice.cpu().numpy()]
                log_alpha[plan.layer, first:last] += np.where(scored, chosen, 0)
                if predictions is not None:
                    trials = cv.folds[plan.fold].test_trials
                    predictions[plan.layer, trials, first:last] = prediction.float().cpu().numpy()

    pending: list[Plan] = []
    held = 0
    for index, load in enumerate(layers):
        features = torch.from_numpy(np.ascontiguousarray(load())).to(device)
        for number, fold in enumerate(cv.folds):
            plan = make_plan(
                features,
                cv,
                fold,
                grid,
                layer=index,
                number=number,
                device=device,
                dtype=dtype,
                pca=pca,
            )
            pending.append(plan)
            held += plan.n_bytes
            if held > PLAN_BYTES:
                run(pending)
                pending, held = [], 0
    if pending:
        run(pending)
    folds = np.where(count, count, np.nan)
    return LinearFit(total / folds, total_r2 / folds, np.exp(log_alpha / folds))


def cross_validated_scores(
    layers: Sequence[Callable[[], np.ndarray]],
    read_block: Callable[[int, int], np.ndarray],
    n_voxels: int,
    cv: CrossValidation,
    alphas: Sequence[float],
    **options: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Held-out correlation and penalty of every voxel and layer: those two of `fit_layers`."""
    fit = fit_layers(layers, read_block, n_voxels, cv, alphas, **options)
    return fit.score, fit.alpha


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
