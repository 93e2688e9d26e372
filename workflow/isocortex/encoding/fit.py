"""Voxelwise encoding of one subject from the layers of one model."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from isocortex import bids, provenance, store
from isocortex.device import deterministic, halving, select_device
from isocortex.encoding.agreement import stimulus_agreement
from isocortex.encoding.components import principal_components
from isocortex.encoding.design import (
    RESIDENT_BYTES,
    Design,
    Responses,
    centre,
    design_of,
    open_responses,
)
from isocortex.encoding.folds import CrossValidation
from isocortex.encoding.fractional import FractionalPlan, plan_fractional
from isocortex.encoding.maps import regions_of_voxels, write_subject_maps
from isocortex.encoding.permutation import (
    PermutationTest,
    count_permutations,
    permute_blocks,
    permute_stimuli,
)
from isocortex.encoding.ridge import (
    RidgePlan,
    Samples,
    Targets,
    gram,
    plan_ridge,
    standardisation,
)
from isocortex.encoding.scores import high_enough, normalise, pearson, r2
from isocortex.errors import InputError

logger = logging.getLogger(__name__)

METHODS = ("ridge", "fractional")
FRACTIONS = tuple(np.round(np.arange(0.1, 1.01, 0.1), 10).tolist())
PERMUTATION_BLOCK = 40.0  # s, some times the length of a haemodynamic response
TIMED = ("delays", "delays_volumes", "resampling", "gap_volumes")  # of the design of volumes
PERMUTED_BYTES = 64 << 20  # responses in several orders, side by side
LEAST_PENALTY = 1e-12  # whose logarithm stands for that of no penalty
PLAN_BYTES = 512 << 20  # decompositions that are kept while the voxels pass by


@dataclass(frozen=True)
class LinearFit:
    """What a cross-validated fit gives, each of shape (layers, voxels), NaN without a score.

    Attributes
    ----------
    score, r2
        Held-out Pearson r and coefficient of determination, plain means over folds.
    alpha
        Penalty, geometric mean over folds.
    fraction
        Of fractional ridge: mean over folds.
    test
        p-values, where permutations were asked for.
    """

    score: np.ndarray
    r2: np.ndarray
    alpha: np.ndarray
    fraction: np.ndarray | None = None
    test: PermutationTest | None = None


@dataclass(frozen=True)
class Plan:
    """Which layer and fold a ridge regression is for."""

    layer: int
    fold: int
    ridge: RidgePlan | FractionalPlan


@dataclass(frozen=True)
class _Scored:
    """What one plan gives for a block of voxels."""

    plan: Plan
    choice: torch.Tensor
    r: np.ndarray
    r2: np.ndarray
    scored: np.ndarray
    penalty: np.ndarray
    prediction: np.ndarray | None


def _mean_scores(found: Iterable[_Scored]) -> dict[int, np.ndarray]:
    """Mean r over folds of each layer; NaN where no fold has a score."""
    total: dict[int, Any] = {}
    count: dict[int, Any] = {}
    for one in found:
        layer = one.plan.layer
        total[layer] = total.get(layer, 0) + np.where(one.scored, one.r, 0)
        count[layer] = count.get(layer, 0) + one.scored
    return {
        layer: values / np.where(count[layer], count[layer], np.nan)
        for layer, values in total.items()
    }


def _with_targets(block: torch.Tensor, plans: Sequence[Plan]) -> Iterable[tuple[Plan, Targets]]:
    """Plans, which come fold by fold, with their fold's targets: these serve all layers."""
    held, targets = -1, None
    for plan in plans:
        if plan.fold != held:
            held, targets = plan.fold, Targets(plan.ridge.samples, block)
        yield plan, targets


def make_plan(
    features: torch.Tensor,
    samples: Samples,
    alphas: Sequence[float],
    *,
    method: str = "ridge",
    pca: int | None = None,
    solver: str = "auto",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> RidgePlan | FractionalPlan:
    """Standardise one layer's features on one fold's training trials, reduce, decompose.

    Parameters
    ----------
    features
        Shape (stimuli, units).
    samples
        Of the fold.
    alphas
        Penalties, or fractions.
    method
        `ridge` or `fractional`.
    pca
        Principal components of the fold's training trials to keep (with the variances that they
        have in z-scored features, so that penalties mean the same); None: all features.
    solver
        `primal`, `dual` or `auto`: see `plan_ridge`.
    device, dtype
        Of the plan; decompositions are float64.
    """
    rows = torch.from_numpy(np.unique(samples.row[samples.train])).to(features.device)
    counts = torch.from_numpy(samples.counts(samples.train)).to(features.device)[rows]
    middle, scale = standardisation(features[rows], counts)
    if not scale.any():
        # Nothing varies: the mean is predicted, for which the primal form has no rows to work on
        features, pca, solver = torch.zeros_like(features[:, :1]), None, "dual"
    if pca is not None:
        dual = features.shape[1] >= len(rows)
        known = gram(features, middle, scale) if dual else (features.double() - middle) * scale
        features = principal_components(known, rows, counts, number=pca, inner_products=dual)
    plan = plan_fractional if method == "fractional" else plan_ridge
    return plan(
        features,
        samples,
        alphas,
        solver=solver,
        standardise=pca is None,
        device=device,
        dtype=dtype,
    )


def fit_layers(
    layers: Sequence[Callable[[], np.ndarray]],
    read_block: Callable[[int, int], np.ndarray],
    n_voxels: int,
    cv: CrossValidation,
    alphas: Sequence[float],
    *,
    method: str = "ridge",
    regions: np.ndarray | None = None,
    pca: int | None = None,
    solver: str = "auto",
    predictions: np.ndarray | None = None,
    orders: np.ndarray | None = None,
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
        their number; with `method` fractional, fractions, ascending. Each voxel and fold takes
        the one with the least squared error over the inner folds.
    regions
        Label of each voxel: one penalty for all voxels of a label, by the mean over voxels of
        the squared error as a share of the voxel's training variance. Voxels of label 0, and all
        where None, choose for themselves.
    pca
        Principal components to keep, fitted on each fold's training rows; None: all features.
    solver
        `primal`, `dual`, or `auto`: by size. The answers are the same to rounding.
    predictions
        Shape (layers, trials, voxels), float32: filled with the held-out predictions, intercept
        and all; left as it is where there are none. May be a memory map.
    orders
        Shape (permutations, trials): whose response each trial gets, of `permute_stimuli` or
        `permute_blocks`, for p-values. All of a layer's folds are then held in memory together.
    voxel_batch
        Voxels that are worked on together; fewer where memory runs out.
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
    grid = torch.tensor(list(alphas), dtype=torch.float64, device=device)
    shape = (len(layers), n_voxels)
    total, total_r2, log_alpha, total_choice, count = (np.zeros(shape) for _ in range(5))
    fractional = method == "fractional"
    test = None if orders is None else PermutationTest(*shape, len(orders))
    region = None if regions is None else np.asarray(regions)
    splits = [Samples.of_fold(cv, fold) for fold in cv.folds]

    def targets_of(plans: Sequence[Plan], part: slice) -> tuple[np.ndarray, torch.Tensor, list]:
        """Which of a block's voxels can be used, their responses, and plans with targets."""
        values, usable = centre(read_block(part.start, part.stop), cv)
        block = torch.from_numpy(values).to(device, dtype)
        return usable, block, _with_targets(block, plans)

    def in_blocks(work: Callable[[slice], Any], label: str) -> Iterator[tuple[slice, Any]]:
        """Do work block by block; smaller ones where memory runs out, so work adds up nothing."""
        with tqdm(total=n_voxels, desc=label, unit="voxel", disable=None) as progress:
            for first, last, result in halving(
                lambda first, last: work(slice(first, last)),
                n_voxels,
                batch=voxel_batch,
                what="voxels",
            ):
                yield slice(first, last), result
                progress.update(last - first)

    def choices_of_regions(plans: Sequence[Plan]) -> list[dict[int, int]]:
        """Penalty of each plan and label, by the sum over voxels of losses over variances."""
        names, column = np.unique(region, return_inverse=True)
        losses = np.zeros((len(plans), len(alphas), len(names)))

        def losses_of(part: slice) -> np.ndarray:
            usable, block, pairs = targets_of(plans, part)
            here = np.zeros_like(losses)
            for index, (plan, targets) in enumerate(pairs):
                variance = block[plan.ridge.samples.train].var(0).double().cpu().numpy()
                counted = usable & (variance > 0)
                share = plan.ridge.losses(targets).double().cpu().numpy()[:, counted]
                label = column[part][counted]
                for row, values in enumerate(share / variance[counted]):
                    here[index, row] = np.bincount(label, values, minlength=len(names))
            return here

        for _, here in in_blocks(losses_of, "penalties of regions"):
            losses += here
        return [dict(zip(names.tolist(), loss.argmin(0).tolist(), strict=True)) for loss in losses]

    def choose(plan: Plan, targets: Targets, part: slice, shared: Mapping[int, int] | None):
        """Index of each voxel's penalty: its own, or that of its region."""
        if shared is None:
            return plan.ridge.choose(targets)
        label = region[part]
        choice = torch.tensor([shared[name] for name in label.tolist()], device=device)
        if (label == 0).any():
            own = plan.ridge.choose(targets)
            choice = torch.where(torch.from_numpy(label == 0).to(device), own, choice)
        return choice

    def score(plan: Plan, targets: Targets, usable: np.ndarray, choice: torch.Tensor) -> _Scored:
        prediction = plan.ridge.predict(targets, choice)
        trials = torch.from_numpy(cv.folds[plan.fold].test_trials).to(device)
        response = targets.block[trials]
        r = pearson(prediction, response).double().cpu().numpy()
        penalty = plan.ridge.penalties(targets, choice) if fractional else grid[choice]
        return _Scored(
            plan=plan,
            choice=choice,
            r=r,
            r2=r2(prediction, response).double().cpu().numpy(),
            scored=np.isfinite(r) & usable,
            penalty=penalty.double().cpu().numpy().clip(LEAST_PENALTY),
            prediction=None if predictions is None else prediction.float().cpu().numpy(),
        )

    def permuted_scores(block: torch.Tensor, found: Sequence[_Scored]) -> Iterator[tuple]:
        """Layer, permutations and their scores, at the penalties that the real responses chose."""
        width = block.shape[1]
        rows_at_once = max(1, PERMUTED_BYTES // max(block.element_size() * block.numel(), 1))
        folds = {}
        for one in found:
            folds[one.plan.layer] = folds.get(one.plan.layer, 0) + one.scored
        for first in range(0, len(orders), rows_at_once):
            rows = slice(first, min(first + rows_at_once, len(orders)))
            order = torch.from_numpy(orders[rows]).to(device)
            n = len(order)
            # all of these permutations side by side, as if they were voxels
            permuted = block[order.T.reshape(-1)].view(len(block), n * width)
            null = {layer: torch.zeros(n * width, device=device, dtype=dtype) for layer in folds}
            pairs = _with_targets(permuted, [one.plan for one in found])
            for one, (plan, targets) in zip(found, pairs, strict=True):
                prediction = plan.ridge.predict(targets, one.choice.repeat(n))
                trials = torch.from_numpy(cv.folds[plan.fold].test_trials).to(device)
                null[plan.layer] += pearson(prediction, permuted[trials]).nan_to_num()
            for layer, number in folds.items():
                scores = null[layer].view(n, width).double().cpu().numpy()
                yield layer, rows, scores / np.maximum(number, 1)

    def run(plans: list[Plan]) -> None:
        plans = sorted(plans, key=lambda plan: plan.fold)
        shared = [None] * len(plans) if region is None else choices_of_regions(plans)

        def fit_block(part: slice) -> tuple[list[_Scored], list[tuple]]:
            usable, block, pairs = targets_of(plans, part)
            found = [
                score(plan, targets, usable, choose(plan, targets, part, of_regions))
                for (plan, targets), of_regions in zip(pairs, shared, strict=True)
            ]
            if orders is None:
                return found, []
            observed = _mean_scores(found)
            return found, [
                (layer, rows, *count_permutations(observed[layer], null))
                for layer, rows, null in permuted_scores(block, found)
            ]

        for part, (found, counts) in in_blocks(fit_block, "encoding"):
            for one in found:
                layer, kept = one.plan.layer, one.scored
                total[layer, part][kept] += one.r[kept]
                total_r2[layer, part][kept] += one.r2[kept]
                count[layer, part] += kept
                log_alpha[layer, part][kept] += np.log(one.penalty[kept])
                total_choice[layer, part][kept] += grid[one.choice].cpu().numpy()[kept]
                if predictions is not None:
                    trials = cv.folds[one.plan.fold].test_trials
                    predictions[layer, trials, part] = one.prediction
            if orders is not None:
                for layer, observed in _mean_scores(found).items():
                    test.observed[layer, part] = observed
            for layer, rows, above, largest in counts:
                test.add(layer, part, rows, above, largest)

    pending: list[Plan] = []
    held = 0
    for index, load in enumerate(layers):
        features = torch.from_numpy(np.ascontiguousarray(load())).to(device)
        for number, samples in enumerate(splits):
            ridge = make_plan(
                features,
                samples,
                alphas,
                method=method,
                pca=pca,
                solver=solver,
                device=device,
                dtype=dtype,
            )
            pending.append(Plan(index, number, ridge))
            held += ridge.n_bytes
            if held > PLAN_BYTES and orders is None:
                run(pending)
                pending, held = [], 0
        if held > PLAN_BYTES:
            run(pending)
            pending, held = [], 0
    if pending:
        run(pending)
    folds = np.where(count, count, np.nan)
    return LinearFit(
        total / folds,
        total_r2 / folds,
        np.exp(log_alpha / folds),
        total_choice / folds if fractional else None,
        test,
    )


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


def ridge_penalties(alphas: Sequence[float] | Mapping[str, Any]) -> list[float]:
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
    responses: Path,
    features: Path,
    out: Path,
    maps: Path,
    alphas: Sequence[float] | Mapping[str, Any],
    cross_validation: Mapping[str, Any],
    method: str = "ridge",
    fractions: Sequence[float] = FRACTIONS,
    alpha_per: str = "voxel",
    pca: int | None = None,
    delays: Sequence[float] | None = None,
    resampling: str = "average",
    gap: float = 8.0,
    permutations: int = 0,
    permutation_block: float | None = None,
    bootstrap: bool = False,
    responsive_ceiling: float = 0.1,
    predictions: bool = False,
    regions: Path | None = None,
    labels: Path | None = None,
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
    responses
        Betas or timeseries store.
    features
        Features store.
    out
        The store.
    maps
        Folder for maps at each voxel's best layer, see `maps.write_subject_maps`.
    alphas
        List of penalties, or a mapping minimum, maximum, number: a logarithmic grid.
    cross_validation
        over (run, session, or of trials condition), new_stimuli, stimulus_folds, run_folds: see
        `cross_validation_folds`.
    method
        `ridge`, or `fractional`: the penalty of each voxel is that which shrinks its weights to a
        fraction of their length without a penalty (Rokem & Kay 2020).
    fractions
        Fractions to choose from, with `fractional`.
    alpha_per
        `voxel`, or `region`: one penalty (or fraction) for all voxels of a region.
    pca
        Principal components of the features to keep, fitted on each fold's training samples.
    delays, resampling, gap
        Of volumes: see `volumes.volume_design`.
    permutations
        Permutations of held-out predictions, for p-values; 0: none.
    permutation_block
        Seconds (of volumes; `PERMUTATION_BLOCK` where None) or trials that stay together. Trials
        with None: predictions are permuted between stimuli.
    bootstrap
        Keep what each stimulus adds to each region's mean r, see `agreement`.
    responsive_ceiling
        Least explainable share of single-sample variance of the voxels that make that mean.
    predictions
        Keep the held-out predictions in the store.
    regions, labels
        Label image and table of labels, for `alpha_per` region and `bootstrap`.
    min_ceiling
        Least explainable share of single-sample variance for which scores are normalised.
    voxel_batch
        Voxels that are worked on together.
    device
        `auto`, `cpu` or `cuda`.
    seed
        Of the deal of stimuli to folds, and of permutations: the study's.
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
        Where a stimulus has no features, there are too few stimuli, regions are asked for and not
        given or on another grid, or there is no such device.

    Notes
    -----
    Scores are of single samples, so the ceiling is that of single samples, see
    `isocortex.encoding.scores`. Normalised scores can exceed 1 where the ceiling is uncertain;
    they are kept, counted and warned of.
    """
    where = select_device(device, key="encoding.device")
    penalties = ridge_penalties(alphas)
    if method not in METHODS:
        raise InputError(f"unknown encoding.method {method!r}: write one of {', '.join(METHODS)}")
    if alpha_per not in ("voxel", "region"):
        raise InputError(f"unknown encoding.alpha_per {alpha_per!r}: write voxel or region")
    if (alpha_per == "region" or bootstrap) and (regions is None or labels is None):
        raise InputError(
            "encoding.alpha_per: region and encoding.bootstrap need regions: add input.regions"
        )
    opened = open_responses(responses)
    in_time = {"delays": delays, "resampling": resampling, "gap": gap}
    design = design_of(
        opened,
        features,
        cross_validation=cross_validation,
        seed=seed,
        **(in_time if opened.kind == "volumes" else {}),
    )
    name, cv, n_voxels = opened.name, design.cv, opened.n_voxels
    layers = design.layers
    region = None
    if regions is not None and labels is not None:
        region = regions_of_voxels(regions, opened.coords, opened.attrs, where=name)
    held_out = None
    with contextlib.ExitStack() as stack:
        stack.enter_context(deterministic(threads))
        if bootstrap or predictions:
            shape = (len(layers), len(opened.used), n_voxels)
            held_out = stack.enter_context(_scratch(Path(out), shape))
        fit = fit_layers(
            [functools.partial(design.load, layer) for layer in layers],
            opened.read,
            n_voxels,
            cv,
            penalties if method == "ridge" else sorted({float(value) for value in fractions}),
            method=method,
            regions=region if alpha_per == "region" else None,
            pca=pca,
            predictions=held_out,
            orders=_orders(opened, cv, permutations, permutation_block, seed=seed),
            voxel_batch=voxel_batch,
            device=where,
        )
        further = {}
        if bootstrap:
            further = _agreement(
                opened,
                cv,
                fit,
                held_out,
                region=region,
                names=bids.read_labels(labels),
                responsive_ceiling=responsive_ceiling,
                voxel_batch=voxel_batch,
            )
        result = _dataset(opened, design, fit, further, min_ceiling=min_ceiling)
        result.attrs |= {
            "seed": seed,
            "device": where.type,
            "method": method,
            "alphas": penalties if method == "ridge" else [],
            "fractions": [] if method == "ridge" else list(fractions),
            "alpha_per": alpha_per,
            "pca": pca,
            "permutations": permutations,
            "responsive_ceiling": responsive_ceiling if bootstrap else None,
            **{key: design.attrs[key] for key in TIMED if key in design.attrs},
        }
        sources = [responses, features, *([regions, labels] if region is not None else [])]
        if predictions:
            result = result.assign(_predictions(opened, design, held_out))
        manifest = store.write(result, out, spec="encoding", sources=sources, code=code)
    if above := result.attrs["n_scores_above_ceiling"]:
        logger.warning(
            "%s, model %s: %d normalised scores are over 1: their noise ceilings are uncertain",
            name,
            design.model,
            above,
        )
    write_subject_maps(Path(maps), result)
    logger.info("%s, model %s: %s; %d voxels", name, design.model, cv.text, n_voxels)
    return manifest


@contextlib.contextmanager
def _scratch(out: Path, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """An array of NaN for held-out predictions: in memory where small, else in a file."""
    if np.prod(shape) * 4 <= RESIDENT_BYTES:
        yield np.full(shape, np.nan, np.float32)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    path = provenance.temporary_beside(out.with_suffix(".predictions"))
    try:
        array = np.memmap(path, np.float32, "w+", shape=shape)
        for layer in array:
            layer[:] = np.nan
        yield array
    finally:
        path.unlink(missing_ok=True)


def _orders(
    responses: Responses,
    cv: CrossValidation,
    permutations: int,
    permutation_block: float | None,
    *,
    seed: int,
) -> np.ndarray | None:
    """Permutations of a subject's samples, where asked for."""
    if not permutations:
        return None
    size = permutation_block
    if responses.kind == "volumes":
        seconds = PERMUTATION_BLOCK if permutation_block is None else permutation_block
        size = seconds / float(responses.attrs["TR"])
    if size is None:
        return permute_stimuli(cv, permutations=permutations, seed=seed)
    runs = responses.samples["run"]
    return permute_blocks(runs, block=max(1, round(size)), permutations=permutations, seed=seed)


def _agreement(
    responses: Responses,
    cv: CrossValidation,
    fit: LinearFit,
    held_out: np.ndarray,
    *,
    region: np.ndarray,
    names: Mapping[int, str],
    responsive_ceiling: float,
    voxel_batch: int,
) -> dict[str, tuple]:
    """What each stimulus adds to each region's mean score, over its responsive voxels."""
    counted = np.isfinite(fit.score).all(0)
    if np.isfinite(responses.ceiling).any():
        counted &= np.nan_to_num(responses.ceiling) ** 2 >= responsive_ceiling
    members = np.stack([counted & (region == label) for label in names])
    agreement = stimulus_agreement(held_out, responses.read, cv, members, voxel_batch=voxel_batch)
    return {
        "agreement": (("layer", "region", "stimulus"), agreement),
        "region": ("region", np.array(list(names.values()), dtype=object)),
        "stimulus": ("stimulus", np.array(cv.stimuli, dtype=object)),
    }


def _dataset(
    responses: Responses,
    design: Design,
    fit: LinearFit,
    further: Mapping[str, tuple],
    *,
    min_ceiling: float,
) -> xr.Dataset:
    """The encoding store's arrays and what was counted."""
    ceiling = responses.ceiling
    enough = high_enough(ceiling, min_ceiling)
    normalised = normalise(fit.score, ceiling, min_ceiling=min_ceiling)
    explained = normalise(fit.r2, ceiling, power=2, min_ceiling=min_ceiling)
    scored = np.isfinite(fit.score).any(0)
    best = np.where(scored, np.nan_to_num(fit.score, nan=-np.inf).argmax(0), -1)
    above = int((normalised > 1).sum())
    by_layer = {
        "score": fit.score,
        "score_normalised": normalised,
        "r2": fit.r2,
        "r2_normalised": explained,
        "alpha": fit.alpha,
    }
    if fit.fraction is not None:
        by_layer["fraction"] = fit.fraction
    if fit.test is not None:
        by_layer |= {"p": fit.test.p, "p_fdr": fit.test.p_fdr, "p_fwe": fit.test.p_fwe}
    return xr.Dataset(
        {
            **{
                key: (("layer", "voxel"), values.astype(np.float32))
                for key, values in by_layer.items()
            },
            "best_layer": ("voxel", best.astype(np.int16)),
            "noise_ceiling": ("voxel", ceiling.astype(np.float32)),
            **further,
        },
        coords={
            "layer": np.array(design.layers, dtype=object),
            **{axis: ("voxel", responses.coords[axis]) for axis in "ijk"},
        },
        attrs={
            **{key: responses.attrs[key] for key in ("affine", "shape", "space")},
            "subject": responses.subject,
            "task": responses.task,
            "model": design.model,
            "kind": responses.kind,
            **({"TR": responses.attrs["TR"]} if responses.kind == "volumes" else {}),
            "folds": design.cv.text,
            "min_ceiling": min_ceiling,
            "score_average": "plain mean over folds of Pearson r over a fold's test trials",
            "n_trials": len(responses.used),
            "n_trials_without_stimulus": responses.n_samples - len(responses.used),
            "n_stimuli": len(design.cv.stimuli),
            "n_voxels_without_score": int((~scored).sum()),
            "n_voxels_ceiling_too_low": int((~enough).sum()),
            "n_scores_above_ceiling": above,
            "warning": f"{above} normalised scores are over 1: their noise ceilings are uncertain"
            if above
            else "",
        },
    )


def _predictions(responses: Responses, design: Design, held_out: np.ndarray) -> dict[str, tuple]:
    """Held-out predictions as a lazy array, a block of voxels at a time."""
    size = max(1, store.SHARD_BYTES // (4 * held_out.shape[0] * held_out.shape[1]))
    values = dask.array.from_array(held_out, chunks=(-1, -1, size), name=False)
    stimuli = np.array(design.cv.stimuli, dtype=object)[design.cv.stimulus]
    return {
        "prediction": (("layer", "sample", "voxel"), values),
        "sample": ("sample", stimuli),
        "sample_run": ("sample", responses.samples["run"].astype(object)),
        "sample_index": ("sample", responses.used.astype(np.int32)),
    }
